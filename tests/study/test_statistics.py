"""The statistics, against closed forms, published numbers, SciPy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.study.statistics import corrected_t_test, holm, paired_bootstrap, smallest_effect


def test_corrected_t_by_hand() -> None:
    # mean 3, variance 2.5, and (1/5 + 1/2) * 2.5 = 1.75
    test = corrected_t_test([1, 2, 3, 4, 5], training_rows=200, validation_rows=100)
    assert test.mean == 3
    assert test.degrees == 4
    assert test.standard_error == pytest.approx(math.sqrt(1.75), rel=1e-14)
    assert test.p_value == pytest.approx(2 * stats.t.sf(3 / math.sqrt(1.75), 4), rel=1e-12)


def test_corrected_t_tends_to_the_plain_test() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    plain = stats.ttest_1samp(values, 0)
    test = corrected_t_test(values, training_rows=10**15, validation_rows=1)
    assert test.p_value == pytest.approx(plain.pvalue, rel=1e-9)
    assert corrected_t_test(values, training_rows=3, validation_rows=1).p_value > plain.pvalue


def test_corrected_t_keeps_its_level_where_splits_share_rows() -> None:
    # Differences with the correlation that the correction is made for: rho = validation / (validation + training).
    rng, seeds, rho, studies = np.random.default_rng(1), 8, 0.25, 4000
    shared = rng.normal(size=(studies, 1)) * math.sqrt(rho)
    values = shared + rng.normal(size=(studies, seeds)) * math.sqrt(1 - rho)
    corrected = np.mean([corrected_t_test(v, training_rows=3, validation_rows=1).p_value < 0.05 for v in values])
    plain = np.mean(stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05)
    # Binomial deviation 0.0034: a right test fails this once in 10**4, and the plain one alarms five times as often.
    assert abs(corrected - 0.05) < 4 * 0.0034
    assert plain > 0.2


def test_equal_differences_leave_no_doubt() -> None:
    assert corrected_t_test([0, 0, 0], training_rows=3, validation_rows=1).p_value == 1
    assert corrected_t_test([0.5, 0.5, 0.5], training_rows=3, validation_rows=1).p_value == 0


def test_holm_by_hand() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1 is .02, .03, .06, .04; the last may not fall below the one before.
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_holds_the_family_level() -> None:
    p_values = np.random.default_rng(2).uniform(size=(5000, 3))
    alarms = np.mean([min(holm(dict(zip("abc", row, strict=True))).values()) < 0.05 for row in p_values])
    assert abs(alarms - (1 - (1 - 0.05 / 3) ** 3)) < 4 * 0.0031


def test_smallest_effect_of_the_textbook() -> None:
    # Cohen (1988): a paired t-test at the level .05 needs 34 pairs to see half a deviation with power .8; 33 do not do.
    assert smallest_effect(1 / math.sqrt(34), 33) < 0.5 < smallest_effect(1 / math.sqrt(33), 32)


@pytest.mark.parametrize(("degrees", "level"), [(1, 0.05), (7, 0.05), (7, 0.025), (40, 0.005)])
def test_smallest_effect_has_its_power(degrees: int, level: float) -> None:
    effect = smallest_effect(1.0, degrees, level=level)
    critical = stats.t.isf(level / 2, degrees)
    rng = np.random.default_rng(3)
    t = (rng.normal(size=40_000) + effect) / np.sqrt(rng.chisquare(degrees, 40_000) / degrees)
    assert abs(np.mean(np.abs(t) > critical) - 0.8) < 4 * 0.002
    assert smallest_effect(2.5, degrees, level=level) == pytest.approx(2.5 * effect)


def test_smallest_effect_of_no_spread_is_none() -> None:
    assert smallest_effect(0.0, 7) == 0


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(4).normal(0.1, 1, 2000)
    interval = paired_bootstrap(values, seed=0)
    error = values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert paired_bootstrap(values, seed=0) == interval
    assert paired_bootstrap(values, seed=1) != interval


def test_bootstrap_of_equal_rows_has_no_width() -> None:
    interval = paired_bootstrap([0.25] * 10, seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_bootstrap_of_groups_draws_them_whole() -> None:
    rng = np.random.default_rng(7)
    groups = rng.integers(0, 40, 600)
    values = rng.normal(size=40)[groups] + 0.1 * rng.normal(size=600)
    interval = paired_bootstrap(values, seed=0, groups=groups)
    rows = [np.flatnonzero(groups == name) for name in range(40)]
    means = []
    for _ in range(3000):  # by hand: forty groups drawn with replacement, all their rows in a row
        drawn = np.concatenate([rows[name] for name in rng.integers(0, 40, 40)])
        means.append(values[drawn].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    alone = paired_bootstrap(values, seed=0)
    assert interval.high - interval.low > 2 * (alone.high - alone.low)
    assert paired_bootstrap(values, seed=0, groups=np.arange(600)) == alone


@pytest.mark.parametrize("bad", [[1, 1], [1], [1, 2, 3], [[1, 2]]])
def test_unfit_groups_are_refused(bad: list[int]) -> None:
    with pytest.raises(ArgumentError, match="groups"):
        paired_bootstrap([0.1, 0.2], seed=0, groups=bad)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]]])
def test_unfit_differences_are_refused(bad: list[float]) -> None:
    with pytest.raises(ArgumentError, match="differences"):
        corrected_t_test(bad, training_rows=2, validation_rows=1)
    with pytest.raises(ArgumentError, match="differences"):
        paired_bootstrap(bad, seed=0)


def test_unfit_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="training_rows"):
        corrected_t_test([1, 2], training_rows=0, validation_rows=1)
    with pytest.raises(ArgumentTypeError, match="validation_rows"):
        corrected_t_test([1, 2], training_rows=1, validation_rows=0.5)
    with pytest.raises(ArgumentError, match=r"p_values\['a'\]"):
        holm({"a": 1.5})
    for name, value in (("level", 0.0), ("level", 1.0), ("power", math.nan), ("power", True)):
        with pytest.raises(ArgumentError, match=name):
            smallest_effect(1.0, 7, **{name: value})
    with pytest.raises(ArgumentError, match="standard_error"):
        smallest_effect(-1.0, 7)
    with pytest.raises(ArgumentError, match="degrees"):
        smallest_effect(1.0, 0)
    for name, value in (("resamples", 0), ("confidence", 1.0), ("seed", -1)):
        with pytest.raises(ArgumentError, match=name):
            paired_bootstrap([1, 2], **{"seed": 0, name: value})
