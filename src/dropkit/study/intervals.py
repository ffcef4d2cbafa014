"""Intervals over the samples of a saved model, and which rows it is unsure of."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dropkit._checks import argument_error
from dropkit.errors import RunError
from dropkit.sites.interception.telling import warn
from dropkit.study.calibration import agreement
from dropkit.study.new_rows import NewRows
from dropkit.study.own.inputs import count_rows
from dropkit.study.prediction import Predictions
from dropkit.study.sampling import drops, samples
from dropkit.study.saved_model import SavedModel

__all__ = ["sampled"]

Array = npt.NDArray[np.float64]


def sampled(
    path: Path, model: SavedModel, rows: NewRows, count: int, level: float, tolerance: float | None, seed: int
) -> Predictions:
    """Predict rows from samples, with the interval of each value.

    Args:
        path: The run directory, for messages.
        model: The model.
        rows: The rows; those of which nothing is known are unsure, whatever the samples say.
        count: Passes over each network.
        level: Share of the samples in an interval, and the least share that must agree on a class.
        tolerance: Of numbers, the widest half of an interval that is sure. Default: the error on the test rows.
        seed: Decides the masks.

    Raises:
        ArgumentError: If there is a tolerance of classes, or none of numbers is known.
        RunError: If the model was saved before samples could be drawn, or all samples would be equal.
    """
    if model.dropped is None:
        remedy = f"Write it anew: dropkit study --resume {path}"
        raise RunError(f"{path}: the model was saved before samples could be drawn. {remedy}")
    if model.is_classifier and tolerance is not None:
        raise argument_error("predict", "tolerance", "left out for classes", tolerance, "There the level decides.")
    tolerance = model.dropped.error if tolerance is None else tolerance
    if not model.is_classifier and tolerance is None:
        raise argument_error("predict", "tolerance", "given, for the study has no finite error", tolerance)
    if not count_rows(rows.inputs):
        none = model.predict(rows.inputs)
        return Predictions(model.target, model.class_names, none, none, none, np.zeros(0, bool))
    passes = count if drops(model, rows.inputs) else None
    if passes is None:
        _warn_of_no_dropout(path, model)
    parts = [_summarised(part.numpy(), level) for part in samples(model, rows.inputs, passes, seed)]
    mean, low, high, share = (np.concatenate(each) for each in zip(*parts, strict=True))
    names = model.class_names if model.is_classifier else ()
    unsure = share < level if model.is_classifier else (high - low)[:, 0] / 2 > tolerance
    if len(rows.strange):
        unsure |= rows.strange
    return Predictions(model.target, names, mean, low, high, unsure, _notes(model, rows, level))


def _warn_of_no_dropout(path: Path, model: SavedModel) -> None:
    networks = len(model.members)
    what = f"The model, with {model.label}, drops nothing"
    if networks == 1:
        raise RunError(
            f"{path} has one network, with {model.label}, which drops nothing: all samples would be equal. Predict "
            "without samples, choose a method that drops, or run a study with more seeds."
        )
    warn(
        f"{what}: the samples are its {networks} networks, each trained on other rows. Of so few values the level of "
        "an interval says little, and this is no Monte Carlo dropout: for that, choose a method that drops."
    )


def _notes(model: SavedModel, rows: NewRows, level: float) -> tuple[str, ...]:
    """Return what is to be told of intervals and rows."""
    words = "" if model.is_classifier else "The intervals are of the networks' predictions, not of the target."
    if model.calibration is not None:
        words = model.calibration.sentence(level)
    strange = int(rows.strange.sum())
    told = f"{rows.note} Unsure whatever the samples say: {strange:,}." if strange else rows.note
    return tuple(note for note in (words, told) if note)


def _summarised(found: Array, level: float) -> tuple[Array, Array, Array, Array]:
    """Return mean, ends of the central interval, and agreement of samples of shape (samples, rows, outputs)."""
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found.mean(0), low, high, agreement(found)
