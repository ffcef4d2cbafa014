"""The paired bootstrap over rows or groups: how far a mean difference on one set of rows can be trusted."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import Integer, Number, argument_error

__all__ = ["Interval", "paired_bootstrap"]

_RESAMPLES = Integer(1, 10**7, "[1, 10**7]")
_SEED = Integer(0, 2**64 - 1, "[0, 2**64)")
_SHARE = Number(0.0, 1.0, open_low=True, open_high=True)


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    differences: Sequence[float] | npt.NDArray[Any],
    *,
    seed: int,
    groups: Sequence[int] | npt.NDArray[np.int64] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean of the rows' differences with its percentile bootstrap interval.

    Args:
        differences: One number a row, two or more, finite: the loss under one method minus that under the other.
        seed: Of the resampling.
        groups: A number a row, of two groups or more; rows of one number are drawn together, because they are not
            independent. Default: every row alone.
        resamples: How often the rows or groups are drawn anew. Default: 10,000.
        confidence: Coverage of the interval, in (0, 1). Default: 0.95.

    Returns:
        The mean and the ends of the interval.

    Raises:
        ArgumentError: If there are fewer than two rows or groups, one is not finite, or a number is out of range.
        ArgumentTypeError: If a count is no integer.

    Examples:
        >>> interval = paired_bootstrap([-0.2, 0.1, -0.3, -0.1, 0.0, -0.1], seed=0)
        >>> f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
        '-0.10 [-0.20, 0.00]'

    References:
        Efron and Tibshirani (1993), "An introduction to the bootstrap", section 13.3. Davison and Hinkley (1997),
        "Bootstrap methods and their application", section 3.8, of groups.
    """
    from scipy import stats

    where = "paired_bootstrap"
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise argument_error(where, "differences", "two or more finite numbers", differences)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    if names.shape != values.shape or len(np.unique(names)) < 2:
        raise argument_error(where, "groups", "a number a row, of two groups or more", groups)
    place = np.unique(names, return_inverse=True)[1]
    sums, sizes = np.bincount(place, values), np.bincount(place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # equal differences have an interval of no width
        found = stats.bootstrap(
            (sums, sizes),
            lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES.check(where, "resamples", resamples),
            confidence_level=_SHARE.check(where, "confidence", confidence),
            method="percentile",
            batch=1000,
            random_state=np.random.default_rng(_SEED.check(where, "seed", seed)),
        ).confidence_interval
    return Interval(float(values.mean()), float(found.low), float(found.high))
