"""Keys of numbered examples: noise that belongs to an example by its number, wherever it stands in whatever batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from dropkit._checks import argument_error
from dropkit.random import field

__all__ = ["NumberedKey", "Runs", "check_examples", "runs_of"]

Runs = tuple[tuple[int, int], ...]
"""First number and length of each run of consecutive numbers, in the order of a batch; empty if they are 0, 1, ..."""


class NumberedKey(int):
    """A key whose call draws for an example, along axis 0, what it would draw for the slice of the example's number.

    That is a shift of rows, for in the mask definition axis 0 counts slowest. Functions take such a key for any other.
    It takes the long ways, which alone know of it, for the short ones ask for a key that is an int and no subclass.

    Args:
        key: The key.
        runs: The numbers of the examples.
    """

    runs: Runs

    def __new__(cls, key: int, runs: Runs) -> "NumberedKey":
        """Make a number of it."""
        numbered = super().__new__(cls, key)
        numbered.runs = runs
        return numbered

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Keep the numbers in copies and pickles."""
        return NumberedKey, (int(self), self.runs)

    def field(self, number: int) -> "NumberedKey":
        """Return the key of a field of the same call's noise."""
        return NumberedKey(field(int(self), number), self.runs)


def runs_of(key: object) -> Runs:
    """Return the numbers of the examples that a key draws for; none if they are in order from 0."""
    return key.runs if type(key) is NumberedKey else ()


def check_examples(where: str, runs: Runs, shape: Sequence[int]) -> None:
    """Raise unless a tensor has as many examples along axis 0 as there are numbers, and each a place in a mask."""
    count = sum(length for _, length in runs)
    if shape[0] != count:
        raise argument_error(where, "input", f"of {count} examples along axis 0, as many as have numbers", tuple(shape))
    most = 2**64 // max(math.prod(shape[1:-1]), 1) if len(shape) > 1 else 2**34  # of 2**64 rows, or of columns
    last = max(first + length for first, length in runs)
    if last > most:
        raise argument_error(where, "ids", f"below {most}, for masks of this size", last - 1, "Number examples from 0.")
