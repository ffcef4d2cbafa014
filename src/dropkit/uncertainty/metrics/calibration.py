"""Calibration: whether what is said with 80 % confidence is right 80 times out of 100."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dropkit._checks import Choice, Integer, argument_error, require
from dropkit.uncertainty.metrics.inputs import Array, LabelArray, rows_of

__all__ = ["BINNING", "BINS", "Bins", "calibration_error", "debiased_square", "top_label_bins"]

BINS = Integer(1, 10**6, "[1, 10**6]")
BINNING = Choice(("equal_width", "equal_mass"))
_ESTIMATOR = Choice(("equal_width", "equal_mass", "debiased", "maximum", "classwise", "smooth"))
_GRID = 4096  # cells of the confidence for smoothing: far finer than any bandwidth that data call for


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins of rows by their confidence, with the empty ones.

    Args:
        edges: Where bins begin and end, one more than there are bins.
        counts: How many rows lie in each.
        confidence: The mean confidence of each; NaN where it is empty.
        accuracy: The share of each that is right; NaN where it is empty.
        noise: The estimated variance of the difference of the two, over other rows; NaN of fewer than two rows.
    """

    edges: Array
    counts: LabelArray
    confidence: Array
    accuracy: Array
    noise: Array

    @property
    def share(self) -> Array:
        """The share of all rows that each bin has."""
        return self.counts / self.counts.sum()

    @property
    def gap(self) -> Array:
        """How far confidence and accuracy are apart in each bin; 0 where it is empty."""
        return np.where(self.counts > 0, np.abs(self.accuracy - self.confidence), 0.0)


def binned(confidence: Array, is_right: Array, bins: int, binning: str) -> Bins:
    """Put rows into bins of equal width or of about equal numbers of rows; a bin holds its upper edge.

    Rows of one confidence share a bin, whatever their order.
    """
    if binning == "equal_width":
        edges = np.linspace(0, 1, bins + 1)
    else:
        ordered = np.sort(confidence)
        cuts = np.arange(1, bins) * len(ordered) // bins
        inner = (ordered[np.maximum(cuts - 1, 0)] + ordered[cuts]) / 2
        edges = np.concatenate([ordered[:1], inner, ordered[-1:]])
    place = np.searchsorted(edges[1:-1], confidence, side="left")
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):  # empty bins have no mean
        mean, accuracy = (np.bincount(place, values, minlength=bins) / counts for values in (confidence, is_right))
        off = (is_right - confidence) - (accuracy - mean)[place]
        noise = np.bincount(place, off**2, minlength=bins) / np.where(counts > 1, (counts - 1) * counts, np.nan)
    return Bins(edges, counts, mean, accuracy, noise)


def top_label_bins(probabilities: Array, labels: LabelArray, bins: int, binning: str) -> Bins:
    """Put rows into bins by the probability of their likeliest class."""
    is_right = (probabilities.argmax(1) == labels).astype(np.float64)
    return binned(probabilities.max(1), is_right, bins, binning)


