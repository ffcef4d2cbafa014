"""Risk-coverage curves against their definition, over all orders of tied rows."""

import itertools
import math

import numpy as np
import pytest

from dropkit.uncertainty import risk_coverage


def curve(losses: list[float]) -> list[float]:
    return [sum(losses[:n]) / n for n in range(1, len(losses) + 1)]


def test_the_curve_is_the_mean_over_all_orders_of_tied_rows() -> None:
    uncertainty, losses = [0.3, 0.1, 0.3, 0.2, 0.3, 0.2], [1.0, 0.0, 0.5, 2.0, 0.0, 0.25]
    orders = [
        order for order in itertools.permutations(range(6))
        if all(uncertainty[a] <= uncertainty[b] for a, b in itertools.pairwise(order))
    ]  # fmt: skip
    assert len(orders) == math.factorial(3) * math.factorial(2)
    expected = np.mean([curve([losses[row] for row in order]) for order in orders], axis=0)
    found = risk_coverage(uncertainty, losses)
    np.testing.assert_allclose(found.risk, expected, rtol=1e-12)
    np.testing.assert_allclose(found.coverage, np.arange(1, 7) / 6)
    assert found.area == pytest.approx(expected.mean(), rel=1e-12)
    assert found.excess == pytest.approx(expected.mean() - np.mean(curve(sorted(losses))), rel=1e-12)


def test_the_best_order_has_no_excess_and_no_order_has_the_error_rate_everywhere() -> None:
    losses = np.random.default_rng(0).exponential(size=50)
    assert risk_coverage(losses, losses).excess == 0
    assert risk_coverage(-losses, losses).excess > 0
    np.testing.assert_allclose(risk_coverage(np.zeros(50), losses).risk, losses.mean())


def test_the_best_area_of_an_error_rate_tends_to_its_closed_form() -> None:
    """Geifman, Uziel and El-Yaniv: r + (1 - r) log(1 - r)."""
    is_wrong = np.arange(100_000) < 20_000
    found = risk_coverage(is_wrong, is_wrong)
    assert found.area == pytest.approx(0.2 + 0.8 * math.log(0.8), abs=1e-4)


def test_a_curve_is_shown_in_a_line() -> None:
    assert repr(risk_coverage([0.1, 0.2, 0.7, 0.9], [0, 1, 0, 1])) == "RiskCoverage(rows=4, area=0.3333, excess=0.125)"
