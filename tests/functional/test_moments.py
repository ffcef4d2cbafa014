"""Exact laws: all masks enumerated, their probabilities summed in float64."""

import itertools

import pytest
import torch

from dropkit import random
from dropkit.functional import dropout
from tests.helpers.contract import RATES, all_masks, chances, realised

X = torch.tensor([0.36, -0.13, 0.42, 7.0, -2.5], dtype=torch.float64)
MASKS = all_masks(5)


def test_the_probabilities_of_all_masks_sum_to_one() -> None:
    for p in RATES:
        torch.testing.assert_close(chances(MASKS, p).sum().item(), 1.0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", RATES)
def test_mean_variance_and_covariance_by_vmap_over_all_masks(p: float) -> None:
    out = torch.vmap(lambda mask: dropout(X, p, mask=mask))(MASKS)
    weights, r = chances(MASKS, p), realised(p)
    torch.testing.assert_close(weights @ out, X, rtol=1e-12, atol=0)
    deviations = out - X
    covariance = deviations.T @ (weights.unsqueeze(1) * deviations)
    # Off the diagonal, terms as large as the variances cancel.
    tolerance = 1e-12 * covariance.diagonal().max().item()
    torch.testing.assert_close(covariance, torch.diag(X.square() * r / (1 - r)), rtol=1e-12, atol=tolerance)


@pytest.mark.parametrize("p", RATES)
def test_the_original_form_has_the_same_mean_in_training_as_its_output_in_evaluation(p: float) -> None:
    out = dropout(X.expand(MASKS.shape), p, mask=MASKS, scale_at="eval")
    mean = chances(MASKS, p) @ out
    torch.testing.assert_close(mean, dropout(X, p, False, scale_at="eval"), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, X * (1 - realised(p)), rtol=1e-12, atol=0)
    variance = chances(MASKS, p) @ (out - mean).square()
    torch.testing.assert_close(variance, X.square() * realised(p) * (1 - realised(p)), rtol=1e-12, atol=0)


def test_the_original_form_leaves_survivors_alone() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        x = X.to(dtype)
        keep = torch.tensor([True, False, True, True, False])
        assert torch.equal(dropout(x, 0.3, mask=keep, scale_at="eval"), torch.where(keep, x, 0))
        factor = torch.tensor(1 - realised(0.3), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(dropout(x, 0.3, False, scale_at="eval"), (x * factor).to(dtype))
    assert torch.equal(dropout(X, 1.0, False, scale_at="eval"), torch.zeros_like(X))
    assert dropout(X, 0.0, False, scale_at="eval") is X
    assert dropout(X, 0.0, True, scale_at="eval") is X


@pytest.mark.parametrize("p", RATES)
def test_units_that_share_a_draw_are_dropped_together(p: float) -> None:
    x = X[:4].reshape(2, 2)
    masks = torch.tensor(list(itertools.product((False, True), repeat=2))).reshape(4, 1, 2)
    out = torch.stack([dropout(x, p, mask=mask) for mask in masks])
    weights, r = chances(masks.reshape(4, 2), p), realised(p)
    torch.testing.assert_close(torch.einsum("m,mij->ij", weights, out), x, rtol=1e-12, atol=0)
    covariance = torch.einsum("m,mi,mi->i", weights, out[:, 0] - x[0], out[:, 1] - x[1])
    torch.testing.assert_close(covariance, x[0] * x[1] * r / (1 - r), rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", RATES)
def test_a_quadratic_loss_gains_the_ridge_penalty_of_its_mean(p: float) -> None:
    """Averaged over all masks, squared error gains (r / (1 - r)) sum (w x)^2: dropout as a penalty, exactly."""
    w = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.3], dtype=torch.float64)
    losses = torch.vmap(lambda mask: (dropout(X, p, mask=mask) @ w - 1).square())(MASKS)
    r = realised(p)
    want = (X @ w - 1).square() + r / (1 - r) * (w * X).square().sum()
    torch.testing.assert_close(chances(MASKS, p) @ losses, want, rtol=1e-12, atol=0)


def test_survivors_of_half_types_are_unbiased() -> None:
    """Over many values the mean relative error is a tenth of the bias that a rounded factor would bring."""
    x = torch.linspace(1, 2, 4001, dtype=torch.float64)
    for dtype, p in ((torch.float16, 0.1), (torch.bfloat16, 0.1), (torch.float16, 0.7), (torch.bfloat16, 0.3)):
        values = x.to(dtype)
        out = dropout(values, p, mask=torch.ones(len(x), dtype=torch.bool))
        ratio = (out.double() / values.double()).mean().item() * (1 - random.threshold(p) / 2**32)
        rounded = torch.tensor(1 / (1 - p)).to(dtype).item() * (1 - p)
        assert abs(ratio - 1) < abs(rounded - 1) / 10
