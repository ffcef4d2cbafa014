"""Detection of inputs from elsewhere: whether a model is less certain of them than of those that it was made for."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dropkit._checks import require
from dropkit.uncertainty.metrics.inputs import Array, LabelArray, numbers

__all__ = ["Detection", "detection", "scores_and_origins"]


@dataclass(frozen=True)
class Detection:
    """How well a score tells inputs from outside the distribution, called outside, from those of it, called inside.

    Args:
        auroc: The area under the ROC curve: the probability that one from outside scores higher than one from inside,
            where equal scores count half. 0.5 is chance.
        aupr_outside: The average precision in finding those from outside. Chance is their share.
        aupr_inside: The average precision in finding those from inside, by low scores. Chance is their share.
        fpr_at_95: The share of those from outside that pass for inside under the threshold below which 95 % of those
            from inside lie. Less is better; 0.95 is chance.
    """

    auroc: float
    aupr_outside: float
    aupr_inside: float
    fpr_at_95: float


def scores_and_origins(where: str, inside: Any, outside: Any) -> tuple[Array, LabelArray]:
    """Return all scores in a row, and 1 for those from outside."""
    parts = [numbers(where, "inside", inside, rank=1), numbers(where, "outside", outside, rank=1)]
    return np.concatenate(parts), np.repeat([0, 1], [len(part) for part in parts])


def detection(inside: Any, outside: Any) -> Detection:
    """Return how well a score detects inputs from outside the distribution. It needs scikit-learn.

    Args:
        inside: Scores of inputs like those that the model was trained on, higher for the less certain, such as entropy
            or mutual information; of shape (rows,), a tensor or an array.
        outside: Scores of inputs from elsewhere, of shape (other rows,).

    Returns:
        Areas under curves, and the error at the customary threshold.

    Raises:
        ArgumentError: If a score is not finite, there is none, or there is more than one axis.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If scikit-learn is missing.

    Examples:
        >>> from dropkit import uncertainty
        >>> found = uncertainty.detection(inside=[0.1, 0.2, 0.3, 0.6], outside=[0.5, 0.9])
        >>> found.auroc, found.fpr_at_95
        (0.875, 0.5)

    References:
        Hendrycks and Gimpel (2017), "A baseline for detecting misclassified and out-of-distribution examples in neural
        networks", section 2. Liang, Li and Srikant (2018), "Enhancing the reliability of out-of-distribution image
        detection in neural networks", of the error at 95 %.
    """
    require("sklearn", "uncertainty", "Detection")
    from sklearn import metrics

    scores, is_outside = scores_and_origins("detection", inside, outside)
    passed, found, _ = metrics.roc_curve(1 - is_outside, -scores, drop_intermediate=False)
    return Detection(
        auroc=float(metrics.roc_auc_score(is_outside, scores)),
        aupr_outside=float(metrics.average_precision_score(is_outside, scores)),
        aupr_inside=float(metrics.average_precision_score(1 - is_outside, -scores)),
        fpr_at_95=float(passed[found >= 0.95][0]),
    )
