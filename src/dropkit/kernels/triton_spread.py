"""Masks smaller than their tensor, or in another order, spread over it on a GPU in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native.strided import bit_steps, is_laid_out_like, memory_axes
from dropkit.kernels.triton_address import on_device
from dropkit.kernels.triton_bits import scale_of, scaled

__all__ = ["spread"]

_TILE = 2048  # elements
_MOST_AXES = 4


@triton.jit(do_not_specialize=["threshold"])
def _spread(
    input, output, mask, threshold, elements, step1, length2, step2, length3, step3, length4, step4,
    TILE: tl.constexpr, AXES: tl.constexpr, IS_SCALED: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(elements.dtype) * TILE
    element = begin + tl.arange(0, TILE)
    is_inside = element < elements
    # From the innermost axis on; of the first that there is, no length is needed.
    place, rest = (element * 0).to(tl.int64), element
    if AXES > 3:
        place, rest = place + (rest % length4).to(tl.int64) * step4, rest // length4
    if AXES > 2:
        place, rest = place + (rest % length3).to(tl.int64) * step3, rest // length3
    if AXES > 1:
        place, rest = place + (rest % length2).to(tl.int64) * step2, rest // length2
    place += rest.to(tl.int64) * step1
    kept = tl.load(mask + place, mask=is_inside, other=0) != 0
    values = tl.load(input + element, mask=is_inside)
    if IS_SCALED:
        rate = tl.load(threshold) if threshold.dtype.is_ptr() else tl.cast(threshold, tl.int64)
        values = scaled(values, scale_of(rate))
    tl.store(output + element, tl.where(kept, values, 0.0).to(output.dtype.element_ty), mask=is_inside)


def spread(input: Tensor, mask: Tensor, threshold: Tensor, is_scaled: bool) -> Tensor:
    """Apply dropout by a mask that broadcasts to the input.

    Args:
        input: Tensor of a type that the kernels know.
        mask: Contiguous bool tensor of as many axes, True = kept.
        threshold: Of the rate, on whose leading axes may be several.
        is_scaled: Whether survivors are scaled.
    """
    output = torch.empty_like(input)  # dense, even if the input is not
    if not output.numel():
        return output
    axes = memory_axes(tuple(output.shape), output.stride(), bit_steps(mask.shape))
    if threshold.numel() > 1 or axes is None or len(axes) > _MOST_AXES:
        return portable.select(input, mask, portable.survivor_scale(threshold) if is_scaled else None)
    source = input if is_laid_out_like(input, output) else output.copy_(input)
    numbers = [number for pair in zip(axes.lengths, axes.bit_steps, strict=True) for number in pair][1:]
    numbers += [1] * (2 * _MOST_AXES - 1 - len(numbers))
    rate = int(threshold) if threshold.device.type == "cpu" and input.device.type != "cpu" else threshold
    with on_device(input.device):
        _spread[(triton.cdiv(output.numel(), _TILE),)](
            source, output, mask, rate, output.numel(), *numbers,
            TILE=_TILE, AXES=len(axes), IS_SCALED=is_scaled,
        )  # fmt: skip
    return output
