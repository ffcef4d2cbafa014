"""Masks smaller than their tensor, or in another order, spread over it on a GPU in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native.strided import bit_steps, is_laid_out_like, memory_axes
from dropkit.kernels.triton_address import on_device, rates
from dropkit.kernels.triton_bits import rate_of, scaled

__all__ = ["spread"]

_TILE = 2048  # elements
_MOST_AXES = 4
_NOT_SPECIALIZED = [
    "threshold", "elements", "step1", "length2", "step2", "length3", "step3", "length4", "step4",
]  # fmt: skip


@triton.jit(do_not_specialize=_NOT_SPECIALIZED)
def _spread(
    input, output, mask, threshold, elements, step1, length2, step2, length3, step3, length4, step4,
    TILE: tl.constexpr, AXES: tl.constexpr, IS_SCALED: tl.constexpr,
):  # fmt: skip
    begin, along = tl.program_id(0).to(tl.int64) * TILE, tl.arange(0, TILE)
    # From the innermost axis on; of the first that there is, no length is needed.
    first, after = begin.to(tl.uint64 if elements.dtype == tl.int64 else tl.uint32), along
    place = tl.zeros((TILE,), tl.int64)
    if AXES > 3:
        place, first, after = _along(place, first, after, length4, step4)
    if AXES > 2:
        place, first, after = _along(place, first, after, length3, step3)
    if AXES > 1:
        place, first, after = _along(place, first, after, length2, step2)
    at = mask + place + (first.to(tl.int64) + after) * step1
    if begin + TILE <= elements:  # the compiler sees that all elements exist, and moves 16 bytes at once
        _spread_tile(input + begin + along, output + begin + along, at, threshold, None, IS_SCALED)
    else:
        is_inside = begin + along < elements
        _spread_tile(input + begin + along, output + begin + along, at, threshold, is_inside, IS_SCALED)


@triton.jit
def _along(place, first, after, length, step):
    """Go along an axis: of the tile's first element, and of what is after it, return what is left for other axes."""
    integer: tl.constexpr = tl.uint64 if length.dtype == tl.int64 else tl.uint32
    whole = length.to(first.dtype)
    length, after = length.to(integer), (first % whole).to(integer) + after.to(integer)
    return place + (after % length).to(tl.int64) * step, first // whole, (after // length).to(tl.int32)


@triton.jit
def _spread_tile(input, output, mask, threshold, is_inside, IS_SCALED: tl.constexpr):
    kept, values = tl.load(mask, mask=is_inside) != 0, tl.load(input, mask=is_inside)
    found = tl.where(kept, values, 0.0)
    if IS_SCALED:
        found = scaled(found, rate_of(threshold, 0, 0))
    tl.store(output, found.to(output.dtype.element_ty), mask=is_inside)


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
    found = rates(threshold, (), input.device)
    with on_device(input.device):
        _spread[(triton.cdiv(output.numel(), _TILE),)](
            source, output, mask, found, output.numel(), *numbers,
            TILE=_TILE, AXES=len(axes), IS_SCALED=is_scaled,
        )  # fmt: skip
    return output
