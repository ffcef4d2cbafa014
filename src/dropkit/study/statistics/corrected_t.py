"""The corrected resampled t-test, for seeds that share rows and so are not independent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dropkit._checks import Integer, argument_error

__all__ = ["CorrectedTest", "corrected_t_test"]

_ROWS = Integer(1, 2**62, "[1, 2**62]")


@dataclass(frozen=True)
class CorrectedTest:
    """The mean difference, its corrected standard error, and the two-sided p-value."""

    mean: float
    standard_error: float
    degrees: int
    p_value: float


def corrected_t_test(differences: Sequence[float], *, training_rows: int, validation_rows: int) -> CorrectedTest:
    """Test whether the mean of paired differences over random splits is zero.

    The splits share rows, so the variance of the mean is not ``s**2 / n`` but about
    ``(1 / n + validation_rows / training_rows) * s**2``.

    Args:
        differences: One number a split, two or more, finite.
        training_rows: Rows that a run learns from, those that choose its epoch included.
        validation_rows: Rows that score a run.

    Returns:
        Mean, corrected standard error, degrees of freedom ``n - 1`` and two-sided p-value.

    Raises:
        ArgumentError: If there are fewer than two differences or one is not finite.
        ArgumentTypeError: If a number of rows is no integer.

    Examples:
        >>> test = corrected_t_test([-0.03, -0.05, -0.01, -0.04], training_rows=3000, validation_rows=1000)
        >>> f"{test.mean:.4f} +- {test.standard_error:.4f}, p = {test.p_value:.3f}"
        '-0.0325 +- 0.0130, p = 0.088'

    References:
        Nadeau and Bengio (2003), "Inference for the generalization error", Machine Learning 52, section 3.1.
    """
    from scipy import stats

    where = "corrected_t_test"
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise argument_error(where, "differences", "two or more finite numbers", differences)
    ratio = _ROWS.check(where, "validation_rows", validation_rows) / _ROWS.check(where, "training_rows", training_rows)
    mean, degrees = float(values.mean()), len(values) - 1
    error = math.sqrt((1 / len(values) + ratio) * float(values.var(ddof=1)))
    if error == 0:
        return CorrectedTest(mean, 0.0, degrees, 1.0 if mean == 0 else 0.0)
    return CorrectedTest(mean, error, degrees, float(2 * stats.t.sf(abs(mean) / error, degrees)))
