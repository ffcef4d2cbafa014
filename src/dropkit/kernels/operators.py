"""The operators that PyTorch sees: their schemas, their shape-only versions and which kernel serves them.

An operator carries no autograd and no batching rule: `dropkit.functional` wraps it in an `autograd.Function`. Whatever
runs eagerly, compiled or under a fake mode calls the same operator, so all get the same mask.
"""

from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.random.layout import Layout

__all__ = ["dropout", "keep_mask"]

_LIBRARY = torch.library.Library("dropkit", "DEF")
_PLACE = "SymInt[] shape, SymInt[] row_strides, SymInt first_row, SymInt first_column"
_ADDRESS = f"Tensor key, Tensor stream, Tensor threshold, {_PLACE}"
_TAGS = (torch.Tag.pt2_compliant_tag,)

_LIBRARY.define(f"dropout(Tensor input, {_ADDRESS}, bool scaled) -> Tensor", tags=_TAGS)
_LIBRARY.define(f"keep_mask({_ADDRESS}, Device device) -> Tensor", tags=_TAGS)


def _dropout(
    input: Tensor,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    shape: list[int],
    row_strides: list[int],
    first_row: int,
    first_column: int,
    scaled: bool,
) -> Tensor:
    place = Layout(tuple(shape), tuple(row_strides), first_row, first_column)
    return portable.dropout(input, key, stream, threshold, place, scaled)


def _keep_mask(
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    shape: list[int],
    row_strides: list[int],
    first_row: int,
    first_column: int,
    device: torch.device,
) -> Tensor:
    place = Layout(tuple(shape), tuple(row_strides), first_row, first_column)
    return portable.keep_mask(key, stream, threshold, place, device)


def _fake_dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    keep = torch.empty((1,) * input.dim(), dtype=torch.bool, device=input.device)
    return portable.select(input, keep, portable.survivor_scale(threshold) if rest[-1] else None)


def _fake_keep_mask(
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    shape: list[int],
    row_strides: list[int],
    first_row: int,
    first_column: int,
    device: torch.device,
) -> Tensor:
    slices = torch.broadcast_shapes(key.shape, stream.shape)
    mask = (*slices, *shape)
    thresholds = (*threshold.shape, *(1,) * (len(mask) - threshold.dim()))
    return torch.empty(torch.broadcast_shapes(mask, thresholds), dtype=torch.bool, device=device)


_LIBRARY.impl("dropout", _dropout, "CompositeExplicitAutograd")
_LIBRARY.impl("keep_mask", _keep_mask, "CompositeExplicitAutograd")
torch.library.register_fake("dropkit::dropout", _fake_dropout, lib=_LIBRARY)
torch.library.register_fake("dropkit::keep_mask", _fake_keep_mask, lib=_LIBRARY)

dropout = torch.ops.dropkit.dropout.default
keep_mask = torch.ops.dropkit.keep_mask.default
