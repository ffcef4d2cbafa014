"""Noise that training mode alone draws, and that is no site: it may be dropout, but of a kind that cannot be told."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module

from dropkit.sites.handwritten.draws import RANDOM
from dropkit.sites.interception.restoring import generators

if TYPE_CHECKING:
    from dropkit.sites.switching.probe import Probe

__all__ = ["HIDDEN", "PYTORCH", "Generators", "Noise", "listed", "training_noise"]

HIDDEN = frozenset(RANDOM.values())
"""Names of the random operators whose results may be dropout where nothing of PyTorch's Python functions is seen."""

_NO_DROPOUT = ("rrelu", "rrelu_")  # slopes


@dataclass(frozen=True)
class Noise:
    """Random numbers that a module draws.

    Args:
        path: Name of the module.
        what: What draws them: a random operator, or a generator that is not PyTorch's.
        file: File of the code that does, of the model's own; empty if that is not known.
        line: Line in that file.
    """

    path: str
    what: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        module = f" in {self.path!r}" if self.path else ""
        return f"{self.what}{module}" + (f" ({Path(self.file).name}:{self.line})" if self.file else "")


PYTORCH = "numbers of PyTorch's random"


class Generators:
    """Tells which generators of random numbers move: PyTorch's, Python's, NumPy's and those that modules keep.

    Args:
        model: The model.
    """

    def __init__(self, model: Module) -> None:
        names = _names()
        pairs = [(next(names), get) for get, _ in generators(model)]
        self._generators = [(name, get) for name, get in pairs if not isinstance(get(), Tensor)]
        self._generators.append((PYTORCH, _pytorch_state))
        self._states = self._now()

    def _now(self) -> list[bytes]:
        return [pickle.dumps(get()) for _, get in self._generators]

    def moved(self) -> list[str]:
        """Return the names of those that have moved since this was last asked."""
        before, self._states = self._states, self._now()
        pairs = zip(self._generators, before, self._states, strict=True)
        return [name for (name, _), old, new in pairs if old != new]


def _names() -> Iterator[str]:
    yield from ("numbers of Python's random", "numbers of NumPy's random")
    while True:
        yield "numbers of a generator that the model keeps"


def _pytorch_state() -> list[bytes]:
    if torch._C._are_functorch_transforms_active():  # inside which no tensor shows its values
        return []
    with torch._C.DisableTorchFunction():  # or it would be taken for the model's
        on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return [each.numpy().tobytes() for each in (torch.get_rng_state(), *on_cuda)]


def training_noise(probe: "Probe") -> list[Noise]:
    """Return what a model draws in training mode and not in evaluation, where that surely is no site.

    Left out is what has one outcome alone, such as the mask of a rate of 0.
    """
    train, evaluation = probe.train, probe.evaluation
    sites = {name for name, site in train.sites.items() if site.is_certain}
    drawn = [
        Noise(*draw)
        for name, draw in train.draws.items()
        if not (name in sites or train.masks.drawn[name].is_idle or draw[1] in _NO_DROPOUT)
    ]
    known = {*(Noise(*draw) for draw in evaluation.draws.values()), *evaluation.hidden}
    return [noise for noise in dict.fromkeys([*drawn, *train.hidden]) if noise not in known]


_SHOWN = 4


def listed(noise: Sequence[Noise]) -> str:
    """Return noise as messages name it: the first few places."""
    more = len(noise) - _SHOWN
    return ", ".join(map(str, noise[:_SHOWN])) + (f", and at {more} more places" if more > 0 else "")
