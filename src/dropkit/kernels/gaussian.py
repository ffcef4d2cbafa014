"""Multiplication by Gaussian noise at an address, as an operator."""

from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import fields, portable
from dropkit.kernels.native import gaussian as native
from dropkit.kernels.operators import batch_first, of_place
from dropkit.random.layout import Layout

__all__ = ["gaussian_dropout"]

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_LIBRARY.define(
    "gaussian_dropout(Tensor input, Tensor key, Tensor stream, Tensor deviation, SymInt[] shape, "
    "SymInt[] row_strides, SymInt first_row, SymInt first_column) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

gaussian_dropout = torch.ops.dropkit.gaussian_dropout.default


def _by_noise(input: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, place: Layout) -> Tensor:
    """Do what `dropkit.kernels.portable.gaussian_dropout` does, with normals by whichever kernel serves."""
    noise = fields.normal(key, stream, place, input.device, portable.computing_type(input))
    return portable.multiply(input, portable.around_one(noise, deviation))


def _fake(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _batch(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    return gaussian_dropout(*batch_first(info, in_dims, *arguments)), 0


_LIBRARY.impl("gaussian_dropout", of_place(_by_noise, 4), "CompositeExplicitAutograd")
_LIBRARY.impl("gaussian_dropout", of_place(native.gaussian_dropout, 4), "CPU")
torch.library.register_fake("dropkit::gaussian_dropout", _fake, lib=_LIBRARY)
torch.library.register_vmap("dropkit::gaussian_dropout", _batch, lib=_LIBRARY)
