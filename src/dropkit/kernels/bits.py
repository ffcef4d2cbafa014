"""The mask as bits: what compiled code on GPUs reads between the operations that it fuses.

The compiler does not look into an operator of ours, so dropout between two pointwise operations would keep them apart,
and each tensor between them in memory. Bits take a sixteenth of a half-precision tensor, and what selects by them is
pointwise itself: the compiler fuses it with its neighbours, forward and backward.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dropkit.kernels import gpu, portable
from dropkit.kernels.native import operations as native
from dropkit.kernels.operators import PLACE, drawn_on, keep_mask, of_place, slices_first
from dropkit.random.layout import Layout

__all__ = ["WORD", "fused_mask", "has_few_words", "keep_bits", "portable_bits", "unpack", "words"]

WORD = 32  # bits

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_LIBRARY.define(
    f"keep_bits(Tensor key, Tensor stream, Tensor threshold, {PLACE}, Device device) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

keep_bits = torch.ops.dropkit.keep_bits.default


def words(columns: int, first_column: int) -> int:
    """Return how many words a row takes: they begin where the eight columns of a draw do."""
    return ((first_column & 7) + columns + WORD - 1) // WORD


def has_few_words(shape: Sequence[int], first_column: int, most_bits: int) -> bool:
    """Tell whether the words of a mask have no more bits than so many; every row begins with a word of its own.

    Args:
        shape: Shape of the place of the mask.
        first_column: Of that place.
        most_bits: How many.
    """
    return bool(shape) and math.prod(shape[:-1]) * WORD * words(shape[-1], first_column) <= most_bits


def unpack(bits: Tensor, shape: Sequence[int], first_column: int, is_apart: bool = False) -> Tensor:
    """Return the mask that an operator has packed, True = kept, by operations that the compiler fuses.

    Args:
        bits: What `keep_bits` has returned.
        shape: Shape of the place that it was given.
        first_column: Of that place.
        is_apart: Whether nothing is computed for it and other masks together, as in compiled code. What masks far apart
            in a graph have in common is not computed again in the backward pass, which would then keep them in bytes.
    """
    lanes = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    if is_apart and bits.numel():
        lanes = lanes + (bits.reshape(-1).narrow(0, 0, 1) & 0)
    lane_by_lane = (bits.unsqueeze(-1) >> lanes & 1).flatten(-2)
    mask = lane_by_lane.narrow(-1, first_column & 7, shape[-1] if shape else 1) != 0
    return mask if shape else mask.squeeze(-1)


def fused_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return a mask, True = kept, that the compiler computes where it is used, from bits: all that it keeps of it."""
    packed = keep_bits(key, stream, threshold, *place, device)
    return unpack(packed, place.shape, place.first_column, is_apart=True)


def _pack(mask: Tensor, place: Layout) -> Tensor:
    """Return the bits of a mask, those of thirty-two columns in a word, the first in the lowest bit."""
    mask = mask if place.shape else mask.unsqueeze(-1)
    columns, skipped = mask.size(-1), place.first_column & 7
    count = words(columns, place.first_column)
    lanes = pad(mask, (skipped, count * WORD - columns - skipped)).unflatten(-1, (count, WORD))
    return (lanes.long() << torch.arange(WORD, device=mask.device)).sum(-1).to(torch.int32)


def portable_bits(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return the bits by PyTorch's operations."""
    return _pack(portable.keep_mask(key, stream, threshold, place, device), place)


def _native_bits(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    return _pack(native.keep_mask(key, stream, threshold, place, device), place)


def _fake(*arguments: Any) -> Tensor:
    shape, first_column = arguments[3], arguments[6]
    mask = keep_mask(*arguments)
    before = mask.shape[:-1] if shape else mask.shape
    return mask.new_empty((*before, words(shape[-1] if shape else 1, first_column)), dtype=torch.int32)


def _batch(info: Any, in_dims: tuple[Any, ...], *address: Any) -> tuple[Tensor, int]:
    return keep_bits(*slices_first(in_dims[:3], address[:3]), *address[3:]), 0


_cuda_bits = gpu.served("triton_keep_bits", "keep_bits", portable_bits)
_drawn = drawn_on(portable_bits, cpu=_native_bits, cuda=_cuda_bits)
_LIBRARY.impl("keep_bits", of_place(_drawn, 3), "CompositeExplicitAutograd")
torch.library.register_fake("dropkit::keep_bits", _fake, lib=_LIBRARY)
torch.library.register_vmap("dropkit::keep_bits", _batch, lib=_LIBRARY)
