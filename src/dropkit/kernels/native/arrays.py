"""The compiled kernels on NumPy arrays; what they do not take is left to NumPy."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit import random
from dropkit.kernels.native.library import Library, library
from dropkit.kernels.native.packing import packed_place, packed_words
from dropkit.random.layout import check_addressable

__all__ = ["apply_mask", "keep_mask"]

_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 2}  # in this machine's byte order
_PARTS = {np.dtype(np.complex64): np.dtype(np.float32), np.dtype(np.complex128): np.dtype(np.float64)}


def keep_mask(key: int, shape: tuple[int, ...], threshold: int) -> npt.NDArray[np.bool_]:
    """Draw the mask of kept units that `dropkit.random.keep_mask` draws.

    Args:
        key: The call's key, in ``[0, 2**64)``.
        shape: Shape of the array.
        threshold: Of the rate, in ``[0, 2**32]``.
    """
    native = _library()
    if native is None:
        return random.keep_mask(key, shape, threshold / 2**32)
    check_addressable("keep_mask", "shape", shape)
    mask = np.empty(shape, np.bool_)
    columns = shape[-1] if shape else 1
    packed = packed_place(1, math.prod(shape[:-1]), columns, key, threshold)
    native.keep_bytes(mask.ctypes.data, packed)
    return mask


def apply_mask(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_], threshold: int) -> npt.NDArray[Any] | None:
    """Scale what a mask keeps, by the survivors' scale, and set the rest to +0, as PyTorch's tensors have it.

    Args:
        values: Array of any type and strides.
        mask: Array of the same shape, True = kept.
        threshold: Of the rate, in ``[0, 2**32)``.

    Returns:
        A new array with the memory layout that ``numpy.empty_like`` gives it, or None where the kernels do not take
        the array: they take aligned arrays of float16, float32, float64, complex64 and complex128 in the machine's
        byte order, whose elements or whose transpose's lie side by side.
    """
    native = _library()
    flags, part = values.flags, _PARTS.get(values.dtype, values.dtype)
    is_row_major = flags.c_contiguous
    if native is None or part not in _TYPES or not flags.aligned or not (is_row_major or flags.f_contiguous):
        return None
    out = np.empty_like(values, subok=False)
    kept = np.ascontiguousarray(mask if is_row_major else mask.T)
    if values.dtype != part:  # both parts of a complex number share its bit
        kept = (kept.view(np.uint8) * np.uint16(0x0101)).view(np.bool_)
    words = packed_words(kept)
    places = values.ctypes.data, out.ctypes.data, words.ctypes.data
    native.apply_bits(_TYPES[part], *places, kept.size, threshold, 1)
    return out


def _library() -> Library | None:
    found = library()
    if found is not None:
        found.share_threads()
    return found
