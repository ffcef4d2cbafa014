"""Probabilities and their entropy, computed without a logarithm for every class, are those of the formulas."""

import math

import pytest
import torch

from dropkit.uncertainty.results.classification import _softmax_and_entropy

LOGITS = {
    "ordinary": torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3,
    "certain": torch.tensor([[0.0, -40.0, -80.0], [1e4, 0.0, -1e4]], dtype=torch.float64),
    "excluded": torch.tensor([[0.0, -math.inf, 1.0], [-math.inf, -math.inf, 5.0]], dtype=torch.float64),
    "alike": torch.full((2, 5), 1e8, dtype=torch.float64),
}


@pytest.mark.parametrize("name", LOGITS)
def test_they_are_those_of_the_formulas(name):
    logits = LOGITS[name]
    found, entropy = _softmax_and_entropy(logits)
    expected = logits.softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(entropy, torch.special.entr(expected).sum(-1), rtol=1e-13, atol=1e-15)


def test_a_tiny_entropy_keeps_its_digits():
    """A class with p = exp(-40) beside a certain one has 40 p; (1 - p) log(1 - p) is lost to rounding."""
    _, entropy = _softmax_and_entropy(LOGITS["certain"][:1, :2])
    assert entropy.item() == pytest.approx(40 * math.exp(-40), rel=1e-12, abs=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_probability_is_nan(value):
    found, entropy = _softmax_and_entropy(torch.tensor([[value, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert found[0].isnan().all()
    assert entropy.isnan().tolist() == [True, False]
