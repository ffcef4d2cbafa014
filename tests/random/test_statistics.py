"""Masks look random: uniform, and independent across columns, rows, streams, keys and fields.

Every check has a false-alarm rate of 1e-6 on keys fixed beforehand. With n bits the counts catch a bias of about
2.5 / sqrt(n) at least: 0.0025 for the million bits used here.
"""

import numpy as np
import pytest

from dropkit import random
from tests.helpers.statistics import (
    check_count,
    check_independent,
    check_normal,
    check_pairs,
    check_runs,
    check_uniform_counts,
)

KEY = random.call_key(2024, "statistics", step=1)
SHAPE = (1000, 1001)


@pytest.fixture(scope="module")
def integers() -> np.ndarray:
    return random.uniform32(KEY, SHAPE)


@pytest.mark.parametrize("byte", range(4))
def test_every_byte_is_uniform(integers: np.ndarray, byte: int) -> None:
    values = integers >> np.uint32(8 * byte) & np.uint32(0xFF)
    check_uniform_counts(np.bincount(values.ravel(), minlength=256))


@pytest.mark.parametrize("half", ["high", "low"])
def test_both_halves_are_uniform(integers: np.ndarray, half: str) -> None:
    values = integers >> np.uint32(16) if half == "high" else integers & np.uint32(0xFFFF)
    check_uniform_counts(np.bincount(values.ravel(), minlength=2**16))


def test_every_lane_of_a_block_is_uniform(integers: np.ndarray) -> None:
    for lane in range(8):
        check_uniform_counts(np.bincount(integers[:, lane::8].ravel() >> np.uint32(24), minlength=256))


@pytest.mark.parametrize("p", [0.001, 0.1, 1 / 3, 0.5, 0.9])
def test_units_are_kept_at_the_realised_rate(p: float) -> None:
    keep = random.keep_mask(KEY, SHAPE, p)
    check_count(keep.sum(), keep.size, 1 - random.threshold(p) / 2**32)


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_neighbours_are_jointly_uniform(integers: np.ndarray, bits: int) -> None:
    check_pairs(integers, bits)
    check_pairs(np.ascontiguousarray(integers.T), bits)


def test_runs_along_rows_and_columns(integers: np.ndarray) -> None:
    for bit in (31, 16, 15, 0):  # the ends of both halves
        bits = (integers >> np.uint32(bit) & np.uint32(1)).astype(bool)
        check_runs(bits)
        check_runs(bits.T)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("lag", [1, 2, 7, 8, 16, 64])
def test_columns_and_rows_are_independent(p: float, lag: int) -> None:
    keep, chance = random.keep_mask(KEY, SHAPE, p), 1 - random.threshold(p) / 2**32
    check_independent(keep[:, lag:], keep[:, :-lag], chance)
    check_independent(keep[lag:], keep[:-lag], chance)
    check_independent(keep[lag:, lag:], keep[:-lag, :-lag], chance)


NEIGHBOURS = {
    "next key": {"key": KEY + 1},
    "key that differs in the top bit": {"key": KEY ^ 1 << 63},
    "complement of the key": {"key": KEY ^ 2**64 - 1},
    "next field": {"key": random.field(KEY, 1)},
    "second uniform of a normal": {"key": random.fold(KEY, 2**32 - 1, 0)},
    "next call": {"key": random.call_key(2024, "statistics", step=1, call=1)},
    "next step": {"key": random.call_key(2024, "statistics", step=2)},
    "next seed": {"key": random.call_key(2025, "statistics", step=1)},
    "another place": {"key": random.call_key(2024, "statistics#1", step=1)},
    "next stream": {"stream": 1},
    "last stream": {"stream": 2**30 - 1},
}


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbouring_addresses_are_independent(name: str, p: float) -> None:
    first = random.keep_mask(KEY, (400, 1001), p)
    second = random.keep_mask(**{"key": KEY, "shape": (400, 1001), "p": p} | NEIGHBOURS[name])
    check_independent(first, second, 1 - random.threshold(p) / 2**32)


def test_the_two_halves_of_an_integer_are_independent(integers: np.ndarray) -> None:
    high, low = integers >> np.uint32(28), integers >> np.uint32(12) & np.uint32(0xF)
    check_uniform_counts(np.bincount((high << np.uint32(4) | low).ravel(), minlength=256))


def test_one_place_over_many_keys_and_sites() -> None:
    drawn = [random.uniform32(random.call_key(0, "a", step), (8,)) for step in range(4000)]
    check_uniform_counts(np.bincount(np.concatenate(drawn) >> np.uint32(24), minlength=256))
    check_runs(np.array([key[0] >> 31 == 1 for key in drawn]))
    sites = np.array([random.site(f"layers.{i}.dropout") for i in range(20_000)])
    check_uniform_counts(np.bincount(sites >> 24, minlength=256))


def test_normals_are_standard_normal_and_independent() -> None:
    z = random.normal(KEY, SHAPE)
    check_normal(z)
    check_normal(random.normal(KEY, SHAPE, dtype=np.float32, stream=1).astype(np.float64))
    positive = z > 0
    check_independent(positive[:, 1:], positive[:, :-1], 0.5)
    check_independent(positive, random.normal(KEY + 1, SHAPE) > 0, 0.5)


# The checks themselves can fail.

FAIR = np.random.default_rng(0).integers(0, 2**32, (500, 1000), dtype=np.uint32)
BITS = FAIR >> np.uint32(31) == 1


def test_checks_pass_on_an_unrelated_generator() -> None:
    check_count(BITS.sum(), BITS.size, 0.5)
    check_uniform_counts(np.bincount(FAIR.ravel() >> np.uint32(24), minlength=256))
    check_independent(BITS[1:], BITS[:-1], 0.5)
    check_runs(BITS)
    check_pairs(FAIR, 4)
    check_normal(np.random.default_rng(1).standard_normal((500, 1000)))


FAULTS = {
    "rate off by 0.005": lambda: check_count(int(0.505 * BITS.size), BITS.size, 0.5),
    "a value never drawn": lambda: check_uniform_counts(np.bincount((FAIR | 1).ravel() & 0xFF, minlength=256)),
    "too even": lambda: check_uniform_counts(np.bincount(np.arange(2**16) & 0xFF, minlength=256)),
    "rows repeat": lambda: check_independent(BITS[1:], np.broadcast_to(BITS[:1], BITS[1:].shape), 0.4),
    "the same mask twice": lambda: check_independent(BITS, BITS, 0.5),
    "the complement": lambda: check_independent(BITS, ~BITS, 0.5),
    "one pair in a hundred repeats": lambda: check_independent(
        BITS, np.where(np.arange(BITS.size).reshape(BITS.shape) % 100 == 0, BITS, np.roll(BITS, 7)), 0.5
    ),
    "alternates": lambda: check_runs(np.arange(10_000) % 2 == 0),
    "sticks": lambda: check_runs(np.repeat(BITS[:, :500], 2, axis=1)),
    "neighbours equal in their top bits": lambda: check_pairs(np.repeat(FAIR[:, :500], 2, axis=1), 4),
    "normal of deviation 1.01": lambda: check_normal(1.01 * np.random.default_rng(1).standard_normal((500, 1000))),
    "uniform for normal": lambda: check_normal(np.sqrt(12) * (FAIR / 2.0**32 - 0.5)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_checks_catch(name: str) -> None:
    with pytest.raises(AssertionError):
        FAULTS[name]()
