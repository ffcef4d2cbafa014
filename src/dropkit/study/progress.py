"""How a study tells whoever started it how far it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropkit.study.methods import METHODS
from dropkit.study.plan import Pack, Plan
from dropkit.study.records import Trial

if TYPE_CHECKING:
    from dropkit.study.packed import Training

__all__ = ["Progress", "ProgressCallback", "Reporter"]


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Args:
        phase: What it is doing, such as ``"selection"``; once all models are trained, ``"measuring"``, then
            ``"writing"``.
        done: Epochs trained so far, counted over all models; those of an earlier run that was resumed count too. A
            step of what follows training counts as the epochs of one model.
        total: The same at the end.
        note: Something to tell, such as a strength that was chosen or a run that diverged; mostly empty.
        skipped: Epochs of `done` that took no time now: an earlier run trained them, or there was nothing to train.
    """

    phase: str
    done: int
    total: int
    note: str = ""
    skipped: int = 0


ProgressCallback = Callable[[Progress], None]


class Reporter:
    """Counts epochs over all models, then the steps that follow training, and passes the count on.

    Args:
        plan: What is to be done. Each step after training counts as much as a model: one for the test rows, one for the
            measures of each method, which are taken of the study's own networks alone, and one for the files.
        progress: To whom it is told.
    """

    def __init__(self, plan: Plan, progress: ProgressCallback) -> None:
        self.progress, self.epochs = progress, plan.budget.epochs
        steps = 2 + (0 if plan.network else len(plan.strengths))
        self.total = (sum(len(pack.trials) for pack in plan.packs()) + steps) * self.epochs
        self.done, self.skipped, self.phase, self.size = 0, 0, "selection", 0

    def begin(self, pack: Pack) -> None:
        """Tell that a pack begins to train."""
        self.phase, self.size = pack.phase, len(pack.trials)
        self._tell()

    def skip(self, pack: Pack) -> None:
        """Count a pack that has trained before, or has nothing to train."""
        self.phase = pack.phase
        self.done += len(pack.trials) * self.epochs
        self.skipped += len(pack.trials) * self.epochs
        self._tell()

    def epoch(self) -> None:
        """Count an epoch of the pack that trains."""
        self.done += self.size
        self._tell()

    def note(self, text: str) -> None:
        """Tell something in words."""
        self._tell(text)

    def enter(self, phase: str) -> None:
        """Tell that a phase after training begins."""
        self.phase = phase
        self._tell()

    def step(self) -> None:
        """Count a step of it."""
        self.done += self.epochs
        self._tell()

    def diverged(self, trials: Sequence[Trial], trainings: "Sequence[Training]") -> None:
        """Name the trials that diverged."""
        for trial, training in zip(trials, trainings, strict=True):
            if training.diverged_at is not None:
                method = METHODS[trial.method]
                label = f"{method.title} {method.label(trial.strength or 0.0)}".strip()
                self._tell(
                    f"{label}, seed {trial.seed}: the loss became NaN or infinite in epoch {training.diverged_at}"
                )

    def _tell(self, note: str = "") -> None:
        self.progress(Progress(self.phase, self.done, self.total, note, self.skipped))
