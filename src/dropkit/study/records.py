"""What a trial is, and what is known of it when it has run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

__all__ = ["CONFIRMATION", "SELECTION", "WIDENING", "Curves", "Record", "Scores", "Trial", "curves", "scores_at"]

SELECTION = "selection"
WIDENING = "widening"
CONFIRMATION = "confirmation"


@dataclass(frozen=True)
class Trial:
    """One model to train.

    Only the selection has strengths in the plan. That of a widening or confirmation trial is None until the phase
    before has settled it; the widening tells a method's trials of one seed apart by their slot.
    """

    phase: str
    method: str
    strength: float | None
    seed: int
    slot: int = 0

    @property
    def name(self) -> str:
        """The trial's name in the journal, which does not depend on what the selection found."""
        place = {SELECTION: f"{self.strength!r}", WIDENING: f"extra-{self.slot}", CONFIRMATION: "chosen"}[self.phase]
        return f"{self.phase}/{self.method}/{place}/{self.seed}"

    def with_strength(self, strength: float) -> "Trial":
        """Return the trial with the strength that has been settled for it."""
        return replace(self, strength=strength)


@dataclass(frozen=True)
class Scores:
    """How one model did at one epoch, dropout off.

    Losses are mean log losses in nats, or squared errors of standardised numbers; the training loss is over at most the
    first 1,000 training rows. The metrics are those of `dropkit.study.metrics`, by name, on the validation rows.
    """

    training_loss: float
    validation_loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Validation loss minus training loss: how much the model over-fits."""
        return self.validation_loss - self.training_loss


@dataclass(frozen=True)
class Curves:
    """The scores of one model after every epoch, dropout off."""

    training_loss: tuple[float, ...]
    inner_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return len(self.inner_loss)

    @property
    def early_epoch(self) -> int:
        """The epoch, counted from 1, that the inner rows choose: the first of the lowest loss."""
        return self.inner_loss.index(min(self.inner_loss)) + 1


def curves(
    training_loss: Sequence[float],
    inner_loss: Sequence[float],
    validation_loss: Sequence[float],
    **metrics: Sequence[float],
) -> Curves:
    """Build curves from sequences of numbers; metrics by their names."""
    training, inner, validation = (tuple(map(float, column)) for column in (training_loss, inner_loss, validation_loss))
    return Curves(training, inner, validation, {name: tuple(map(float, column)) for name, column in metrics.items()})


def scores_at(found: Curves, epoch: int) -> Scores:
    """Return the scores after an epoch, counted from 1."""
    metrics = {name: column[epoch - 1] for name, column in found.metrics.items()}
    return Scores(found.training_loss[epoch - 1], found.validation_loss[epoch - 1], metrics)


@dataclass(frozen=True)
class Record:
    """A trial that has run; where the loss became NaN or infinite, `diverged_at` is that epoch, with no scores.

    Where the method learns rates, `learned_rates` are those of the hidden layers at the early-stopping epoch.
    """

    trial: Trial
    curves: Curves
    diverged_at: int | None = None
    learned_rates: tuple[float, ...] = ()

    @property
    def strength(self) -> float:
        """The strength it was trained with."""
        assert self.trial.strength is not None  # noqa: S101  # a trial that ran had one
        return self.trial.strength

    @property
    def diverged(self) -> bool:
        """Whether the loss became NaN or infinite."""
        return self.diverged_at is not None

    @property
    def last(self) -> Scores:
        """Scores at the last epoch."""
        return scores_at(self.curves, self.curves.epochs)

    @property
    def early(self) -> Scores:
        """Scores at the epoch that the inner rows choose."""
        return scores_at(self.curves, self.curves.early_epoch)
