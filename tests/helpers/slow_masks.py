"""The mask definition once more, an element at a time in Python integers: what every fast form is compared with."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dropkit.random import philox4x32

LOW = 2**32 - 1


def words(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Philox4x32 with ten rounds, as published: two multiplications, swaps and a key schedule."""
    x0, x1, x2, x3 = counter
    for number in range(10):
        key0, key1 = ((word + number * step) % 2**32 for word, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True))
        high0, low0 = divmod(0xD2511F53 * x0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
    return x0, x1, x2, x3


def fold(a: int, b: int, c: int) -> int:
    low, high, *_ = words((b, c & LOW, c >> 32, 0x64726F70), (a & LOW, a >> 32))
    return high << 32 | low


def draw(key: int, row: int, column: int, stream: int = 0) -> int:
    """The 32-bit integer at one place: 16 bits from each of two calls that eight columns share."""
    u = 0
    for plane in (0, 1):
        block = words((column // 8 + plane * 2**31, row & LOW, row >> 32, stream), (key & LOW, key >> 32))
        bits = sum(word << 32 * position for position, word in enumerate(block))
        u = u << 16 | bits >> 16 * (column % 8) & 0xFFFF
    return u


def places(
    shape: Sequence[int],
    broadcast_dims: Sequence[int] = (),
    offset: Sequence[int] | None = None,
    full_shape: Sequence[int] | None = None,
) -> Iterator[tuple[int, int]]:
    """Row and column of every element of the mask, in row-major order."""
    rank = len(shape)
    shared = {axis % rank for axis in broadcast_dims}
    whole = [1 if axis in shared else (full_shape or shape)[axis] for axis in range(rank)]
    start = [0 if axis in shared else (offset or [0] * rank)[axis] for axis in range(rank)]
    local = [1 if axis in shared else shape[axis] for axis in range(rank)]
    for index in itertools.product(*map(range, local)):
        at = [begin + i for begin, i in zip(start, index, strict=True)]
        yield sum(i * math.prod(whole[axis + 1 : -1]) for axis, i in enumerate(at[:-1])), at[-1] if at else 0


def integers(key: int, shape: Sequence[int], stream: int = 0, **where: Sequence[int] | None) -> np.ndarray:
    """What `uniform32` must return."""
    shared = {axis % len(shape) for axis in where.get("broadcast_dims") or ()}
    drawn = [draw(key, row, column, stream) for row, column in places(shape, **where)]
    return np.array(drawn, np.uint32).reshape([1 if axis in shared else n for axis, n in enumerate(shape)])


def kept(u: np.ndarray, p: float) -> np.ndarray:
    """Which units survive: those whose integer is not below p in units of 2**-32."""
    return u.astype(np.uint64) >= np.uint64(math.floor(p * 2.0**32 + 0.5))


def column_with_high_half(key: int, half: int, stop: int) -> int:
    """The first column of row 0 whose high half is `half`, so that the low half decides a tie there."""
    first, *_ = philox4x32((np.arange(stop // 8, dtype=np.uint64), 0, 0, 0), (key & LOW, key >> 32))
    return int(np.flatnonzero((first & 0xFFFF) == half)[0]) * 8
