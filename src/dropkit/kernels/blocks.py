"""Blocks grown from the places where they begin: one operator, whose many small steps the compiler need not see."""

import math
from typing import Any

import torch
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


_CPU_TILE = 2**18  # places at a time, few enough for the cache of one core


def _grow(keep: Tensor, blocks: list[int]) -> Tensor:
    first = keep.dim() - len(blocks)
    grown = [n + b - 1 for n, b in zip(keep.shape[first:], blocks, strict=True)]
    if not keep.numel():
        return keep.new_ones((*keep.shape[:first], *grown))
    maps = keep.reshape(-1, *keep.shape[first:])
    count = max(_CPU_TILE // math.prod(grown), 1) if keep.device.type == "cpu" else len(maps)
    if count >= len(maps):
        return _grow_maps(maps, blocks).contiguous().view(*keep.shape[:first], *grown)
    output = keep.new_empty((*keep.shape[:first], *grown))
    for found, some in zip(output.view(-1, *grown).split(count), maps.split(count), strict=True):
        found.copy_(_grow_maps(some, blocks))
    return output


def _grow_maps(keep: Tensor, blocks: list[int]) -> Tensor:
    padded = keep.new_ones((len(keep), *(n + 2 * b - 2 for n, b in zip(keep.shape[1:], blocks, strict=True))))
    inside: Any = (slice(None), *(slice(b - 1, b - 1 + n) for n, b in zip(keep.shape[1:], blocks, strict=True)))
    padded[inside] = keep
    # Neighbours along an axis are as far apart in memory everywhere, so whole tensors are shifted, not row by row. What
    # comes from beyond the end of a row lies outside of what is left in the end.
    flat = padded.view(torch.uint8).reshape(-1)
    for block, stride in zip(blocks, padded.stride()[1:], strict=True):
        done = 1
        while done < block:  # by as much as has grown before, so that it takes few steps
            more = min(done, block - done)
            flat = flat[: len(flat) - more * stride] & flat[more * stride :]
            done += more
    shape = len(keep), *(n + b - 1 for n, b in zip(keep.shape[1:], blocks, strict=True))
    return flat.as_strided(shape, padded.stride()).view(torch.bool)


def _fake(keep: Tensor, blocks: list[int]) -> Tensor:
    shape, first = list(keep.shape), keep.dim() - len(blocks)
    return keep.new_empty([*shape[:first], *(n + b - 1 for n, b in zip(shape[first:], blocks, strict=True))])


def _batch(_info: Any, in_dims: tuple[Any, ...], keep: Tensor, blocks: list[int]) -> tuple[Tensor, int]:
    return grow(keep.movedim(in_dims[0], 0), blocks), 0


_LIBRARY.impl("grow", _grow, "CompositeExplicitAutograd")
torch.library.register_fake("dropkit::grow", _fake, lib=_LIBRARY)
torch.library.register_vmap("dropkit::grow", _batch, lib=_LIBRARY)
