"""Dropout that moves units, on CPU tensors by the compiled kernels; what these do not take is left to portable ones."""

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native import operations as native
from dropkit.kernels.native.division import divide
from dropkit.kernels.native.library import library
from dropkit.kernels.native.operations import TYPES
from dropkit.kernels.native.packing import MAP
from dropkit.kernels.native.strided import MemoryAxes
from dropkit.random.layout import Layout

__all__ = ["affine_dropout"]


def affine_dropout(
    input: Tensor,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    scale: Tensor,
    shift: Tensor,
    dropped: Tensor,
    place: Layout,
) -> Tensor:
    """Do what `dropkit.kernels.portable.affine_dropout` does."""
    if not threshold.shape == scale.shape == shift.shape == dropped.shape:
        threshold, scale, shift, dropped = torch.broadcast_tensors(threshold, scale, shift, dropped)
    found, division = library(), divide(key, stream, threshold, place)
    if found is None or division.is_too_fine:
        return portable.affine_dropout(input, key, stream, threshold, scale, shift, dropped, place)
    numbers = scale.contiguous(), shift.contiguous(), dropped.contiguous()
    if input.dtype in TYPES and input.is_contiguous() and input.shape == division.mask_shape:
        output = torch.empty_like(input)
        for call in division.calls(key, stream, threshold, False, numbers):
            size = call.offset * input.element_size()
            found.affine(TYPES[input.dtype], input.data_ptr() + size, output.data_ptr() + size, call.packed)
        return output

    def apply(index: tuple[int, ...], places: tuple[int, ...], axes: MemoryAxes) -> None:
        of_one = MAP(*(float(value[index] if value.numel() > 1 else value) for value in numbers))
        found.affine_by_bits(TYPES[input.dtype], *places, of_one, len(axes), *axes)

    spread = native.spread_bits(found, division, input, key, stream, threshold, apply)
    if spread is not None:
        return spread
    keep = native.keep_mask(key, stream, threshold, place, input.device)
    return portable.move(input, keep, scale, shift, dropped)
