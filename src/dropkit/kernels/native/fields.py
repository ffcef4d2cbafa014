"""Fields of numbers on a CPU by the compiled kernels, at the addresses that `dropkit.kernels.portable` draws them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native.division import divide
from dropkit.kernels.native.library import library
from dropkit.kernels.native.operations import TYPES
from dropkit.random.layout import Layout

__all__ = ["integers", "normal", "uniform"]


def integers(key: Tensor, stream: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.portable.integers` does."""
    native = library() if device.type == "cpu" else None
    if native is None:
        return portable.integers(key, stream, place, device)
    return _drawn(native.integers, key, stream, place, torch.int64)


def uniform(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Do what `dropkit.kernels.portable.uniform` does."""
    native = library() if device.type == "cpu" and dtype in TYPES else None
    if native is None:
        return portable.uniform(key, stream, place, device, dtype)
    return _drawn(native.uniform, key, stream, place, dtype, TYPES[dtype])


def normal(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Do what `dropkit.kernels.portable.normal` does."""
    native = library() if device.type == "cpu" and dtype in TYPES else None
    if native is None:
        return portable.normal(key, stream, place, device, dtype)
    return _drawn(native.normal, key, stream, place, dtype, TYPES[dtype])


def _drawn(
    draw: Callable[..., Any], key: Tensor, stream: Tensor, place: Layout, dtype: torch.dtype, *which: int
) -> Tensor:
    never = torch.tensor(0)
    division = divide(key, stream, never, place)
    output = torch.empty(division.mask_shape, dtype=dtype)
    for call in division.calls(key, stream, never, scaled=False):
        draw(*which, output.data_ptr() + call.offset * output.element_size(), call.packed)
    return output
