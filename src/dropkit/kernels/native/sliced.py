"""Dropout of contiguous tensors whose masks are parts of several: of other passes, or of examples in any order."""

import ctypes
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropkit.kernels.native.operations import TYPES, serving
from dropkit.kernels.native.packing import MAP, PACKED, int64
from dropkit.kernels.native.strided import MemoryAxes, bit_steps, memory_axes
from dropkit.random.layout import Layout, check_addressable

__all__ = ["Part", "Slices", "affine_sliced", "dropout_sliced", "sliced"]


class Part(NamedTuple):
    """A part of a mask that one call of the library draws.

    Args:
        place: Its places, in one slice.
        stream: Number of the first slice's stream among those of the mask.
        slices: Number of slices, each of the next stream.
    """

    place: Layout
    stream: int
    slices: int = 1


class Slices(NamedTuple):
    """A mask of several parts.

    Args:
        parts: Offset, number of slices, rows in each, columns, first row, first column and number of the stream.
        streams: The streams.
        size: Number of places.
        axes: How they lie over the tensor; None if every element has its own.
    """

    parts: tuple[tuple[int, int, int, int, int, int, int], ...]
    streams: Tensor
    size: int
    axes: MemoryAxes | None


def sliced(shape: tuple[int, ...], mask_shape: tuple[int, ...], parts: list[Part], streams: Tensor) -> Slices | None:
    """Return how the library draws a mask and spreads it over a contiguous tensor, or None if it cannot.

    Args:
        shape: The tensor's, of no length 0, with as many axes as the mask.
        mask_shape: The mask's, of length 1 where elements share a place.
        parts: Its parts, one after another.
        streams: Int64 tensor of the streams, on a CPU.
    """
    check_addressable("dropout", "input", mask_shape)
    axes = None
    if mask_shape != shape:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        axes = memory_axes(shape, strides, bit_steps(mask_shape))
        if axes is None:
            return None
    found, offset = [], 0
    for (lengths, _, first_row, first_column), stream, slices in parts:
        rows, columns = math.prod(lengths[:-1]), lengths[-1] if lengths else 1
        found.append((offset, slices, rows, columns, first_row, first_column, stream))
        offset += slices * rows * columns
    return Slices(tuple(found), streams, offset, axes)


def _calls(slices: Slices, key: int, threshold: int, numbers: Any = None) -> Iterator[tuple[int, Any]]:
    """Yield the offset of every part and what the library reads of it; it points into what lasts until the next."""
    address, streams = (ctypes.c_int64 * 2)(int64(key), threshold), slices.streams.data_ptr()
    place = ctypes.addressof(address)
    of_map = () if numbers is None else [ctypes.addressof(numbers) + 8 * number for number in range(3)]
    for offset, count, rows, columns, first_row, first_column, stream in slices.parts:
        of_parts = place, streams + 8 * stream, place + 8, False, count > 1, False
        yield offset, PACKED(True, count, rows, columns, first_row, 0, first_column, *of_parts, *of_map)


def _bits(slices: Slices, key: int, threshold: int) -> Tensor:
    """Draw the mask, a bit a place."""
    words, native = torch.zeros(slices.size + 63 >> 6, dtype=torch.int64), serving()
    for offset, packed in _calls(slices, key, threshold):
        native.keep_bits(words.data_ptr(), offset, packed)
    return words


def dropout_sliced(input: Tensor, slices: Slices, key: int, threshold: int) -> Tensor:
    """Apply dropout, with scaling, to a tensor that the kernels take.

    Args:
        input: The tensor.
        slices: What `sliced` has found for its shape.
        key: The key, whose low 64 bits count.
        threshold: Of the rate.
    """
    output, native, kind = torch.empty_like(input), serving(), TYPES[input.dtype]
    source, target, size, axes = input.data_ptr(), output.data_ptr(), input.element_size(), slices.axes
    if axes is None:
        for offset, packed in _calls(slices, key, threshold):
            native.dropout(kind, source + offset * size, target + offset * size, packed)
    else:
        words = _bits(slices, key, threshold)
        native.apply_bits_strided(kind, source, target, words.data_ptr(), 0, threshold, True, len(axes), *axes)
    return output


def affine_sliced(
    input: Tensor, slices: Slices, key: int, threshold: int, numbers: tuple[float, float, float]
) -> Tensor:
    """Do the same with what is kept scaled and shifted, and what is dropped a constant: the numbers."""
    output, native, kind, of_map = torch.empty_like(input), serving(), TYPES[input.dtype], MAP(*numbers)
    source, target, size, axes = input.data_ptr(), output.data_ptr(), input.element_size(), slices.axes
    if axes is None:
        for offset, packed in _calls(slices, key, threshold, of_map):
            native.affine(kind, source + offset * size, target + offset * size, packed)
    else:
        words = _bits(slices, key, threshold)
        native.affine_by_bits(kind, source, target, words.data_ptr(), 0, of_map, len(axes), *axes)
    return output
