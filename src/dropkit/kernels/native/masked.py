"""A mask that is there already, applied by the compiled kernels in one pass over memory."""

import torch
from torch import Tensor

from dropkit.kernels.native.operations import TYPES, serving
from dropkit.kernels.native.packing import MAP, packed_words
from dropkit.kernels.native.strided import bit_steps, memory_axes

__all__ = ["apply_mask_plain"]


def apply_mask_plain(input: Tensor, keep: Tensor, scale: float) -> Tensor:
    """Scale what is kept of a tensor that the kernels take; what is dropped becomes +0.

    Args:
        input: The tensor, not empty.
        keep: Bool tensor on the CPU with as many axes, of the same length or of 1.
        scale: The factor.
    """
    output = torch.empty_like(input)
    words = packed_words(keep.contiguous().numpy())
    axes = memory_axes(output.shape, output.stride(), bit_steps(keep.shape))
    assert axes is not None  # noqa: S101  # what the kernels take has no gaps
    places = input.data_ptr(), output.data_ptr(), words.ctypes.data, 0
    affine = MAP(scale, -0.0, 0.0)  # to add -0 changes no number
    serving().affine_by_bits(TYPES[input.dtype], *places, affine, len(axes), *axes)
    return output
