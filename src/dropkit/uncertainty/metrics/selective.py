"""Selective prediction: how wrong a model is on what it is surest of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dropkit._checks import argument_error
from dropkit.uncertainty.metrics.inputs import Array, numbers, same_shape

__all__ = ["RiskCoverage", "curve_of", "risk_coverage"]


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The risk-coverage curve, with one point for each number of rows that are answered.

    Args:
        coverage: The share of rows that are answered, the surest first: 1 / rows, 2 / rows and so on to 1.
        risk: The mean loss of those.
        best: The same if rows were in the order of their loss.
        area: The mean risk over all coverages (AURC): less is better.
        excess: How much of it is due to the order of the rows (excess AURC): 0 for the best order.
    """

    coverage: Array
    risk: Array
    best: Array
    area: float
    excess: float

    def __repr__(self) -> str:
        """Show the number of rows and the areas."""
        return f"RiskCoverage(rows={len(self.coverage)}, area={self.area:.4g}, excess={self.excess:.4g})"


def risk_coverage(uncertainty: Any, losses: Any) -> RiskCoverage:
    """Return the risk of answering only the surest rows, for every share of rows.

    Rows of equal uncertainty are in random order: the curve is the mean over all of them.

    Args:
        uncertainty: A score a row, higher for the less certain, of shape (rows,), a tensor or an array.
        losses: What each row's answer costs, 0 or more, of shape (rows,), such as whether it is wrong.

    Returns:
        The curve, the area under it, and the part of the area that a better order would save.

    Raises:
        ArgumentError: If a number is not finite, a loss is negative, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.

    Examples:
        >>> from dropkit import uncertainty
        >>> curve = uncertainty.risk_coverage([0.1, 0.2, 0.7, 0.9], [False, True, False, True])
        >>> [round(risk, 3) for risk in curve.risk.tolist()]
        [0.0, 0.5, 0.333, 0.5]
        >>> round(curve.area, 4), round(curve.excess, 4)
        (0.3333, 0.125)

    References:
        Geifman, Uziel and El-Yaniv (2019), "Bias-reduced uncertainty estimation for deep neural classifiers".
    """
    return curve_of("risk_coverage", uncertainty, losses)


def curve_of(where: str, uncertainty: Any, losses: Any) -> RiskCoverage:
    """Do what `risk_coverage` does, for a function of another name."""
    scores = numbers(where, "uncertainty", uncertainty, rank=1)
    costs = same_shape(where, "losses", losses, "uncertainty", scores.shape)
    if (costs < 0).any():
        raise argument_error(where, "losses", "0 or more", float(costs.min()))
    _, ties, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    expected = np.repeat(np.bincount(ties, costs) / sizes, sizes)  # of the next row, whichever of the tie it is
    answered = np.arange(1, len(scores) + 1)
    risk, best = expected.cumsum() / answered, np.sort(costs).cumsum() / answered
    return RiskCoverage(answered / len(scores), risk, best, float(risk.mean()), float((risk - best).mean()))
