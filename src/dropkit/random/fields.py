"""Fields: the random integers, keep-masks, uniforms and normals at the places of a tensor, in NumPy."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dropkit._checks import KEY, PROBABILITY, STREAM, argument_error, check_shape
from dropkit.random.keys import fold
from dropkit.random.layout import Layout, check_addressable, layout
from dropkit.random.philox import WORD, rounds, split

__all__ = ["SECOND_UNIFORM", "keep_mask", "normal", "threshold", "uniform", "uniform32"]

SECOND_UNIFORM = WORD  # the field whose key gives a normal its second uniform
_TILE = 8192  # Philox calls at a time: what they need stays in the second-level cache
_FLOATS = (np.float16, np.float32, np.float64)


def threshold(p: float) -> int:
    """Return the integer T below which a unit is dropped: p in units of 2**-32, rounded.

    Args:
        p: Probability of dropping, in ``[0, 1]``.

    Returns:
        ``floor(p * 2**32 + 0.5)``, in ``[0, 2**32]``. The realised rate is ``T / 2**32``.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``.

    Examples:
        >>> threshold(0.5), threshold(0.1)
        (2147483648, 429496730)
    """
    return math.floor(PROBABILITY.check("threshold", "p", p) * 2.0**32 + 0.5)


class _Address(NamedTuple):
    """Where a field is drawn: key and stream, the rows and columns of its places, the shape of the result."""

    key: int
    stream: int
    rows: npt.NDArray[np.uint64]
    columns: range
    shape: tuple[int, ...]


def _address(where: str, key: object, shape: object, **places: Any) -> _Address:
    key, stream = KEY.check(where, "key", key), STREAM.check(where, "stream", places.pop("stream"))
    lengths = check_shape(where, "shape", shape)
    found = layout(where, lengths, **places)
    if places["full_shape"] is None:
        check_addressable(where, "shape", found.shape)
    columns = range(found.first_column, found.first_column + (found.shape[-1] if found.shape else 1))
    return _Address(key, stream, _rows(found), columns, found.shape)


def _rows(found: Layout) -> npt.NDArray[np.uint64]:
    """Return the row number of every place but for its column, in row-major order."""
    rows = np.full(1, found.first_row, np.uint64)
    for length, stride in zip(found.shape[:-1], found.row_strides, strict=True):
        along = np.arange(length, dtype=np.uint64) * np.uint64(stride % 2**64)  # 2**64: an axis of length 1
        rows = (rows[:, None] + along).reshape(-1)
    return rows


def _halves(at: _Address, plane: int) -> npt.NDArray[np.uint16]:
    """Return the 16-bit halves at all places, of shape (rows, columns): eight columns share one Philox call."""
    first, last = at.columns.start >> 3, (at.columns.stop + 7) >> 3
    halves = np.empty((len(at.rows), last - first, 8), np.uint16)
    wide = min(max(last - first, 1), _TILE)
    tall = max(_TILE // wide, 1)
    for block in range(first, last, wide):
        blocks = np.arange(block, min(block + wide, last), dtype=np.uint64) | np.uint64(plane << 31)
        for row in range(0, len(at.rows), tall):
            low, high = split(at.rows[row : row + tall, None])
            words = rounds((blocks, low, high, at.stream), split(at.key))
            tile = halves[row : row + tall, block - first : block - first + wide]
            for lane in range(8):
                tile[:, :, lane] = words[lane >> 1] >> 16 * (lane & 1) & 0xFFFF
    skipped = at.columns.start - 8 * first
    return halves.reshape(len(at.rows), 8 * (last - first))[:, skipped : skipped + len(at.columns)]


def _low_halves_at(at: _Address, row: npt.NDArray[np.intp], column: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """Return the low halves at a few places, given as positions among the address's rows and columns."""
    low, high = split(at.rows[row])
    columns = np.uint64(at.columns.start) + column.astype(np.uint64)
    words = np.stack(rounds((columns >> 3 | 1 << 31, low, high, at.stream), split(at.key)))
    lane = columns & 7
    return words[(lane >> 1).astype(np.intp), np.arange(len(lane))] >> 16 * (lane & 1) & 0xFFFF


