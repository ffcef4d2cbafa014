"""Proper scores against scikit-learn, torch's distributions and the formulas of their parts."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import distributions

from dropkit.uncertainty import (
    brier_decomposition,
    brier_score,
    gaussian_negative_log_likelihood,
    mixture_negative_log_likelihood,
    negative_log_likelihood,
)


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 3, generator=generator, dtype=torch.float64)
    return logits.softmax(1), torch.randint(3, (300,), generator=generator)


def test_the_brier_score_is_the_sum_of_scikit_learns_over_classes(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    probabilities, labels = rows
    each = [metrics.brier_score_loss(labels == k, probabilities[:, k]) for k in range(3)]
    assert brier_score(probabilities, labels) == pytest.approx(sum(each), rel=1e-12)


def test_scores_of_many_classes_make_no_table_of_classes_by_classes() -> None:
    """That would take 200 MB here, and 20 GB of a vocabulary. Ten rows call each of 5,000 classes equally likely."""
    classes = 5_000
    probabilities, labels = np.full((10, classes), 1 / classes), np.arange(10) * 500
    expected = (1 - 1 / classes) ** 2 + (classes - 1) / classes**2
    tracemalloc.start()
    try:
        score, parts = brier_score(probabilities, labels), brier_decomposition(probabilities, labels, bins=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert score == pytest.approx(expected, rel=1e-12)
    assert parts.uncertainty == pytest.approx(0.9, rel=1e-12)  # ten classes of share 0.1: 10 * 0.1 * 0.9
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(expected, rel=1e-12)
    assert peak < 20e6


def test_the_negative_log_likelihood_is_scikit_learns(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert negative_log_likelihood(*rows) == pytest.approx(metrics.log_loss(rows[1], rows[0]), rel=1e-12)


def test_a_true_class_of_probability_0_costs_infinitely_much() -> None:
    assert negative_log_likelihood([[1.0, 0.0], [0.5, 0.5]], [1, 0]) == math.inf


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_parts_of_the_brier_score_are_those_of_their_formulas(
    rows: tuple[torch.Tensor, torch.Tensor], bins: int
) -> None:
    """Resolution is that between bins, less the variance inside them, plus twice the covariance with what came true."""
    probabilities, labels = (value.numpy() for value in rows)
    reliability = resolution = uncertainty = 0.0
    for k in range(3):
        p, true = probabilities[:, k], (labels == k).astype(float)
        uncertainty += true.mean() * (1 - true.mean())
        place = np.ceil(p * bins).astype(int)
        for b in np.unique(place):
            inside = place == b
            share = inside.mean()
            reliability += share * (p[inside].mean() - true[inside].mean()) ** 2
            resolution += share * (true[inside].mean() - true.mean()) ** 2
            resolution += share * (2 * np.cov(p[inside], true[inside], bias=True)[0, 1] - p[inside].var())
    parts = brier_decomposition(probabilities, labels, bins=bins)
    assert parts.reliability == pytest.approx(reliability, rel=1e-9)
    assert parts.resolution == pytest.approx(resolution, rel=1e-9)
    assert parts.uncertainty == pytest.approx(uncertainty, rel=1e-9)


def test_whoever_states_the_shares_of_classes_has_neither_reliability_nor_resolution() -> None:
    parts = brier_decomposition(np.tile([0.25, 0.75], (8, 1)), [0, 0, 1, 1, 1, 1, 1, 1])
    assert (parts.reliability, parts.resolution, parts.uncertainty) == (0, 0, 0.375)


def test_half_precision_is_taken_by_the_decomposition_too(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    parts = brier_decomposition(rows[0].bfloat16(), rows[1])
    total = parts.reliability - parts.resolution + parts.uncertainty
    assert total == pytest.approx(brier_score(*rows), rel=0.02)


@pytest.mark.parametrize("std", [0.5, torch.linspace(0.1, 2, 10)])
def test_the_gaussian_one_is_that_of_torch(std: float | torch.Tensor) -> None:
    mean, targets = torch.arange(10.0), torch.arange(10.0).flip(0) / 3
    expected = -distributions.Normal(mean.double(), torch.as_tensor(std).double()).log_prob(targets.double()).mean()
    assert gaussian_negative_log_likelihood(mean, std, targets) == pytest.approx(expected.item(), rel=1e-7)


def test_densities_of_several_targets_multiply() -> None:
    mean, targets = np.arange(6.0).reshape(3, 2), np.ones((3, 2))
    each = gaussian_negative_log_likelihood(mean.ravel(), 1.0, targets.ravel())
    assert gaussian_negative_log_likelihood(mean, 1.0, targets) == pytest.approx(2 * each)


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_the_mixture_is_that_of_torch(outputs: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(7, 5, *outputs, generator=generator, dtype=torch.float64)
    targets = torch.randn(5, *outputs, generator=generator, dtype=torch.float64)
    normal = distributions.Normal(samples.movedim(0, 1), 2.5**-0.5)
    component = distributions.Independent(normal, 1) if outputs else normal
    mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(5, 7)), component)
    found = mixture_negative_log_likelihood(samples, targets, precision=2.5)
    assert found == pytest.approx(-mixture.log_prob(targets).mean().item(), rel=1e-6)


def test_a_mixture_of_one_pass_is_gaussian_and_far_targets_do_not_underflow() -> None:
    mean, targets = np.array([0.0, 1e3]), np.array([1e3, -1e3])
    expected = gaussian_negative_log_likelihood(mean, 0.1, targets)
    assert mixture_negative_log_likelihood(mean[None], targets, precision=100.0) == pytest.approx(expected, rel=1e-12)
    assert expected > 1e8
