"""How often modules ran in forwards that have ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Counts"]


class Counts:
    """How often each module ran, from some time on, before the outermost forward that runs now."""

    def __init__(self) -> None:
        self._before: Mapping[str, int] = {}
        self.outer: list[Mapping[str, int]] = []  # to go on with after the blocks that are open

    @property
    def before(self) -> Mapping[str, int]:
        """The counts by name, of which another mapping takes the place when they change."""
        return self._before

    @before.setter
    def before(self, counts: Mapping[str, int]) -> None:
        self._before = counts

    def number(self, name: str, run: int) -> int:
        """Return the number of a module's run, from the number that it has in the outermost forward."""
        return self.before.get(name, 0) + run

    def add(self, runs: Mapping[str, int]) -> None:
        """Count the runs of an outermost forward that has ended."""
        before = self.before
        self.before = {**before, **{name: before.get(name, 0) + number for name, number in runs.items()}}

    def suspend(self) -> None:
        """Count from 0 until `resume`."""
        self.outer.append(self.before)
        self.before = {}

    def resume(self) -> None:
        """Go on as if there had been nothing since `suspend`."""
        self.before = self.outer.pop()

    @contextmanager
    def replaced(self, before: Mapping[str, int]) -> Iterator[None]:
        """Let other counts hold, meanwhile."""
        own, self._before = self.before, before
        try:
            yield
        finally:
            self._before = own
