"""How often modules ran in forwards that have ended, and since when that is counted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Counts", "apart", "as_then"]


@dataclass(eq=False)
class _Block:
    """Forwards of one thread or task whose runs are counted apart from all others.

    Args:
        runs: The counts, by whose they are; from 0 where nothing ran.
        steps: The steps of then, in a recomputation.
    """

    runs: dict["Counts", Mapping[str, int]] = field(default_factory=dict)
    steps: Mapping["Counts", Any] = field(default_factory=dict)


_block: ContextVar[_Block | None] = ContextVar("block", default=None)
_blocks: set[_Block] = set()  # those that are open, of all threads


class Counts:
    """How often each module ran, from some time on, before the outermost forward that runs now.

    Args:
        step: What else the numbers of calls belong to.
    """

    def __init__(self, step: Any = None) -> None:
        self._lasting: Mapping[str, int] = {}
        self.own_step = step

    @property
    def lasting(self) -> Mapping[str, int]:
        """The counts by name outside of all blocks, of which another mapping takes the place when they change."""
        return self._lasting

    @lasting.setter
    def lasting(self, counts: Mapping[str, int]) -> None:
        self._lasting = counts

    @property
    def before(self) -> Mapping[str, int]:
        """The same where this thread or task is now."""
        block = _block.get()
        return self.lasting if block is None else block.runs.get(self, {})

    @before.setter
    def before(self, counts: Mapping[str, int]) -> None:
        block = _block.get()
        if block is None:
            self.lasting = counts
        else:
            block.runs[self] = counts

    @property
    def step_here(self) -> Any:
        """The step that forwards of this thread or task are in."""
        block = _block.get()
        return self.own_step if block is None else block.steps.get(self, self.own_step)

    def number(self, name: str, run: int) -> int:
        """Return the number of a module's run, from the number that it has in the outermost forward."""
        return self.before.get(name, 0) + run

    def add(self, runs: Mapping[str, int]) -> None:
        """Count the runs of an outermost forward that has ended."""
        before = self.before
        self.before = {**before, **{name: before.get(name, 0) + number for name, number in runs.items()}}

    def begin(self, step: Any, runs: Mapping[str, int]) -> None:
        """Begin a step with counts, and with none in the blocks that are open."""
        self.own_step = step
        for block in list(_blocks):
            block.runs.pop(self, None)
        self.lasting = runs

    def state(self) -> tuple[Any, Mapping[str, int]]:
        """Return what `as_then` takes: the step and the counts now."""
        return self.step_here, self.before


@contextmanager
def apart() -> Iterator[None]:
    """Count from 0, meanwhile, in this thread or task; others go on, and so does this one afterwards."""
    outer = _block.get()
    block = _Block(steps={} if outer is None else outer.steps)
    token = _block.set(block)
    _blocks.add(block)
    try:
        yield
    finally:
        _blocks.discard(block)
        _block.reset(token)


@contextmanager
def as_then(states: Mapping[Counts, tuple[Any, Mapping[str, int]]]) -> Iterator[None]:
    """Count on, meanwhile, from earlier states, in this thread or task alone."""
    steps, runs = ({counts: state[number] for counts, state in states.items()} for number in (0, 1))
    token = _block.set(_Block(runs, steps))
    try:
        yield
    finally:
        _block.reset(token)
