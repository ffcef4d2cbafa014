"""Intervals: whether they hold as much as they should, and how wide they must be for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dropkit._checks import Number, argument_error
from dropkit.uncertainty.metrics.inputs import Array, numbers, plain, same_shape

__all__ = ["LEVEL", "IntervalScores", "interval_scores", "intervals_of", "scores_of"]

LEVEL = Number(0.0, 1.0, open_low=True, open_high=True)


@dataclass(frozen=True)
class IntervalScores:
    """How good intervals are.

    Args:
        level: The share of targets that they should hold.
        coverage: The share that they do hold.
        width: Their mean width, in units of the target.
        score: The mean interval score, in units of the target: the width, and ``2 / (1 - level)`` times the distance
            of a target that lies outside. Less is better, and on average least for the true quantiles.
    """

    level: float
    coverage: float
    width: float
    score: float


def interval_scores(lower: Any, upper: Any, targets: Any, *, level: float) -> IntervalScores:
    """Return coverage, mean width and interval score of central prediction intervals.

    Args:
        lower: Lower ends, of any shape, a tensor or an array.
        upper: Upper ends, of the same shape, nowhere below the lower ones.
        targets: What came true, of the same shape.
        level: The share that the intervals should hold, in (0, 1): between the quantiles ``(1 - level) / 2`` and
            ``(1 + level) / 2``.

    Returns:
        The scores, of which the interval score is proper: neither wide nor narrow intervals can gain.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> scores = uncertainty.interval_scores([0.0, 0.0], [1.0, 2.0], [0.5, 2.1], level=0.9)
        >>> scores.coverage, scores.width, round(scores.score, 6)
        (0.5, 1.5, 2.5)

    References:
        Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation", section 6.2.
    """
    where = "interval_scores"
    level = LEVEL.check(where, "level", plain(level))
    return scores_of(*intervals_of(where, lower, upper, targets), level)


def intervals_of(where: str, lower: Any, upper: Any, targets: Any) -> tuple[Array, Array, Array]:
    """Return the ends of intervals and what came true, all of one shape."""
    low = numbers(where, "lower", lower)
    high = same_shape(where, "upper", upper, "lower", low.shape)
    found = same_shape(where, "targets", targets, "lower", low.shape)
    if (high < low).any():
        raise argument_error(where, "upper", "nowhere below `lower`", float(high[high < low][0]))
    return low, high, found


def scores_of(lower: Array, upper: Array, targets: Array, level: float) -> IntervalScores:
    """Return the scores of intervals that have been checked."""
    outside = np.maximum(lower - targets, 0) + np.maximum(targets - upper, 0)
    width = upper - lower
    score = width + 2 / (1 - level) * outside
    return IntervalScores(level, float((outside == 0).mean()), float(width.mean()), float(score.mean()))
