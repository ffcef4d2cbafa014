"""Running the passes: one after another, or as many together as memory is to be had."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dropkit.uncertainty.engine.inputs import Output
from dropkit.uncertainty.engine.tape import MismatchError
from dropkit.uncertainty.engine.ways import Batch, Way

__all__ = ["BUDGET", "run_passes"]

BUDGET = {"cpu": 2**23, "cuda": 2**28}
"""Bytes that the largest tensor of passes that run together may have, by the kind of device."""

_FEW = 15  # passes, with the first before which nobody stops
Take = Callable[[Output, list[Tensor | None], int], bool]


def run_passes(batch: Batch, way: Way, n: int, chunk: int | None, take: Take, is_growing: bool = False) -> None:
    """Run passes, and hand over what some have returned: the first, tensors with passes along axis 0, and how many.

    Args:
        batch: The model, and the inputs.
        way: How they are run.
        n: How many.
        chunk: How many may run together; None for as many as the budget allows.
        take: Takes them, and tells whether these are enough.
        is_growing: Whether no more run together than ran before, for whoever may stop at any time.

    Raises:
        MismatchError: If a pass does something else before its first site than those did that the way was found by.
    """
    tape = None
    if way.engine == "prefix":
        tape, first = batch.record(way.axis, 1)
        if way.axes is not None and len(way.axes) != len(tape.entries):
            raise MismatchError("another number of functions is called before the first site")
        tape.axes = way.axes
    else:
        first = batch.plain(way.axis, 1)
    is_enough = take(first, first.passes(first, 1), 1)
    versions = None if tape is None else tape.versions()
    together, begin = _together(batch, way, chunk), 2
    while begin <= n and not is_enough:
        count = min(together, n + 1 - begin, max(begin, _FEW) if is_growing else n)
        streams = tuple(range(begin, begin + count))
        begin += count
        if tape is not None:
            output = batch.play(way.axis, streams, tape)
            if tape.versions() != versions:
                raise MismatchError("what passes have in common is written into")
        elif way.is_batched:
            output = batch.together(_axis(way), streams)
        else:
            output = batch.plain(way.axis, streams[0])
        is_enough = take(first, output.passes(first, count), count)


def _axis(way: Way) -> int:
    assert way.axis is not None  # noqa: S101  # passes lie along one where they run together
    return way.axis


def _together(batch: Batch, way: Way, chunk: int | None) -> int:
    """Return how many passes run together."""
    if not way.is_batched:
        return 1
    if chunk is not None:
        return chunk
    device: Any = next((each.device.type for each in batch.inputs.tensors), "cpu")
    return max(1, BUDGET.get(device, BUDGET["cuda"]) // max(way.bytes, 1))
