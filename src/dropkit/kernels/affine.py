"""Dropout that moves units, as an operator: what is kept is scaled and shifted, what is dropped becomes a constant."""

from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native import affine as native
from dropkit.kernels.operators import batch_first, keep_mask, of_place, slices_first

__all__ = ["affine_dropout", "batch_affine"]

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_LIBRARY.define(
    "affine_dropout(Tensor input, Tensor key, Tensor stream, Tensor threshold, Tensor scale, Tensor shift, "
    "Tensor dropped, SymInt[] shape, SymInt[] row_strides, SymInt first_row, SymInt first_column) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

affine_dropout = torch.ops.dropkit.affine_dropout.default


def _by_mask(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    """Do what `dropkit.kernels.portable.affine_dropout` does, with a mask by whichever kernel serves."""
    *numbers, place = rest
    return portable.move(input, keep_mask(key, stream, threshold, *place, input.device), *numbers)


def _fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def batch_affine(info: Any, in_dims: tuple[Any, ...], input: Tensor, *rest: Any) -> tuple[Any, ...]:
    """Move the axis that `vmap` batches to the front of the operator's arguments."""
    address = batch_first(info, in_dims[:4], input, *rest[:3])
    return *address, *slices_first(in_dims[4:7], rest[3:6]), *rest[6:]


def _batch(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    return affine_dropout(*batch_affine(info, in_dims, *arguments)), 0


_LIBRARY.impl("affine_dropout", of_place(_by_mask, 7), "CompositeExplicitAutograd")
_LIBRARY.impl("affine_dropout", of_place(native.affine_dropout, 7), "CPU")
torch.library.register_fake("dropkit::affine_dropout", _fake, lib=_LIBRARY)
torch.library.register_vmap("dropkit::affine_dropout", _batch, lib=_LIBRARY)
