"""Interval scores against the pinball loss, and against what is known of a normal distribution."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_pinball_loss

from dropkit.uncertainty import interval_scores


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_interval_score_is_that_of_the_pinball_losses_of_its_ends(level: float) -> None:
    rng = np.random.default_rng(0)
    targets, lower = rng.normal(size=200), rng.normal(size=200) - 1
    upper = lower + rng.exponential(size=200)
    alpha = 1 - level
    low, high = (mean_pinball_loss(targets, end, alpha=a) for end, a in ((lower, alpha / 2), (upper, 1 - alpha / 2)))
    found = interval_scores(lower, upper, targets, level=level)
    assert found.score == pytest.approx(2 / alpha * (low + high), rel=1e-9)
    assert found.width == pytest.approx((upper - lower).mean())
    assert found.coverage == ((targets >= lower) & (targets <= upper)).mean()


def test_the_ends_belong_to_an_interval() -> None:
    assert interval_scores([0.0, 1.0], [1.0, 1.0], [0.0, 1.0], level=0.5).coverage == 1


def test_the_true_quantiles_have_the_best_score() -> None:
    """The targets are evenly spaced quantiles of the standard normal, so that averages are nearly integrals."""
    targets = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    half = stats.norm.ppf(0.95)
    found = {
        scale: interval_scores(np.full(20_000, -scale), np.full(20_000, scale), targets, level=0.9)
        for scale in (0.9 * half, half, 1.1 * half)
    }
    scores = [each.score for each in found.values()]
    assert min(scores) == scores[1]
    assert found[half].coverage == pytest.approx(0.9, abs=1e-4)
    assert scores[1] == pytest.approx(2 * stats.norm.pdf(half) / 0.05, rel=1e-3)


def test_tensors_of_any_shape_are_taken() -> None:
    lower, targets = torch.zeros(2, 3), torch.tensor([[0.5, 2.0, 0.5], [0.5, 0.5, -1.0]])
    found = interval_scores(lower, lower + 1, targets, level=0.8)
    assert (found.coverage, found.width) == (4 / 6, 1)
    assert found.score == pytest.approx(1 + 10 * 2 / 6)
