"""Keys: how a seed, a place in the model, a training step and a call become one 64-bit number."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dropkit._checks import KEY, Integer, argument_error, argument_type_error
from dropkit.random.philox import WORD, rounds, split

__all__ = ["FOLD", "call_key", "call_keys", "field", "fold", "site"]

FOLD = 0x64726F70  # "drop": the counter word that keeps keys apart from masks, whose streams stay below 2**30
_WORD_RANGE = Integer(0, WORD, "[0, 2**32)")
_FIELD = Integer(0, WORD - 1, "[0, 2**32 - 1)", "Field 2**32 - 1 is taken by the second uniform of a normal.")


def fold(a: int, b: int, c: int) -> int:
    """Mix three integers into one 64-bit key.

    Args:
        a: A key or a seed in ``[0, 2**64)``.
        b: An integer in ``[0, 2**32)``.
        c: An integer in ``[0, 2**64)``.

    Returns:
        The first two words of Philox under the key ``a`` at the counter ``(b, c, "drop")``, low word first.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If an argument is no integer.

    Examples:
        >>> fold(0, 0, 0)
        13163070918920646930
    """
    a, b, c = KEY.check("fold", "a", a), _WORD_RANGE.check("fold", "b", b), KEY.check("fold", "c", c)
    words = rounds((b, *split(c), FOLD), split(a))
    return int(words[0] | words[1] << 32)


def site(name: str) -> int:
    """Return the 32-bit number of a place in a model, from its name.

    Args:
        name: The place's name, such as ``"encoder.layers.0.dropout"``.

    Returns:
        The first four bytes, little-endian, of the SHA-256 of the name in UTF-8.

    Raises:
        ArgumentTypeError: If the name is no string.

    Examples:
        >>> site("dropout")
        688540699
    """
    return _site("site", name)


def _site(where: str, name: object) -> int:
    if not isinstance(name, str):
        raise argument_type_error(where, "name", "a string", name)
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise argument_error(where, "name", "a string that UTF-8 can encode", name) from None
    return int.from_bytes(hashlib.sha256(encoded).digest()[:4], "little")


def call_key(seed: int, name: str, step: int, call: int = 0) -> int:
    """Return the key of one call of one place in a model at one training step.

    Args:
        seed: The run's seed in ``[0, 2**64)``; 0 is a seed like any other.
        name: The name of the place that draws.
        step: The training step in ``[0, 2**64)``.
        call: How often the place has run before in this step, in ``[0, 2**32)``.

    Returns:
        ``fold(fold(seed, site(name), step), call, 0)``.

    Raises:
        ArgumentError: If a number is out of range.
        ArgumentTypeError: If a number is no integer or the name no string.

    Examples:
        >>> call_key(0, "dropout", step=0)
        11649418916071567472
    """
    seed, step = KEY.check("call_key", "seed", seed), KEY.check("call_key", "step", step)
    call = _WORD_RANGE.check("call_key", "call", call)
    return fold(fold(seed, _site("call_key", name), step), call, 0)


def call_keys(seeds: Sequence[int], name: str, steps: range) -> npt.NDArray[np.uint64]:
    """Return `call_key` of the first call of a place for many seeds and steps at once, of shape (steps, seeds).

    Args:
        seeds: Seeds, each in ``[0, 2**64)``.
        name: The name of the place that draws.
        steps: The training steps, within ``[0, 2**64)``.
    """
    counts = np.array(steps, np.uint64)[:, None]
    first = rounds((_site("call_keys", name), *split(counts), FOLD), split(np.array(seeds, np.uint64)))
    words = rounds((0, 0, 0, FOLD), first[:2])
    return np.asarray(words[0] | words[1] << 32)


def field(key: int, d: int) -> int:
    """Return the key of the d-th field of noise that one call draws.

    Args:
        key: The call's key in ``[0, 2**64)``.
        d: The number of the field in ``[0, 2**32 - 1)``; field 0 is drawn under the key itself.

    Returns:
        ``key`` for field 0, else ``fold(key, d, 0)``.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If an argument is no integer.

    Examples:
        >>> field(11649418916071567472, 1)
        2877909023052986668
    """
    key, d = KEY.check("field", "key", key), _FIELD.check("field", "d", d)
    return fold(key, d, 0) if d else key
