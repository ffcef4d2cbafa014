"""Detection against counting."""

import numpy as np
import pytest
import torch

from dropkit.uncertainty import detection

INSIDE = np.round(np.random.default_rng(0).normal(0, 1, 100), 1)  # rounded: with ties
OUTSIDE = np.round(np.random.default_rng(1).normal(1, 1, 60), 1)


def test_the_area_under_the_roc_curve_counts_pairs_and_ties_half() -> None:
    above = (OUTSIDE[:, None] > INSIDE).mean() + (OUTSIDE[:, None] == INSIDE).mean() / 2
    assert detection(INSIDE, OUTSIDE).auroc == pytest.approx(above, rel=1e-12)


def precision_by_counting(scores: np.ndarray, is_wanted: np.ndarray) -> float:
    """The mean, over all that are wanted, of the precision at their score as the threshold."""
    found = [is_wanted[scores >= score].mean() for score in scores[is_wanted]]
    return float(np.mean(found))


def test_the_areas_under_the_precision_recall_curves_are_average_precisions() -> None:
    scores, is_outside = np.concatenate([INSIDE, OUTSIDE]), np.repeat([False, True], [100, 60])
    found = detection(INSIDE, OUTSIDE)
    assert found.aupr_outside == pytest.approx(precision_by_counting(scores, is_outside), rel=1e-12)
    assert found.aupr_inside == pytest.approx(precision_by_counting(-scores, ~is_outside), rel=1e-12)


def test_the_error_at_95_percent_is_what_the_threshold_of_the_inside_lets_pass() -> None:
    threshold = np.sort(INSIDE)[94]  # the lowest that 95 of 100 do not exceed
    assert detection(INSIDE, OUTSIDE).fpr_at_95 == (threshold >= OUTSIDE).mean()
    assert 0 < detection(INSIDE, OUTSIDE).fpr_at_95 < 1


def test_perfect_reversed_and_useless_scores() -> None:
    low, high = torch.zeros(4), torch.ones(4)
    best, worst, none = detection(low, high), detection(high, low), detection(low, low)
    assert (best.auroc, best.aupr_outside, best.aupr_inside, best.fpr_at_95) == (1, 1, 1, 0)
    assert (worst.auroc, worst.fpr_at_95) == (0, 1)
    assert (none.auroc, none.aupr_outside, none.fpr_at_95) == (0.5, 0.5, 1)
