"""Keys of an addressed model: functions of its seed, the site, the step, and how often modules ran in the step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dropkit.errors import ArgumentError
from dropkit.random import fold, site
from dropkit.sites.interception.counts import Counts
from dropkit.sites.interception.interceptor import Place

__all__ = ["Keys"]


class Keys(Counts):
    """The keys of all sites, and the counts of a step that they depend on.

    Args:
        seed: The seed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.step = seed, 0
        self._sites: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._of_step: dict[str, int] = {}

    def key(self, place: Place) -> int:
        """Return the key of a site in a run of its module."""
        first = self._of_step.get(place.name)
        if first is None:
            first = self._of_step[place.name] = fold(self.seed, self.site(place.name), self.step)
        return fold(first, place.run, 0)

    def site(self, name: str) -> int:
        """Return the number of a site, which no other site may have."""
        number = self._sites.get(name)
        if number is not None:
            return number
        number = site(name)
        other = self._names.setdefault(number, name)
        if other != name:
            raise ArgumentError(
                f"address: the names {other!r} and {name!r} have the same number {number}, so that their masks would "
                "be equal. Rename one of the modules."
            )
        self._sites[name] = number
        return number

    def move(self, seed: int, step: int, runs: Mapping[str, int]) -> None:
        """Go on with another step, or seed; with counts after all blocks that are open, in each from 0."""
        self._set(seed, step)
        all_runs = [runs, *({} for _ in self.outer)]
        self.outer, self.before = all_runs[:-1], all_runs[-1]

    @contextmanager
    def moved(self, seed: int, step: int) -> Iterator[None]:
        """Let keys be those of another seed and step, meanwhile."""
        own = self.seed, self.step, self._of_step
        self._set(seed, step)
        try:
            yield
        finally:
            self.seed, self.step, self._of_step = own

    def _set(self, seed: int, step: int) -> None:
        self.seed, self.step, self._of_step = seed, step, {}
