"""Blocks grown from the places where they begin: one operator, whose many small steps the compiler need not see."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["grow"]

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_LIBRARY.define("grow(Tensor keep, SymInt[] blocks) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

grow = torch.ops.dropkit.grow.default
"""Return the mask of what is kept where a block begins at every place that is not.

Args:
    keep: Bool tensor of the places where blocks may begin, False = one begins; its last axes are those of a map.
    blocks: Lengths of a block, one for each axis of a map, by which, less one, the mask is longer.
"""


def _grow(keep: Tensor, blocks: list[int]) -> Tensor:
    keep = F.pad(keep, [block - 1 for block in reversed(blocks) for _ in range(2)], value=True)
    for axis, block in enumerate(blocks, start=keep.dim() - len(blocks)):
        grown = 1
        while grown < block:  # by as much as has grown before, so that it takes few steps
            more = min(grown, block - grown)
            length = keep.shape[axis] - more
            keep = keep.narrow(axis, 0, length) & keep.narrow(axis, more, length)
            grown += more
    return keep


def _fake(keep: Tensor, blocks: list[int]) -> Tensor:
    shape, first = list(keep.shape), keep.dim() - len(blocks)
    return keep.new_empty([*shape[:first], *(n + b - 1 for n, b in zip(shape[first:], blocks, strict=True))])


def _batch(_info: Any, in_dims: tuple[Any, ...], keep: Tensor, blocks: list[int]) -> tuple[Tensor, int]:
    return grow(keep.movedim(in_dims[0], 0), blocks), 0


_LIBRARY.impl("grow", _grow, "CompositeExplicitAutograd")
torch.library.register_fake("dropkit::grow", _fake, lib=_LIBRARY)
torch.library.register_vmap("dropkit::grow", _batch, lib=_LIBRARY)