def _integers(at: _Address) -> npt.NDArray[np.uint32]:
    u = _halves(at, 0).astype(np.uint32) << np.uint32(16) | _halves(at, 1)
    return u.reshape(at.shape)


def uniform32(
    key: int,
    shape: Any,
    *,
    broadcast_dims: Any = (),
    offset: Any = None,
    full_shape: Any = None,
    stream: int = 0,
) -> npt.NDArray[np.uint32]:
    """Draw the uniform 32-bit integers that decide which units are kept.

    Args:
        key: The call's key, in ``[0, 2**64)``.
        shape: Shape of the tensor: a sequence of lengths, empty for a scalar.
        broadcast_dims: Axes of the tensor that share one draw; negatives count from the end. Default: none.
        offset: Where the tensor begins in the whole tensor that it is a shard of, an entry an axis. Default: 0.
        full_shape: Shape of that whole tensor; needed with ``offset``. Default: ``shape``.
        stream: Number of the pass in ``[0, 2**30)``: 0 in training, 1 and up for Monte Carlo passes.

    Returns:
        An array of uint32 of the tensor's shape, with length 1 on the axes of ``broadcast_dims``.

    Raises:
        ArgumentError: If a value is out of range, the shard does not fit or an index has no address.
        ArgumentTypeError: If the key, the stream or a length is no integer.

    Examples:
        >>> uniform32(17726000833912956920, (2, 3))
        array([[1499752323, 1225812173,  925309209],
               [ 375113868, 1496280906, 2492763309]], dtype=uint32)
    """
    places = {"broadcast_dims": broadcast_dims, "offset": offset, "full_shape": full_shape, "stream": stream}
    return _integers(_address("uniform32", key, shape, **places))


def keep_mask(
    key: int,
    shape: Any,
    p: float,
    *,
    broadcast_dims: Any = (),
    offset: Any = None,
    full_shape: Any = None,
    stream: int = 0,
) -> npt.NDArray[np.bool_]:
    """Draw the mask of kept units: ``uniform32(...) >= threshold(p)``, at half its price.

    Args:
        key: The call's key, in ``[0, 2**64)``.
        shape: Shape of the tensor: a sequence of lengths, empty for a scalar.
        p: Probability of dropping, in ``[0, 1]``.
        broadcast_dims: Axes of the tensor that share one draw; negatives count from the end. Default: none.
        offset: Where the tensor begins in the whole tensor that it is a shard of, an entry an axis. Default: 0.
        full_shape: Shape of that whole tensor; needed with ``offset``. Default: ``shape``.
        stream: Number of the pass in ``[0, 2**30)``: 0 in training, 1 and up for Monte Carlo passes.

    Returns:
        An array of bool, True where the unit is kept, of the tensor's shape with length 1 on ``broadcast_dims``.

    Raises:
        ArgumentError: If a value is out of range, the shard does not fit or an index has no address.
        ArgumentTypeError: If the key, the stream or a length is no integer.

    Examples:
        >>> keep_mask(7, (2, 4), 0.5).astype(int)
        array([[0, 1, 1, 1],
               [1, 0, 1, 0]])

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", section 4, whose p is the probability of keeping.
    """
    places = {"broadcast_dims": broadcast_dims, "offset": offset, "full_shape": full_shape, "stream": stream}
    at = _address("keep_mask", key, shape, **places)
    p = PROBABILITY.check("keep_mask", "p", p)
    high, low = threshold(p) >> 16, threshold(p) & 0xFFFF
    halves = _halves(at, 0).astype(np.uint32)  # T of p = 1 needs 33 bits
    keep = halves >= high
    if low:  # only a half that equals the threshold's, one in 65,536, needs its low half
        tied = np.nonzero(halves == high)
        keep[tied] = _low_halves_at(at, *tied) >= low
    return keep.reshape(at.shape)


def _dtype(where: str, dtype: Any) -> np.dtype[Any]:
    try:
        checked = np.dtype(dtype)
    except TypeError:
        checked = np.dtype(object)
    if checked not in _FLOATS:
        raise argument_error(where, "dtype", "float16, float32 or float64", dtype)
    return checked


