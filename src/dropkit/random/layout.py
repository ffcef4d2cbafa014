"""Layouts: which places of the whole, unsharded mask a tensor's elements have."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dropkit._checks import argument_error, check_axes, check_shape

__all__ = ["Layout", "layout"]


class Layout(NamedTuple):
    """The part of a mask that one tensor needs.

    `shape` is the mask's shape, with length 1 on the axes that share a draw; `full_shape` that of the whole mask;
    `offset` where the part begins in it. All three have one entry an axis.
    """

    shape: tuple[Any, ...]
    full_shape: tuple[Any, ...]
    offset: tuple[Any, ...]

    @property
    def row_strides(self) -> tuple[Any, ...]:
        """How many rows apart neighbours on each axis but the last are."""
        strides: list[Any] = []
        for length in reversed(self.full_shape[1:-1]):
            strides.append(length * (strides[-1] if strides else 1))
        return (*reversed(strides), 1) if len(self.shape) > 1 else ()


def layout(
    where: str,
    shape: Sequence[Any],
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
        slices: How many leading axes are slices with keys of their own, which take no part in the address.

    Raises:
        ArgumentError: If the tensor does not lie inside the whole one, or an index has no address.
    """
    rank = len(shape)
    axes = check_axes(where, "broadcast_dims", broadcast_dims, rank) if broadcast_dims != () else ()
    if any(axis < slices for axis in axes):
        remedy = "Slices with keys of their own cannot share a draw: give one key, or share other axes."
        raise argument_error(
            where, "broadcast_dims", "axes other than the one that keys or streams index", axes, remedy
        )
    whole, start = tuple(shape), (0,) * rank
    if full_shape is not None:
        whole = check_shape(where, "full_shape", full_shape, rank)
    if offset is not None:
        start = check_shape(where, "offset", offset, rank)
        if full_shape is None:
            raise argument_error(where, "offset", "given together with full_shape", offset)
    kept = range(slices, rank)
    if full_shape is not None and any(start[axis] + shape[axis] > whole[axis] for axis in kept):
        remedy = f"The tensor of shape {tuple(shape)} at offset {start} does not fit into it."
        raise argument_error(where, "full_shape", "at least offset + shape on every axis", whole, remedy)
    result = Layout(
        tuple(1 if axis in axes else shape[axis] for axis in kept),
        tuple(1 if axis in axes else whole[axis] for axis in kept),
        tuple(0 if axis in axes else start[axis] for axis in kept),
    )
    if full_shape is not None:
        check_addressable(where, result.full_shape)
    return result


def check_addressable(where: str, full_shape: tuple[int, ...]) -> None:
    """Raise `ArgumentError` unless every row of the mask fits 64 bits and every column 34."""
    if full_shape and (full_shape[-1] > 2**34 or math.prod(full_shape[:-1]) > 2**64):
        raise argument_error(where, "full_shape", "at most 2**64 rows of 2**34 columns", full_shape)
