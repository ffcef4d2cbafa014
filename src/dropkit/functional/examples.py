"""Keys of numbered examples: noise that belongs to an example by its number, wherever it stands in whatever batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from dropkit._checks import argument_error
from dropkit.random import field

__all__ = ["NumberedKey", "Runs", "check_examples", "count", "numbers_of", "runs_of"]

Runs = tuple[tuple[int, int], ...]
"""First number and length of each run of consecutive numbers, in the order of a batch; empty if they are 0, 1, ..."""


class NumberedKey(int):
    """A key whose call draws for an example, along axis 0, what it would draw for the slice of the example's number.

    That is a shift of rows, for in the mask definition axis 0 counts slowest. Functions take such a key for any other.
    It takes the long ways, which alone know of it, for the short ones ask for a key that is an int and no subclass.

    Axis 0 may have the examples of several passes: those of the first stream in their order, then those of the next. An
    example has in every pass what a call with that stream draws for it.

    Args:
        key: The key.
        runs: The numbers of the examples; none if the call draws for its whole tensor, whatever that has along axis 0.
        streams: Numbers of the passes, one where there are no numbers of examples. 0, where it is alone, leaves a call
            the stream that it says itself.
    """

    runs: Runs
    streams: tuple[int, ...]

    def __new__(cls, key: int, runs: Runs, streams: tuple[int, ...] = (0,)) -> "NumberedKey":
        """Make a number of it."""
        if not streams or (len(streams) > 1 and not runs):
            rule = "one number of a pass, or several where examples have numbers"
            raise argument_error("NumberedKey", "streams", rule, streams)
        numbered = super().__new__(cls, key)
        numbered.runs, numbered.streams = runs, streams
        return numbered

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Keep the numbers in copies and pickles."""
        return NumberedKey, (int(self), self.runs, self.streams)

    def field(self, number: int) -> "NumberedKey":
        """Return the key of a field of the same call's noise."""
        return NumberedKey(field(int(self), number), self.runs, self.streams)

    def place(self, example: int) -> tuple[int, int, int]:
        """Return the number of an example by its place along axis 0, how many follow from it on, and its stream."""
        if not self.runs:
            return example, 2**63, self.streams[0]
        number, left = divmod(example, count(self.runs))
        for first, length in self.runs:
            if left < length:
                return first + left, length - left, self.streams[number]
            left -= length
        raise AssertionError


def numbers_of(key: object) -> NumberedKey | None:
    """Return a key if it says which examples or which pass it draws for."""
    return key if type(key) is NumberedKey else None


def runs_of(key: object) -> Runs:
    """Return the numbers of the examples that a key draws for; none if they are in order from 0."""
    return key.runs if type(key) is NumberedKey else ()


def count(runs: Runs) -> int:
    """Return how many examples there are."""
    return sum(length for _, length in runs)


def check_examples(where: str, runs: Runs, shape: Sequence[int], passes: int = 1) -> None:
    """Raise unless a tensor has as many examples along axis 0 as there are numbers, and each a place in a mask."""
    examples = passes * count(runs)
    if shape[0] != examples:
        raise argument_error(
            where, "input", f"of {examples} examples along axis 0, as many as have numbers", tuple(shape)
        )
    most = 2**64 // max(math.prod(shape[1:-1]), 1) if len(shape) > 1 else 2**34  # of 2**64 rows, or of columns
    last = max(first + length for first, length in runs)
    if last > most:
        raise argument_error(where, "ids", f"below {most}, for masks of this size", last - 1, "Number examples from 0.")