def _uniform(at: _Address, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return uniforms at the precision of the type, in float64: the numbers are exact there."""
    if dtype == np.float64:
        return (_integers(at) + 0.5) * 2.0**-32
    return ((_integers(at) >> np.uint32(9)) + 0.5) * 2.0**-23


def _rounded(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Round float64 values to a type; to a half type by way of float32, as devices compute it."""
    return np.asarray(values, np.float64 if dtype == np.float64 else np.float32).astype(dtype)


def uniform(
    key: int,
    shape: Any,
    *,
    dtype: Any = np.float64,
    broadcast_dims: Any = (),
    offset: Any = None,
    full_shape: Any = None,
    stream: int = 0,
) -> npt.NDArray[Any]:
    """Draw uniform numbers strictly between 0 and 1; rounding to float16 may give 0 or 1.

    Args:
        key: The call's key, in ``[0, 2**64)``.
        shape: Shape of the tensor: a sequence of lengths, empty for a scalar.
        dtype: float64 (32 bits of resolution, the default), float32 (23 bits) or float16 (float32, rounded).
        broadcast_dims: Axes of the tensor that share one draw; negatives count from the end. Default: none.
        offset: Where the tensor begins in the whole tensor that it is a shard of, an entry an axis. Default: 0.
        full_shape: Shape of that whole tensor; needed with ``offset``. Default: ``shape``.
        stream: Number of the pass in ``[0, 2**30)``: 0 in training, 1 and up for Monte Carlo passes.

    Returns:
        An array of the type and of the tensor's shape, with length 1 on the axes of ``broadcast_dims``.

    Raises:
        ArgumentError: If a value is out of range, the shard does not fit or an index has no address.
        ArgumentTypeError: If the key, the stream or a length is no integer.

    Examples:
        >>> uniform(7, (3,)).round(4)
        array([0.4773, 0.9546, 0.976 ])
    """
    places = {"broadcast_dims": broadcast_dims, "offset": offset, "full_shape": full_shape, "stream": stream}
    checked = _dtype("uniform", dtype)
    return _rounded(_uniform(_address("uniform", key, shape, **places), checked), checked)


def normal(
    key: int,
    shape: Any,
    *,
    dtype: Any = np.float64,
    broadcast_dims: Any = (),
    offset: Any = None,
    full_shape: Any = None,
    stream: int = 0,
) -> npt.NDArray[Any]:
    """Draw standard normal numbers, by the cosine branch of the Box-Muller transform.

    Args:
        key: The call's key, in ``[0, 2**64)``.
        shape: Shape of the tensor: a sequence of lengths, empty for a scalar.
        dtype: float64 (the default), float32 (from float32 uniforms) or float16 (float32, rounded).
        broadcast_dims: Axes of the tensor that share one draw; negatives count from the end. Default: none.
        offset: Where the tensor begins in the whole tensor that it is a shard of, an entry an axis. Default: 0.
        full_shape: Shape of that whole tensor; needed with ``offset``. Default: ``shape``.
        stream: Number of the pass in ``[0, 2**30)``: 0 in training, 1 and up for Monte Carlo passes.

    Returns:
        An array of the type and of the tensor's shape, with length 1 on the axes of ``broadcast_dims``. Other devices
        agree to 1e-12 in float64 and 4e-6 in float32.

    Raises:
        ArgumentError: If a value is out of range, the shard does not fit or an index has no address.
        ArgumentTypeError: If the key, the stream or a length is no integer.

    Examples:
        >>> normal(7, (3,)).round(4)
        array([ 1.2117, -0.1911, -0.0154])

    References:
        Box and Muller (1958), "A note on the generation of random normal deviates".
    """
    places = {"broadcast_dims": broadcast_dims, "offset": offset, "full_shape": full_shape, "stream": stream}
    checked = _dtype("normal", dtype)
    first = _address("normal", key, shape, **places)
    second = first._replace(key=fold(first.key, SECOND_UNIFORM, 0))
    radius = np.sqrt(-2.0 * np.log(_uniform(first, checked)))
    return _rounded(radius * np.cos(2.0 * np.pi * _uniform(second, checked)), checked)
