"""Dropout that moves units, on CPU tensors by the compiled kernels."""

from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native import operations as native
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
    keep = native.keep_mask(key, stream, threshold, place, input.device)
    return portable.move(input, keep, scale, shift, dropped)
