"""Statistical checks of random bits, each with a false-alarm rate of 1e-6 on keys that are fixed beforehand."""

import numpy as np
from scipy import stats

FALSE_ALARM = 1e-6


def check_count(successes: int, trials: int, chance: float) -> None:
    """Check a number of successes, two-sided, against the binomial law."""
    probability = stats.binomtest(int(successes), int(trials), chance).pvalue
    assert probability > FALSE_ALARM, f"{successes} of {trials} at chance {chance}: p = {probability:.1e}"


def check_uniform_counts(counts: np.ndarray) -> None:
    """Check counts of equally likely outcomes, too even or too uneven, against the chi-square law."""
    expected = counts.sum() / counts.size
    assert expected >= 5, "too few draws for the chi-square law"
    tail = stats.chi2.cdf(((counts - expected) ** 2 / expected).sum(), counts.size - 1)
    assert FALSE_ALARM / 2 < tail < 1 - FALSE_ALARM / 2, f"chi-square over {counts.size} outcomes at quantile {tail}"


def check_independent(first: np.ndarray, second: np.ndarray, chance: float) -> None:
    """Check how often two arrays of bits agree, if each bit is 1 with `chance` and pairs are independent."""
    assert first.shape == second.shape
    assert first.dtype == second.dtype == np.bool_
    check_count((first == second).sum(), first.size, chance**2 + (1 - chance) ** 2)


def check_runs(bits: np.ndarray) -> None:
    """Check the number of changes along the last axis of fair bits: one half of the places to change at."""
    changes = bits[..., 1:] != bits[..., :-1]
    check_count(changes.sum(), changes.size, 0.5)


def check_pairs(u: np.ndarray, bits: int) -> None:
    """Check the joint law of the top bits of neighbours along the last axis, in pairs that do not overlap."""
    top = (u >> np.uint32(32 - bits)).astype(np.int64)
    even, odd = top[..., 0::2], top[..., 1::2]
    pairs = even[..., : odd.shape[-1]] << bits | odd
    check_uniform_counts(np.bincount(pairs.ravel(), minlength=4**bits))


def check_normal(z: np.ndarray) -> None:
    """Check against the standard normal law: mean, mean square, and counts between its quantiles."""
    n, deviations = z.size, stats.norm.isf(FALSE_ALARM / 2)
    assert abs(z.mean()) < deviations / np.sqrt(n)
    tail = stats.chi2.cdf(np.sum(z * z), n)
    assert FALSE_ALARM / 2 < tail < 1 - FALSE_ALARM / 2
    check_uniform_counts(np.bincount(np.floor(stats.norm.cdf(z.ravel()) * 64).astype(int), minlength=64))
