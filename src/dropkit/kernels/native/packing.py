"""Calls of the library, packed: the numbers that it reads of one slice, and masks, for PyTorch and NumPy alike."""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAP", "PACKED", "int64", "packed_map", "packed_place", "packed_words"]

PACKED = ctypes.c_int64 * 16
MAP = ctypes.c_double * 3  # what is kept is scaled and shifted by, and what is dropped becomes


def packed_place(slices: int, rows: int, columns: int, key: int, threshold: int) -> Any:
    """Return what the library reads of slices that share a key, at stream 0: numbers, and pointers to the last three.

    Args:
        slices: Number of slices.
        rows: Number of rows in each.
        columns: Number of columns.
        key: The key of all slices, with 64 bits.
        threshold: Of the rate.
    """
    packed = PACKED(1, slices, rows, columns)
    packed[13], packed[15] = int64(key), threshold
    packed[7:10] = [ctypes.addressof(packed) + 8 * place for place in (13, 14, 15)]
    return packed


def packed_map(
    elements: int, columns: int, key: int, threshold: int, numbers: tuple[float, float, float]
) -> tuple[Any, Any]:
    """Return what the library reads of a tensor whose elements are mapped, and what that points into.

    Args:
        elements: Number of elements.
        columns: Number of columns.
        key: The key, with 64 bits.
        threshold: Of the rate.
        numbers: What is kept is scaled and shifted by, and what is dropped becomes.
    """
    address, of_map = (ctypes.c_int64 * 3)(int64(key), 0, threshold), MAP(*numbers)
    packed = PACKED(0, 1, elements // columns, columns)
    packed[7:10] = [ctypes.addressof(address) + 8 * place for place in range(3)]
    packed[13:16] = [ctypes.addressof(of_map) + 8 * place for place in range(3)]
    return packed, (address, of_map)


def int64(value: int) -> int:
    """Return the int64 of the same low 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def packed_words(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Return a contiguous mask, a bit an element from the lowest on, in words of 64 of this machine's byte order."""
    words = np.zeros(mask.size + 63 >> 6, "<u8")
    words.view(np.uint8)[: mask.size + 7 >> 3] = np.packbits(mask, bitorder="little")
    return words.astype(np.uint64, copy=False)
