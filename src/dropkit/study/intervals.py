"""Intervals over the samples of a saved model, and which rows it is unsure of."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import argument_error
from dropkit.errors import RunError
from dropkit.sites.interception.telling import warn
from dropkit.study.own.inputs import count_rows
from dropkit.study.prediction import Predictions
from dropkit.study.sampling import drops, samples
from dropkit.study.saved_model import SavedModel

__all__ = ["agreement", "sampled"]

Array = npt.NDArray[np.float64]


def sampled(
    path: Path, model: SavedModel, inputs: Any, count: int, level: float, tolerance: float | None, seed: int
) -> Predictions:
    """Predict rows from samples, with the interval of each value.

    Args:
        path: The run directory, for messages.
        model: The model.
        inputs: The rows, as `SavedModel.predict` takes them.
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
    if not count_rows(inputs):
        none = model.predict(inputs)
        return Predictions(model.target, model.class_names, none, none, none, np.zeros(0, bool))
    passes = count if drops(model, inputs) else None
    if passes is None and len(model.members) == 1:
        raise RunError(
            f"{path} has one network, with {model.label}, which drops nothing: all samples would be equal. Predict "
            "without samples, or run a study with more seeds."
        )
    if passes is None:
        what = f"its {len(model.members)} networks, each trained on other rows"
        warn(f"The model, with {model.label}, drops nothing: the samples are {what}.")
    parts = [_summarised(part.numpy(), level) for part in samples(model, inputs, passes, seed)]
    mean, low, high, share = (np.concatenate(each) for each in zip(*parts, strict=True))
    if model.is_classifier:
        return Predictions(model.target, model.class_names, mean, low, high, share < level)
    return Predictions(model.target, (), mean, low, high, (high - low)[:, 0] / 2 > tolerance)


def agreement(found: Array) -> Array:
    """Return the share of the samples whose likeliest class is that of their mean, of shape (rows,).

    Args:
        found: Probabilities of shape (samples, rows, classes).
    """
    votes = found.argmax(2) == found.mean(0).argmax(1)
    return np.asarray(votes.sum(0) / len(found))


def _summarised(found: Array, level: float) -> tuple[Array, Array, Array, Array]:
    """Return mean, ends of the central interval, and agreement of samples of shape (samples, rows, outputs)."""
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found.mean(0), low, high, agreement(found)