def calibration_error(probabilities: Any, labels: Any, *, estimator: str = "equal_width", bins: int = 15) -> float:
    """Return how far confidence and accuracy are apart.

    All but one of the estimators look at the probability of the likeliest class alone. Of a model with little error
    they are too high on average, for noise makes gaps and none is below 0: most of all with few rows and many bins, and
    least of all the debiased one.

    Args:
        probabilities: Of shape (rows, classes), a tensor or an array; each row sums to 1. One column is the probability
            of the second of two classes.
        labels: The true classes, integers from 0, of shape (rows,).
        estimator: Of the error. Default: ``"equal_width"``.

            - ``"equal_width"``: the expected calibration error (ECE). The mean over rows of the difference between mean
              confidence and accuracy in their bin, with bins of equal width.
            - ``"equal_mass"``: the same with bins of about equally many rows, the adaptive one.
            - ``"debiased"``: the root of the mean squared difference, in bins of about equally many rows, less what the
              labels' noise adds to it; 0 where the noise explains all. What noise adds is the sample variance of right
              (1 or 0) less confidence, over the bin's number of rows; of equal confidences this is the published
              formula. Before it is cut off at 0, the square has no bias where all rows of a bin are off by the same,
              as in a calibrated model, and little elsewhere: it is too low by the variance of that over the number of
              rows. Noise is seen in bins of two rows or more, so of few rows there are fewer bins, and rows that ties
              leave alone in a bin do not count.
            - ``"maximum"``: the largest difference of any bin, of equal width.
            - ``"classwise"``: the mean over classes of the difference between the class's mean probability and its
              share, in bins of equal width; also called static calibration error.
            - ``"smooth"``: no bins but a Gaussian kernel, as wide as the error itself. It needs SciPy.
        bins: How many, in ``[1, 10**6]``; the smooth one has none. Default: 15.

    Returns:
        The error, from 0 (calibrated) to 1.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If SciPy is missing and `estimator` is ``"smooth"``.

    Examples:
        >>> import torch
        >>> from dropkit import uncertainty
        >>> probabilities = torch.tensor([[0.8, 0.2]]).expand(10, 2)
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])  # right six times out of ten
        >>> round(uncertainty.calibration_error(probabilities, labels), 6)
        0.2

    References:
        Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", equations 3 and 5. Nguyen
        and O'Connor (2015), "Posterior calibration and exploratory analysis for natural language processing models",
        of equal mass. Kumar, Liang and Ma (2019), "Verified uncertainty calibration", section 5, of the debiased one.
        Nixon, Dusenberry, Zhang, Jerfel and Tran (2019), "Measuring calibration in deep learning", of classes.
        Błasiok and Nakkiran (2024), "Smooth ECE: principled reliability diagrams via kernel smoothing".
    """
    where = "calibration_error"
    estimator, bins = _ESTIMATOR.check(where, "estimator", estimator), BINS.check(where, "bins", bins)
    found, classes = rows_of(where, probabilities, labels)
    if estimator == "classwise":
        each = [binned(of, (classes == k).astype(float), bins, "equal_width") for k, of in enumerate(found.T)]
        return float(np.mean([(of.share * of.gap).sum() for of in each]))
    if estimator == "smooth":
        return _smooth(found.max(1), found.argmax(1) == classes)
    if estimator == "debiased":
        if len(found) < 2:
            raise argument_error(where, "probabilities", "two rows or more for the debiased estimator", found.shape)
        return _debiased(top_label_bins(found, classes, min(bins, len(found) // 2), "equal_mass"))
    top = top_label_bins(found, classes, bins, "equal_mass" if estimator == "equal_mass" else "equal_width")
    return float(top.gap.max() if estimator == "maximum" else (top.share * top.gap).sum())


def _debiased(top: Bins) -> float:
    """Return the root of the mean debiased square, 0 if that is negative."""
    return float(max(debiased_square(top), 0.0) ** 0.5)


def debiased_square(top: Bins) -> float:
    """Return the mean squared gap less an unbiased estimate of what noise adds to it, over bins that show noise.

    Of a bin's n rows let d be whether one is right, less its confidence. Of independent d of one mean and one variance,
    the squared mean of n has the expectation E[d]² + Var[d] / n, and the sample variance of d has that of Var[d]: what
    is left has that of E[d]². If confidences c are given, d has the mean g = P(right) - c and the variance v of its
    label: the squared mean then has the expectation mean(g)² + mean(v) / n, and the sample variance that of mean(v)
    and the sample variance of g, which is 0 if g is one number. Where c is one number, the sample variance is
    n / (n - 1) accuracy (1 - accuracy), which gives the formula of Kumar et al.
    """
    shows_noise = top.counts > 1
    squares = top.gap[shows_noise] ** 2 - top.noise[shows_noise]
    return float(np.average(squares, weights=top.counts[shows_noise]))


def _smooth(confidence: Array, is_right: Any) -> float:
    """Return the integral of the smoothed residuals' size, at the bandwidth that equals it.

    A Gaussian that is reflected at 0 and 1 is the kernel of heat on a rod whose ends are insulated, so smoothing
    shrinks the coefficients of the cosine transform. The integral falls as the bandwidth grows.
    """
    require("scipy", "uncertainty", "The smooth calibration error")
    from scipy import fft

    cell = np.minimum((confidence * _GRID).astype(int), _GRID - 1)
    waves = fft.dct(np.bincount(cell, is_right - confidence, minlength=_GRID) / len(confidence))
    frequencies = np.pi * np.arange(_GRID)

    def error(bandwidth: float) -> float:
        smoothed = fft.idct(waves * np.exp(-0.5 * (frequencies * bandwidth) ** 2))
        return float(np.abs(smoothed).sum())

    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return low
