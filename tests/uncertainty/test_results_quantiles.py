"""Quantiles are exact of few passes, and of many no farther from exact ones than they say."""

import math

import pytest
import torch
from scipy import stats

from dropkit.errors import ArgumentError, UnavailableError
from dropkit.uncertainty.results.running import Running

LEVELS = torch.tensor([0.0, 0.025, 0.1, 0.25, 0.5, 0.77, 0.975, 1.0], dtype=torch.float64)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def regression(values, chunk=50, **options):
    running = Running("regression", **({"quantiles": True} | options))
    for part in values.split(chunk):
        running.add(values[0], [part])
    return running.result()


def normal(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


FAMILIES = {
    "normal": normal(2000, 30),
    "heavy": normal(2000, 30) / normal(2000, 30).roll(1, 1).abs().clamp_min(1e-3),
    "few-values": (normal(2000, 30) * 2).round(),
    "constant": torch.full((2000, 30), 3.5, dtype=torch.float64),
    "mostly-zero": normal(2000, 30).sub(2).relu(),
    "two-modes": normal(2000, 30) + 100 * normal(2000, 30).flip(1).sign(),
    "drifting": normal(2000, 30) + torch.linspace(0, 20, 2000, dtype=torch.float64).unsqueeze(1),
    "far-from-zero": 1e6 + 1e-3 * normal(2000, 30),
}


@pytest.mark.parametrize("n", [1, 2, 3, 49, 50])
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_few_passes_have_exact_quantiles(n, chunk):
    values = normal(n, 4, 3)
    result = regression(values, chunk)
    torch.testing.assert_close(result.quantile(LEVELS), values.quantile(LEVELS, 0), **CLOSE)
    assert result.quantile_error(LEVELS).count_nonzero() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_that_were_kept_have_exact_quantiles(family):
    values = FAMILIES[family]
    result = regression(values, keep_samples=True)
    torch.testing.assert_close(result.quantile(LEVELS), values.quantile(LEVELS, 0), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [51, 333, 2000])
def test_quantiles_of_many_passes_are_within_their_bounds(family, n):
    values = FAMILIES[family][:n]
    result = regression(values, 61)
    bound = result.quantile_error(LEVELS)
    apart = (result.quantile(LEVELS) - values.quantile(LEVELS, 0)).abs()
    scale = values.abs().amax(0)
    assert bool((apart <= bound + 1e-12 * scale).all())
    least, most = result.quantile(0.0), result.quantile(1.0)
    assert bool((least >= values.amin(0) - 1e-12 * scale).all())
    assert bool((most <= values.amax(0) + 1e-12 * scale).all())


def test_bounds_are_small_where_passes_are_normal():
    result = regression(FAMILIES["normal"])
    inner = result.quantile_error([0.025, 0.5, 0.975])
    # In standard deviations; an inner bin is about 0.1 wide.
    assert float(inner.median()) < 0.1
    assert float(inner.max()) < 0.3
    apart = (result.quantile(LEVELS[1:-1]) - FAMILIES["normal"].quantile(LEVELS[1:-1], 0)).abs()
    assert float(apart.max()) < 0.06
    assert float(apart.mean()) < 0.01


def test_chunks_do_not_matter_for_a_histogram():
    one, other = (regression(FAMILIES["normal"], chunk) for chunk in (2000, 13))
    torch.testing.assert_close(one.quantile(LEVELS), other.quantile(LEVELS), **CLOSE)
    torch.testing.assert_close(one.quantile_error(LEVELS), other.quantile_error(LEVELS), **CLOSE)


def test_intervals_are_central():
    values = normal(40, 6)
    low, high = regression(values).interval(0.8)
    torch.testing.assert_close(low, values.quantile(0.1, 0), **CLOSE)
    torch.testing.assert_close(high, values.quantile(0.9, 0), **CLOSE)


def test_levels_may_be_one_or_several():
    result = regression(normal(40, 6, 2))
    assert result.quantile(0.5).shape == (6, 2)
    assert result.quantile([0.5]).shape == (1, 6, 2)
    assert result.quantile(torch.tensor([0.1, 0.5])).shape == (2, 6, 2)
    assert result.error.quantile((0.1, 0.5)).shape == (2, 6, 2)


@pytest.mark.parametrize("n", [50, 2000])
def test_numbers_that_are_missing_have_no_quantiles(n):
    values = normal(n, 3)
    values[n - 1, 1] = math.nan
    result = regression(values)
    assert result.quantile([0.1, 0.5]).isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("options", [{}, {"keep_samples": True}], ids=["streamed", "kept"])
def test_infinite_numbers_are_passes_like_others(options):
    values = normal(2000, 3)
    values[::100, 0], values[50::100, 1] = math.inf, -math.inf  # 1 % of them
    result = regression(values, **options)
    q = torch.tensor([0.005, 0.1, 0.5, 0.9, 0.995])
    found, bound = result.quantile(q), result.quantile_error(q)
    assert found[-1, 0] == math.inf
    assert found[0, 1] == -math.inf
    finite = found.isfinite()
    assert finite.sum() == 13
    assert bool(((found - values.quantile(q.double(), 0)).abs() <= bound + 1e-12)[finite].all())
    assert float(bound[1:4].max()) < 0.3


def test_numbers_that_are_always_infinite():
    values = torch.full((300, 2), math.inf)
    values[:, 1] *= -1
    result = regression(values)
    assert result.quantile(0.5).tolist() == [math.inf, -math.inf]
    assert result.quantile_error(0.5).tolist() == [0, 0]


@pytest.mark.parametrize("first", [True, False], ids=["early", "late"])
def test_few_outliers_do_not_make_quantiles_rough(first):
    values = normal(2000, 4)
    values[7 if first else 77 :: 80] *= 3e4
    result = regression(values)
    q = torch.tensor([0.05, 0.5, 0.95])
    apart = (result.quantile(q) - values.quantile(q.double(), 0)).abs()
    assert float(apart.max()) < 0.1
    assert float(result.quantile_error(q).max()) < 0.3
    result.interval(0.9)


def test_an_interval_with_rough_ends_warns():
    values = normal(2000, 2)
    values[60::8, 0] += 1e5
    with pytest.warns(UserWarning, match="interval: of 1 of 2 numbers an end may be off by more than half"):
        regression(values * torch.linspace(1, 2, 2000).unsqueeze(1)).interval(0.9)


def test_results_stay_as_they_were_while_more_passes_come():
    values = FAMILIES["normal"]
    running = Running("regression", quantiles=True)
    running.add(values[0], [values[:1000]])
    result = running.result()
    before = result.quantile(LEVELS), result.mean.clone()
    running.add(values[0], [values[1000:] + 5])
    assert torch.equal(result.quantile(LEVELS), before[0])
    assert torch.equal(result.mean, before[1])


def test_monte_carlo_errors_of_quantiles_are_those_of_the_density():
    """The asymptotic error sqrt(q (1 - q) / n) / density, averaged over 2,000 numbers."""
    values = normal(1600, 2000)
    result = regression(values)
    for q in (0.1, 0.5, 0.9):
        expected = math.sqrt(q * (1 - q) / 1600) / stats.norm.pdf(stats.norm.ppf(q))
        assert float(result.error.quantile(q).mean()) == pytest.approx(expected, rel=0.05)
        assert float(result.quantile(q).std()) == pytest.approx(expected, rel=0.1)
    assert regression(normal(1, 3)).error.quantile(0.5).isnan().all()


def test_quantiles_that_were_not_gathered():
    values = normal(5, 2)
    with pytest.raises(UnavailableError, match="Quantiles were not gathered"):
        regression(values, quantiles=False).quantile(0.5)
    running = Running(None)
    running.add(values[0], [values])
    with pytest.raises(UnavailableError, match="quantile needs task='regression'; this result has task=None"):
        running.result().interval()


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, "0.5", None, [], [0.5, 2], torch.tensor([0.5, 2.0]), True])
def test_levels_that_are_none(q):
    result = regression(normal(5, 2))
    for call in (result.quantile, result.quantile_error, result.error.quantile):
        with pytest.raises(ArgumentError, match="`q"):
            call(q)


@pytest.mark.parametrize("level", [0, 1, 1.5, math.nan, "0.9", None, [0.9]])
def test_intervals_that_are_none(level):
    result = regression(normal(5, 2))
    for call in (result.interval, result.gaussian_interval):
        with pytest.raises(ArgumentError, match="`level` must be a number in"):
            call(level)
