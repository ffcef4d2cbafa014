"""Running the passes: one after another, or as many together as memory is to be had."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.uncertainty.engine.batch import Batch
from dropkit.uncertainty.engine.examples import Examples
from dropkit.uncertainty.engine.inputs import Output
from dropkit.uncertainty.engine.tape import MismatchError
from dropkit.uncertainty.engine.ways import Way, shortened

__all__ = ["BUDGET", "OtherPathError", "UntoldError", "run_passes"]

BUDGET = {"cpu": 2**23, "cuda": 2**28}
"""Bytes that the largest tensor of passes that run together may have, by the kind of device."""

_FEW = 15  # passes, with the first before which nobody stops
Take = Callable[[Output, list[Tensor | None], int], bool]


class OtherPathError(Exception):
    """The first pass does something else than those did that its way was found by.

    Args:
        path: What it calls, and what it is told of by yes or no.
    """

    def __init__(self, path: tuple[Any, ...]) -> None:
        super().__init__("the forward takes another path")
        self.path = path


class UntoldError(Exception):
    """The examples of a site cannot be told apart, which they could be where the way was found.

    Args:
        error: What the site says.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(shortened(error, is_ours=True))
        self.error = error


@contextmanager
def _told() -> Iterator[None]:
    """Tell what sites say of examples from what users are told."""
    try:
        yield
    except (ArgumentError, UnsupportedError) as error:
        raise UntoldError(error) from error


def run_passes(
    batch: Batch,
    way: Way,
    n: int,
    chunk: int | None,
    take: Take,
    *,
    is_known: Callable[[tuple[Any, ...]], bool],
    is_growing: bool = False,
) -> None:
    """Run passes, and hand over what some have returned: the first, tensors with passes along axis 0, and how many.

    Args:
        batch: The model, and the inputs.
        way: How they are run.
        n: How many.
        chunk: How many may run together; None for as many as the budget allows.
        take: Takes them, and tells whether these are enough.
        is_known: Tells of the path of the first pass whether the way is right for it.
        is_growing: Whether no more run together than ran before, for whoever may stop at any time.

    Raises:
        OtherPathError: If the way is not known to be right for the path that the first pass takes; nothing was handed
            over then.
        MismatchError: If passes that run together do something else than those did that the way was found by.
        UntoldError: If the examples of a site cannot be told apart, as where fewer rows come to it than there are.
    """
    tape = None
    with _told():
        if way.engine == "prefix":
            tape, first = batch.record(way.examples, 1)
        else:
            first = batch.plain(way.examples, 1)
    if not is_known(first.path):
        raise OtherPathError(first.path)
    if tape is not None:
        if way.axes is not None and len(way.axes) != len(tape.entries):
            raise MismatchError("another number of functions is called before the first site")
        tape.axes = way.axes
    is_enough = take(first, first.passes(first, 1), 1)
    versions = None if tape is None else tape.versions()
    together, begin = _together(batch, way, chunk), 2
    while begin <= n and not is_enough:
        count = min(together, n + 1 - begin, max(begin, _FEW) if is_growing else n)
        streams = tuple(range(begin, begin + count))
        begin += count
        with _told():
            if tape is not None:
                output = batch.play(way.examples, streams, tape)
            elif way.is_batched:
                output = batch.together(_examples(way), streams)
            else:
                output = batch.plain(way.examples, streams[0])
        if tape is not None and tape.versions() != versions:
            raise MismatchError("what passes have in common is written into")
        if way.is_batched and output.path != way.path:
            raise MismatchError("more passes together call other functions")
        is_enough = take(first, output.passes(first, count), count)


def _examples(way: Way) -> Examples:
    assert way.examples is not None  # noqa: S101  # passes lie along their axis where they run together
    return way.examples


def _together(batch: Batch, way: Way, chunk: int | None) -> int:
    """Return how many passes run together."""
    if not way.is_batched:
        return 1
    if chunk is not None:
        return chunk
    device: Any = next((each.device.type for each in batch.inputs.tensors), "cpu")
    return max(1, BUDGET.get(device, BUDGET["cuda"]) // max(way.bytes, 1))
