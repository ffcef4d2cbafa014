"""How samples of a model did on the study's test rows: what its intervals and its word "unsure" are worth."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dropkit.study.sampling import drops, samples

if TYPE_CHECKING:
    from dropkit.study.saved_model import SavedModel

__all__ = ["Calibration", "agreement", "calibrate"]

_PASSES = 30
_ROWS = 1000

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What the samples of a model said of test rows, and what was true.

    Args:
        levels: Of numbers, the least level whose interval holds the target of a row, 1 where none does. Of classes, the
            share of the samples that have the predicted class.
        right: Of classes, whether the predicted class is that of the row; empty for numbers.
    """

    levels: tuple[float, ...]
    right: tuple[bool, ...] = ()

    def sentence(self, level: float) -> str:
        """Say in words what is to be expected of intervals, or of the rows that are sure, at a level."""
        rows, found = len(self.levels), np.array(self.levels)
        if not self.right:
            return (
                "The intervals are of the networks' predictions, not of the target: on test rows of the study they "
                f"held {int((found <= level).sum()):,} of {rows:,} targets."
            )
        right, sure = np.array(self.right), found >= level
        parts = [
            f"{int(flags.sum()):,} were {word}, of which {int(right[flags].sum()):,} were"
            for word, flags in (("not unsure", sure), ("unsure", ~sure))
            if flags.any()
        ]
        first, *more = parts
        return f"On {rows:,} test rows of the study {'; '.join((f'{first} predicted rightly', *more))}."

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Calibration":
        """Build it from plain data; what does not fit raises KeyError, TypeError or ValueError."""
        levels, right = tuple(float(level) for level in data["levels"]), tuple(bool(one) for one in data["right"])
        fits = levels and all(0 <= level <= 1 for level in levels) and len(right) in (0, len(levels))
        if not fits:
            raise ValueError(data)
        return cls(levels, right)


def calibrate(model: "SavedModel", inputs: Any, targets: npt.NDArray[Any], seed: int) -> Calibration | None:
    """Compare samples with the targets of test rows, at most 1,000 of them.

    Args:
        model: The model.
        inputs: The rows, as `SavedModel.predict` takes them.
        targets: The class or number of each.
        seed: Decides the masks.

    Returns:
        What was found; None of a model that has no samples.
    """
    rows = np.unique(np.linspace(0, len(targets) - 1, _ROWS).round().astype(np.int64))  # evenly, of times too
    inputs, targets = inputs[rows], targets[rows]
    passes = _PASSES if drops(model, inputs) else None
    if passes is None and len(model.members) == 1:
        return None
    parts = [part.numpy() for part in samples(model, inputs, passes, seed)]
    if not model.is_classifier:
        found = np.concatenate([part[:, :, 0] for part in parts], axis=1).T
        return Calibration(tuple(_least_level(row, target) for row, target in zip(found, targets, strict=True)))
    agreed = np.concatenate([agreement(part) for part in parts])
    right = np.concatenate([part.mean(0).argmax(1) for part in parts]) == targets
    return Calibration(tuple(round(float(one), 6) for one in agreed), tuple(map(bool, right)))


def agreement(found: Array) -> Array:
    """Return the share of the samples whose likeliest class is that of their mean, of shape (rows,).

    Args:
        found: Probabilities of shape (samples, rows, classes).
    """
    votes = found.argmax(2) == found.mean(0).argmax(1)
    return np.asarray(votes.sum(0) / len(found))


def _least_level(found: Array, target: float) -> float:
    """Return the least level whose central interval of the samples holds a number; 1 where none does."""
    ordered = np.sort(found)
    if not ordered[0] <= target <= ordered[-1]:
        return 1.0
    quantile = np.interp(target, ordered, np.linspace(0, 1, len(ordered)))
    return round(float(abs(2 * quantile - 1)), 6)
