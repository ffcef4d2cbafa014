"""Multiplication by Gaussian noise, on CPU tensors by the compiled kernels."""

from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native import fields
from dropkit.random.layout import Layout

__all__ = ["gaussian_dropout"]


def gaussian_dropout(input: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, place: Layout) -> Tensor:
    """Do what `dropkit.kernels.portable.gaussian_dropout` does."""
    noise = fields.normal(key, stream, place, input.device, portable.computing_type(input))
    return portable.multiply(input, portable.around_one(noise, deviation))
