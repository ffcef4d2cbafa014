"""Multiplication by Gaussian noise, on CPU tensors by the compiled kernels."""

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native import fields
from dropkit.kernels.native.division import divide
from dropkit.kernels.native.library import library
from dropkit.kernels.native.operations import TYPES
from dropkit.random.layout import Layout

__all__ = ["gaussian_dropout"]


def gaussian_dropout(input: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, place: Layout) -> Tensor:
    """Do what `dropkit.kernels.portable.gaussian_dropout` does, with the normals of the compiled kernels."""
    found, division = library(), divide(key, stream, deviation, place)
    is_direct = input.dtype in TYPES and input.is_contiguous() and input.shape == division.mask_shape
    if found is None or division.is_too_fine or not is_direct:
        noise = fields.normal(key, stream, place, input.device, portable.computing_type(input))
        return portable.multiply(input, portable.around_one(noise, deviation))
    output, never = torch.empty_like(input), torch.zeros_like(deviation, dtype=torch.int64)
    for call in division.calls(key, stream, never, False, (deviation.contiguous(),)):
        size = call.offset * input.element_size()
        found.gaussian(TYPES[input.dtype], input.data_ptr() + size, output.data_ptr() + size, call.packed)
    return output
