"""How many epochs a method needs to fit its training rows as well as training without regularisation does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import median_low

from dropkit.study.summary import Summary

__all__ = ["Pace", "epochs_to_reach", "paces"]


@dataclass(frozen=True)
class Pace:
    """How long the confirmation runs of a method take to fit their training rows.

    Args:
        method: The method's name.
        relative: For each seed, the epochs to the training loss (dropout off) of none of that seed at none's
            early-stopping epoch, over the number of that epoch; None where the run did not get there.
    """

    method: str
    relative: Mapping[int, float | None]

    @property
    def reached(self) -> tuple[float, ...]:
        """The relative numbers of epochs of the runs that got there."""
        return tuple(value for value in self.relative.values() if value is not None)

    @property
    def median(self) -> float | None:
        """When half of the runs are there, those that did not get there counting as later; None where fewer did."""
        found = median_low(inf if value is None else value for value in self.relative.values())
        return None if found == inf else found


def epochs_to_reach(losses: Sequence[float], target: float) -> float | None:
    """Return when a loss is first as low as a target, between epochs by linear interpolation.

    Args:
        losses: The loss after epoch 1, 2, and so on.
        target: The loss to reach.

    Returns:
        A number of epochs, 1 where the first epoch is enough; None where no epoch is.

    Examples:
        >>> epochs_to_reach([1.0, 0.6, 0.4], 0.5)
        2.5
    """
    if losses and losses[0] <= target:
        return 1.0
    for epoch, (before, after) in enumerate(pairwise(losses), start=1):
        if after <= target:
            return epoch + (before - target) / (before - after)
    return None


def paces(summary: Summary) -> dict[str, Pace]:
    """Return the pace of each method that was confirmed against none, on the seeds where neither diverged."""
    none = {record.trial.seed: record.curves for record in summary.none.records}
    found = {}
    for name in summary.plan.family:
        records = summary.arms[name].records if name in summary.arms else ()
        relative = {}
        for record in records:
            seed = record.trial.seed
            if seed in none:
                early = none[seed].early_epoch
                epochs = epochs_to_reach(record.curves.training_loss, none[seed].training_loss[early - 1])
                relative[seed] = None if epochs is None else epochs / early
        if relative:
            found[name] = Pace(name, relative)
    return found
