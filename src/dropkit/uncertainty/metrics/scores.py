"""Proper scores of predicted distributions: they are best, on average, where the prediction is the truth."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dropkit._checks import POSITIVE, argument_error, as_float
from dropkit.uncertainty.metrics.calibration import BINS, binned
from dropkit.uncertainty.metrics.inputs import Array, LabelArray, column, numbers, plain, rows_of, same_shape

__all__ = [
    "BrierDecomposition",
    "brier_decomposition",
    "brier_score",
    "gaussian_negative_log_likelihood",
    "mixture_negative_log_likelihood",
    "negative_log_likelihood",
]


@dataclass(frozen=True)
class BrierDecomposition:
    """A Brier score as ``reliability - resolution + uncertainty``.

    Args:
        reliability: The mean squared difference between probabilities and shares in their bins: less is better.
        resolution: How far the shares differ between bins, and how well probabilities order rows inside them: more is
            better.
        uncertainty: What stating each class's share among all rows would score.
    """

    reliability: float
    resolution: float
    uncertainty: float


def brier_score(probabilities: Any, labels: Any) -> float:
    """Return the Brier score: the mean squared distance between probabilities and what came true.

    Args:
        probabilities: Of shape (rows, classes), a tensor or an array; each row sums to 1. One column is the probability
            of the second of two classes.
        labels: The true classes, integers from 0, of shape (rows,).

    Returns:
        The squared differences summed over classes and averaged over rows: from 0 (best) to 2. With two classes it is
        twice the score of the second class's probability alone.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> round(uncertainty.brier_score([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [0, 1]), 3)
        0.8

    References:
        Brier (1950), "Verification of forecasts expressed in terms of probability".
    """
    found, classes = rows_of("brier_score", probabilities, labels)
    return _squared(found, classes)


def _squared(probabilities: Array, classes: LabelArray) -> float:
    apart = probabilities.copy()
    apart[np.arange(len(apart)), classes] -= 1
    return float(np.square(apart).sum(1).mean())


def brier_decomposition(probabilities: Any, labels: Any, *, bins: int = 15) -> BrierDecomposition:
    """Split the Brier score into reliability, resolution and uncertainty.

    Each class's probabilities are put into bins of equal width, and the parts summed over classes. What the
    probabilities vary inside a bin counts as resolution, so that the parts give the score exactly, whatever the bins.

    Args:
        probabilities: Of shape (rows, classes), a tensor or an array; each row sums to 1. One column is the probability
            of the second of two classes.
        labels: The true classes, integers from 0, of shape (rows,).
        bins: How many, in ``[1, 10**6]``. Default: 15.

    Returns:
        The three parts.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> parts = uncertainty.brier_decomposition([[0.7, 0.3], [0.7, 0.3], [0.2, 0.8]], [0, 1, 1])
        >>> f"{parts.reliability:.3f} - {parts.resolution:.3f} + {parts.uncertainty:.3f}"
        '0.080 - 0.111 + 0.444'

    References:
        Murphy (1973), "A new vector partition of the probability score". Stephenson, Coelho and Jolliffe (2008), "Two
        extra components in the Brier score decomposition", of the variation inside bins.
    """
    where = "brier_decomposition"
    found, classes = rows_of(where, probabilities, labels)
    bins = BINS.check(where, "bins", bins)
    each = [binned(of, (classes == k).astype(float), bins, "equal_width") for k, of in enumerate(found.T)]
    reliability = float(sum((of.share * of.gap**2).sum() for of in each))
    shares = np.bincount(classes, minlength=found.shape[1]) / len(classes)
    uncertainty = float((shares * (1 - shares)).sum())
    return BrierDecomposition(reliability, reliability + uncertainty - _squared(found, classes), uncertainty)


def negative_log_likelihood(probabilities: Any, labels: Any) -> float:
    """Return the mean negative logarithm of the true classes' probabilities, in nats.

    Args:
        probabilities: Of shape (rows, classes), a tensor or an array; each row sums to 1. One column is the probability
            of the second of two classes.
        labels: The true classes, integers from 0, of shape (rows,).

    Returns:
        From 0 (best) upwards; infinite where a true class has probability 0.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> round(uncertainty.negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)
        0.4904
    """
    found, classes = rows_of("negative_log_likelihood", probabilities, labels)
    with np.errstate(divide="ignore"):  # the logarithm of 0 is what it is
        return float(-np.log(found[np.arange(len(found)), classes]).mean())


def gaussian_negative_log_likelihood(mean: Any, std: Any, targets: Any) -> float:
    """Return the mean negative log-density of targets under predicted normal distributions, in nats.

    Args:
        mean: Predicted means, of any shape whose first axis are the rows, a tensor or an array.
        std: Predicted standard deviations, above 0, of the same shape; or one number for all.
        targets: What came true, of the same shape. Where rows have several targets, their densities multiply.

    Returns:
        The mean over rows.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> round(uncertainty.gaussian_negative_log_likelihood([0.0, 1.0], [1.0, 2.0], [0.0, 3.0]), 4)
        1.5155
    """
    where = "gaussian_negative_log_likelihood"
    means = numbers(where, "mean", mean)
    one = as_float(plain(std))
    is_one = isinstance(one, float)
    deviations = POSITIVE.check(where, "std", one) if is_one else same_shape(where, "std", std, "mean", means.shape)
    found = same_shape(where, "targets", targets, "mean", means.shape)
    if np.min(deviations) <= 0:
        raise argument_error(where, "std", "above 0", float(np.min(deviations)))
    with np.errstate(over="ignore"):  # of targets that are so far off the density is 0
        each = np.square((found - means) / deviations) / 2 + np.log(deviations) + math.log(2 * math.pi) / 2
        return float(each.sum() / len(means))


def mixture_negative_log_likelihood(samples: Any, targets: Any, *, precision: float) -> float:
    """Return the mean negative log-density of targets under what the passes predict together, in nats.

    Each pass predicts a normal distribution around its output, all of one precision; their mixture is the prediction.

    Args:
        samples: Outputs of the passes, of shape (passes, rows) or (passes, rows, outputs), a tensor or an array.
        targets: What came true, of shape (rows,) or (rows, outputs).
        precision: Of the noise of targets around the model's function, 1 / variance in the units of the targets,
            above 0.

    Returns:
        The mean over rows.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> import torch
        >>> from dropkit import uncertainty
        >>> samples = torch.tensor([[0.0, 1.0], [0.2, 3.0]])  # two passes over two rows
        >>> round(uncertainty.mixture_negative_log_likelihood(samples, torch.tensor([0.1, 2.0]), precision=4.0), 4)
        1.2358

    References:
        Gal and Ghahramani (2016), "Dropout as a Bayesian approximation: representing model uncertainty in deep
        learning", equation 8.
    """
    where = "mixture_negative_log_likelihood"
    tau = POSITIVE.check(where, "precision", plain(precision))
    outputs = numbers(where, "samples", samples)
    if outputs.ndim < 2:
        raise argument_error(where, "samples", "of shape (passes, rows) or (passes, rows, outputs)", outputs.shape)
    found = numbers(where, "targets", targets)
    if found.shape != outputs.shape[1:]:
        remedy = column(outputs.shape[1:], "samples", found.shape, "targets")
        raise argument_error(where, "targets", f"of shape {outputs.shape[1:]}, that of one pass", found.shape, remedy)
    passes, rows = outputs.shape[:2]
    with np.errstate(over="ignore"):  # of targets that are so far off the density is 0
        distances = np.square(outputs - found).reshape(passes, rows, -1)
        logs = -tau / 2 * distances.sum(-1)
        constant = distances.shape[-1] / 2 * math.log(tau / (2 * math.pi)) - math.log(passes)
        return -float(np.logaddexp.reduce(logs, axis=0).mean() + constant)
