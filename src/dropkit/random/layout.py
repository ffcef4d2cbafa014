"""Layouts: which places of the whole, unsharded mask a tensor's elements have."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dropkit._checks import argument_error, check_axes, check_shape

__all__ = ["Layout", "check_addressable", "layout"]


class Layout(NamedTuple):
    """The places of one tensor's mask: row = first_row + index * row_strides, column = first_column + last index.

    Args:
        shape: Shape of the mask, with length 1 on the axes that share a draw.
        row_strides: How many rows apart neighbours are, for every axis but the last.
        first_row: Row of the first element, in ``[0, 2**64)``.
        first_column: Column of the first element, in ``[0, 2**34)``.
    """

    shape: tuple[int, ...]
    row_strides: tuple[int, ...]
    first_row: int
    first_column: int


def layout(
    where: str,
    shape: Sequence[int],
    broadcast_dims: object = (),
    offset: object = None,
    full_shape: object = None,
    slices: int = 0,
) -> Layout:
    """Return the layout of a tensor's mask.

    Args:
        where: The function on whose behalf arguments are checked, for messages.
        shape: The tensor's shape; taken as it is.
        broadcast_dims: The axes that share one draw.
        offset: Where the tensor begins in the whole one, an entry an axis; at its beginning if None.
        full_shape: The shape of the whole tensor; that of the tensor if None.
        slices: How many leading axes are slices with keys of their own; they take no part in the address.

    Raises:
        ArgumentError: If the tensor does not lie inside the whole one, or an index has no address.
        ArgumentTypeError: If an axis or a length is no integer.
    """
    rank = len(shape)
    shared = check_axes(where, "broadcast_dims", broadcast_dims, rank)
    if any(axis < slices for axis in shared):
        rule = "axes other than 0 where key or stream has one value a slice of axis 0"
        raise argument_error(where, "broadcast_dims", rule, broadcast_dims, "Give one key, or share other axes.")
    whole, start = _whole(where, tuple(shape), offset, full_shape)
    kept = range(slices, rank)
    mask_shape = tuple(1 if axis in shared else shape[axis] for axis in kept)
    lengths = [1 if axis in shared else whole[axis] for axis in kept]
    starts = [0 if axis in shared else start[axis] for axis in kept]
    if full_shape is not None:
        check_addressable(where, "full_shape", lengths)
    strides: list[int] = []
    for length in reversed([*lengths[1:-1], 1] if len(lengths) > 1 else []):
        strides.insert(0, length * (strides[0] if strides else 1))
    first_row = sum(begin * stride for begin, stride in zip(starts[:-1], strides, strict=True))
    return Layout(mask_shape, tuple(strides), first_row, starts[-1] if starts else 0)


def check_addressable(where: str, name: str, lengths: Sequence[int]) -> None:
    """Raise `ArgumentError` unless every row of a mask has a number of 64 bits and every column one of 34."""
    if lengths and (lengths[-1] > 2**34 or math.prod(lengths[:-1]) > 2**64):
        raise argument_error(where, name, "at most 2**64 rows of 2**34 columns", tuple(lengths))


def _whole(
    where: str, shape: tuple[int, ...], offset: object, full_shape: object
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of the whole tensor and where this one begins in it."""
    rank = len(shape)
    if full_shape is None:
        if offset is not None:
            raise argument_error(where, "offset", "given together with full_shape", offset)
        return shape, (0,) * rank
    whole = check_shape(where, "full_shape", full_shape, rank)
    start = (0,) * rank if offset is None else check_shape(where, "offset", offset, rank)
    if any(start[axis] + shape[axis] > whole[axis] for axis in range(rank)):
        remedy = f"The tensor of shape {shape} at offset {start} does not fit into it."
        raise argument_error(where, "full_shape", "at least offset + shape on every axis", whole, remedy)
    return whole, start
