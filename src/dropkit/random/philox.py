"""Philox4x32-10, the counter-based generator that every mask comes from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import Integer, argument_error, argument_type_error

__all__ = ["WORD", "philox4x32", "rounds", "split"]

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD_RANGE = Integer(0, WORD, "[0, 2**32)")


def rounds(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Run the ten rounds on words that are all Python integers, NumPy uint64 or PyTorch int64.

    The same five lines serve every backend, so their masks agree by construction. Only the low 64 bits of each product
    matter, which is what all three types give: a signed product wraps to the same bits, and masking after the shift
    removes the sign that it drags in. Words of different shapes broadcast: rounds whose inputs depend on the row or on
    the column alone are then computed once a row or once a column.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (b >> 32 & WORD) ^ (c1 ^ k0), b & WORD
        c2, c3 = (a >> 32 & WORD) ^ (c3 ^ k1), a & WORD
        k0, k1 = k0 + _WEYL[0] & WORD, k1 + _WEYL[1] & WORD
    return c0, c1, c2, c3


def split(value: Any) -> tuple[Any, Any]:
    """Return the low and the high 32-bit word of 64-bit integers."""
    return value & WORD, value >> 32 & WORD


def _word(name: str, value: object) -> int | npt.NDArray[np.uint64]:
    if not isinstance(value, np.ndarray):
        return _WORD_RANGE.check("philox4x32", name, value)
    if value.dtype.kind not in "iu":
        raise argument_type_error("philox4x32", name, "an array of integers", value)
    if value.size and (value.min() < 0 or value.max() > WORD):
        raise argument_error("philox4x32", name, _WORD_RANGE.rule, value)
    return value.astype(np.uint64)


def philox4x32(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Return the four 32-bit words of Philox4x32 with ten rounds.

    Args:
        counter: Four words in ``[0, 2**32)``: integers, or arrays of integers that broadcast together.
        key: Two words of the same kind.

    Returns:
        Four words: integers, or uint64 arrays where a word of the counter or the key is an array.

    Raises:
        ArgumentError: If there are not four and two words, or a word is out of range.
        ArgumentTypeError: If a word is no integer.

    Examples:
        >>> [hex(word) for word in philox4x32((0, 0, 0, 0), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']

    References:
        Salmon, Moraes, Dror and Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    for name, words, length in (("counter", counter, 4), ("key", key, 2)):
        if not isinstance(words, Sequence | np.ndarray) or getattr(words, "ndim", 1) == 0 or len(words) != length:
            raise argument_error("philox4x32", name, f"{length} words", words)
    checked = [
        *(_word(f"counter[{i}]", word) for i, word in enumerate(counter)),
        *(_word(f"key[{i}]", word) for i, word in enumerate(key)),
    ]
    try:
        np.broadcast_shapes(*(np.shape(word) for word in checked))
    except ValueError:
        raise argument_error(
            "philox4x32", "counter", "words that broadcast together, with the key's", counter
        ) from None
    return rounds(checked[:4], checked[4:])
