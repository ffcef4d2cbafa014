"""Keys of an addressed model: functions of its seed, the site, the step, and how often modules ran in the step."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit.errors import ArgumentError
from dropkit.random import fold, site
from dropkit.sites.addressing.table import Table
from dropkit.sites.interception.compiler import while_compiling
from dropkit.sites.interception.counts import Counts
from dropkit.sites.interception.places import Place

__all__ = ["Keys"]


@dataclass(frozen=True)
class _Step:
    """A step of a run.

    Args:
        seed: The seed of the run.
        number: How many updates there were.
        first: What the keys of sites are in it, before runs are counted in, as far as they were asked for.
    """

    seed: int
    number: int
    first: dict[str, int] = field(default_factory=dict)


class Keys(Counts):
    """The keys of all sites, and the counts of a step that they depend on.

    Args:
        model: The model; None where none has them.
        modules: How many modules it has.
        seed: The seed.
    """

    def __init__(self, model: Module | None, modules: int, seed: int) -> None:
        super().__init__(_Step(seed, 0))
        self._sites: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._model, self._modules = (lambda: None) if model is None else weakref.ref(model), modules
        self._table: Any = None  # a Table, once something was compiled
        self._drawn: Tensor | None = None  # the keys of its rows, in the outermost forward
        self._has_drawn = False  # in the outermost forward
        self._is_behind = False  # whether compiled code has counted in the table alone

    @property
    def seed(self) -> int:
        """The seed of all masks."""
        seed: int = self.own_step.seed
        return seed

    @property
    def step(self) -> int:
        """How many updates there were."""
        number: int = self.own_step.number
        return number

    @property
    def lasting(self) -> Mapping[str, int]:
        """The counts by name outside of all blocks, of which another mapping takes the place when they change."""
        if self._is_behind:
            self._lasting, self._is_behind = {**self._lasting, **self._table.counts()}, False
        return self._lasting

    @lasting.setter
    def lasting(self, counts: Mapping[str, int]) -> None:
        self._lasting, self._is_behind = counts, False
        if self._table is not None:
            self._table.set_counts(counts)

    def number(self, name: str, run: int) -> int:
        """Return the number of a module's run; in compiled code that in the outermost forward."""
        return run if torch.compiler.is_compiling() else super().number(name, run)

    def add(self, runs: Mapping[str, int]) -> None:
        """Count the runs of an outermost forward that has ended, unless nothing was drawn in it, as in evaluation.

        So a run that is looked at between two steps goes on as one that is not, and workers as one that looks alone.
        """
        self._drawn, has_drawn, self._has_drawn = None, self._has_drawn, False
        if not has_drawn:
            return
        if not torch.compiler.is_compiling():
            super().add(runs)
            return
        for first, end, count in self._spans(tuple(runs.items())):
            self._table.counted[first:end].add_(count)
        self._is_behind = True

    def key(self, place: Place, is_real: bool = True) -> int:
        """Return the key of a site in a run of its module; what has shapes alone draws nothing with it."""
        self._has_drawn = self._has_drawn or is_real
        return fold(self._first(place.name, self.step_here), place.run, 0)

    def compiled(self, place: Place, device: torch.device) -> Tensor:
        """Return the same in compiled code: on a device, or on the CPU."""
        self._has_drawn = True
        row = self._row(place.name, place.path, place.run)
        drawn: Any = self._drawn
        if drawn is None:
            drawn = self._table.keys()
            if not torch._C._are_functorch_transforms_active():  # no graph may give out what it made inside of one
                self._drawn = drawn
        key: Tensor = drawn[row]
        return key if key.device.type == "cpu" else key.to(device)

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
        """Go on with another step, or seed, and with counts outside of all blocks; in each from 0."""
        if self._table is not None:
            self._table.move(self._device())
        self.begin(_Step(seed, step), runs)
        if self._table is not None:
            self._table.set_step({name: self._first(name, self.own_step) for name in self._table.sites})

    @contextmanager
    def drawing_again(self) -> Iterator[None]:
        """Draw, meanwhile, what a forward has drawn before."""
        own = self._has_drawn
        try:
            yield
        finally:
            self._has_drawn = own

    def _first(self, name: str, step: _Step) -> int:
        """Return what the key of a site is in a step, before runs are counted in."""
        first = step.first.get(name)
        if first is None:
            first = step.first[name] = fold(step.seed, self.site(name), step.number)
        return first

    @while_compiling
    def _row(self, name: str, path: str, run: int) -> int:
        """Return the row of a site in a run of its module."""
        table = self._counting(path)
        row: int | None = table.rows.get((name, run))
        if row is None:
            row = table.add_row(name, run, path, self._first(name, self.own_step))
            if self._drawn is not None:
                self._drawn = table.keys()
        return row

    @while_compiling
    def _spans(self, runs: tuple[tuple[str, int], ...]) -> tuple[tuple[int, int, int], ...]:
        """Return which modules of the table ran equally often: the first, the end, and how often."""
        spans: list[tuple[int, int, int]] = []
        for position, count in sorted((self._counting(path).positions[path], count) for path, count in runs):
            if spans and spans[-1][1:] == (position, count):
                spans[-1] = spans[-1][0], position + 1, count
            else:
                spans.append((position, position + 1, count))
        return tuple(spans)

    def _counting(self, path: str) -> Table:
        """Return the table, in which a module is counted."""
        if self._table is None:
            self._table = Table(self._modules, self._device())
        if path not in self._table.positions:
            self._table.add_module(path, self.lasting.get(path, 0))
        table: Table = self._table
        return table

    def _device(self) -> torch.device:
        model = self._model()
        first = next(model.parameters(), None) if model is not None else None
        return torch.device("cpu") if first is None else first.device
