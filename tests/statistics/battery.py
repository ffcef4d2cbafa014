"""A battery of statistical tests of masks; run by itself, it prints the probability of each outcome.

Every test draws masks by a function and returns the two-sided probability of what it saw or something further out, if
all elements are independent and kept with the realised rate's chance. Such probabilities are uniform between 0 and 1.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from scipy import stats

from dropkit import kernels, random
from tests.helpers.native import Address, keep_mask
from tests.helpers.statistics import FALSE_ALARM


class Draw(Protocol):
    """What gives a mask of a shape at a rate, under the changes of its address that are named."""

    def __call__(self, shape: tuple[int, int], p: float, **changes: Any) -> np.ndarray: ...


TESTS: dict[str, Callable[[Draw, int], float]] = {}
WIDTH = 1024
WHOLE = (2**64, 2**34)


def by_kernels(seed: int) -> Draw:
    """Return what draws by the kernels that serve, under the keys of a seed."""

    def draw(
        shape: tuple[int, int], p: float, *, site: str = "battery", step: int = 0, flip: int = 0, stream: int = 0,
        offset: tuple[int, int] = (0, 0),
    ) -> np.ndarray:  # fmt: skip
        key = random.call_key(seed, site, step) ^ flip
        return keep_mask(Address(key, shape, stream, offset, WHOLE), random.threshold(p))

    return draw


def check(test: Callable[[Draw, int], float]) -> Callable[[Draw, int], float]:
    TESTS[test.__name__.replace("_", " ")] = test
    return test


def two_sided(law: Any, value: float) -> float:
    return float(min(1.0, 2 * min(law.cdf(value), law.sf(value))))


def counted(counts: np.ndarray, chances: np.ndarray | None = None) -> float:
    """Compare counts with the chances of their outcomes, by default equal, by the chi-square law."""
    expected = counts.sum() * (np.full(counts.size, 1 / counts.size) if chances is None else chances)
    return two_sided(stats.chi2(counts.size - 1), float(((counts - expected) ** 2 / expected).sum()))


def correlated(pairs: Iterable[tuple[np.ndarray, np.ndarray]], p: float) -> float:
    """Sum the squared correlations of pairs of masks, which are themselves uncorrelated."""
    chance = 1 - random.threshold(p) / 2**32
    squares = []
    for first, second in pairs:
        both, ones = np.count_nonzero(first & second), np.count_nonzero(first) + np.count_nonzero(second)
        covariance = both - chance * ones + first.size * chance**2
        squares.append((covariance / (chance * (1 - chance))) ** 2 / first.size)
    return two_sided(stats.chi2(len(squares)), sum(squares))


def whole(draw: Draw, size: int, p: float, **changes: Any) -> np.ndarray:
    return draw((size // WIDTH, WIDTH), p, **changes)


def words(draw: Draw, size: int, kind: type, **changes: Any) -> np.ndarray:
    return np.packbits(whole(draw, size, 0.5, **changes)).view(kind)


@check
def units_kept_at_five_rates(draw: Draw, size: int) -> float:
    squares = 0.0
    for stream, p in enumerate((0.001, 0.1, 1 / 3, 0.5, 0.9)):
        keep, chance = whole(draw, size, p, stream=stream), 1 - random.threshold(p) / 2**32
        squares += (np.count_nonzero(keep) - size * chance) ** 2 / (size * chance * (1 - chance))
    return two_sided(stats.chi2(5), squares)


@check
def sixteen_neighbours_jointly(draw: Draw, size: int) -> float:
    return counted(np.bincount(words(draw, size, np.uint16), minlength=2**16))


@check
def repeated_words_of_32(draw: Draw, size: int) -> float:
    found = words(draw, size, np.uint32, step=1)
    repeated = found.size - np.unique(found).size
    law = stats.poisson(found.size * (found.size - 1) / 2**33)
    return float(min(1.0, 2 * min(law.cdf(repeated), law.sf(repeated - 1))))


@check
def weights_of_words_of_64(draw: Draw, size: int) -> float:
    weights = np.bitwise_count(words(draw, size, np.uint64, step=2)).astype(int).clip(20, 44)
    chances = stats.binom(64, 0.5).pmf(np.arange(65))
    chances = np.concatenate([[chances[:21].sum()], chances[21:44], [chances[44:].sum()]])
    return counted(np.bincount(weights - 20, minlength=25), chances)


@check
def weights_of_neighbouring_words(draw: Draw, size: int) -> float:
    weights = np.bitwise_count(words(draw, size, np.uint64, step=3)).astype(int)
    three = np.searchsorted([31, 34], weights, side="right")
    law = stats.binom(64, 0.5)
    chances = np.array([law.cdf(30), law.cdf(33) - law.cdf(30), law.sf(33)])
    return counted(np.bincount(3 * three[::2] + three[1::2], minlength=9), np.outer(chances, chances).ravel())


@check
def ranks_of_64_rows_of_64(draw: Draw, size: int) -> float:
    """Over the field of two elements, where a linear generator shows."""
    rows = words(draw, size, np.uint64, step=4).reshape(-1, 64).copy()
    rank = np.zeros(len(rows), int)
    at, left = np.arange(len(rows)), np.ones(rows.shape, bool)
    for bit in range(64):
        has = (rows >> np.uint64(bit) & np.uint64(1) == 1) & left
        found, pivot = has.any(1), has.argmax(1)
        has[at, pivot] = False
        rows ^= np.where(has & found[:, None], rows[at, pivot][:, None], np.uint64(0))
        left[at[found], pivot[found]] = False
        rank += found
    full = np.prod(1 - 0.5 ** np.arange(1, 65))
    chances = np.array([1 - full - full * 2 * (1 - 0.5**64), full * 2 * (1 - 0.5**64), full])
    return counted(np.bincount(rank.clip(62) - 62, minlength=3), chances)


@check
def lengths_of_runs(draw: Draw, size: int) -> float:
    bits = whole(draw, size, 0.5, step=5).ravel()
    lengths = np.diff(np.flatnonzero(bits[1:] != bits[:-1])).clip(max=15)
    chances = 0.5 ** np.arange(1, 16)
    return counted(np.bincount(lengths, minlength=16)[1:], np.append(chances[:-1], chances[-2]))


@check
def gaps_between_the_units_of_a_small_rate(draw: Draw, size: int) -> float:
    p = 0.01
    law = stats.geom(random.threshold(p) / 2**32)
    gaps = np.diff(np.flatnonzero(~whole(draw, size, p, step=6).ravel()))
    edges = np.unique(law.ppf(np.arange(1, 40) / 40))
    chances = np.diff([0, *law.cdf(edges), 1])
    return counted(np.bincount(np.searchsorted(edges, gaps), minlength=len(chances)), chances)


@check
def pairs_of_64_lanes(draw: Draw, size: int) -> float:
    chance = 1 - random.threshold(0.3) / 2**32
    lanes = (whole(draw, size, 0.3, step=7).reshape(-1, 64) - chance).astype(np.float32)
    products = sum((part.T @ part).astype(np.float64) for part in np.array_split(lanes, max(len(lanes) // 4096, 1)))
    pairs = products[np.triu_indices(64, 1)] / (chance * (1 - chance))
    return two_sided(stats.chi2(pairs.size), float((pairs**2).sum() / len(lanes)))


def check_lags(p: float) -> None:
    rate = f" at p = {p:g}"

    def columns(draw: Draw, size: int) -> float:
        keep = whole(draw, size, p, step=8)
        return correlated(((keep[:, lag:], keep[:, :-lag]) for lag in range(1, 131)), p)

    def rows(draw: Draw, size: int) -> float:
        keep = whole(draw, size, p, step=9)
        return correlated(((keep[lag:], keep[:-lag]) for lag in range(1, 67)), p)

    def diagonals(draw: Draw, size: int) -> float:
        keep = whole(draw, size, p, step=10)
        return correlated(((keep[lag:, lag:], keep[:-lag, :-lag]) for lag in range(1, 67)), p)

    TESTS.update({test.__name__ + rate: test for test in (columns, rows, diagonals)})


check_lags(0.1)
check_lags(0.5)


NEIGHBOURS: dict[str, list[dict[str, Any]]] = {
    "keys of one bit turned": [{"flip": 1 << bit} for bit in range(64)],
    "steps": [{"step": step} for step in range(1, 65)],
    "sites": [{"site": f"layers.{i}"} for i in range(64)],
    "streams": [{"stream": stream} for stream in (*range(1, 50), *(2**bit for bit in range(6, 30)))],
    "rows of one bit turned": [{"offset": (1 << bit, 0)} for bit in range(25, 64)],
    "columns of one bit turned": [{"offset": (0, 1 << bit)} for bit in range(10, 34)],
}


def check_neighbours(name: str) -> None:
    def test(draw: Draw, size: int) -> float:
        first = whole(draw, size // 4, 0.3)
        return correlated(((first, whole(draw, size // 4, 0.3, **change)) for change in NEIGHBOURS[name]), 0.3)

    TESTS[name] = test


for _name in NEIGHBOURS:
    check_neighbours(_name)


@check
def the_planes_of_draws_near_a_threshold(draw: Draw, size: int) -> float:
    """Of elements with one high half, the low halves decide which are kept at one threshold and dropped at the next."""
    step, p = 2.0**-13, 0.25  # eight high halves, each in eight parts by the low halves
    counts = []
    below = whole(draw, size, p)
    for i in range(1, 65):
        keep = whole(draw, size, p + step * i / 64)
        counts.append(np.count_nonzero(below & ~keep))
        below = keep
    rest = size - sum(counts)
    return counted(np.array([*counts, rest]), np.array([*[step / 64] * 64, 1 - step]))


def between(low: int, high: int) -> Callable[[str], int]:
    """Return what reads an integer of the command line."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be an integer from {low} to {high}, got {text!r}")
        return int(text)

    return read


def main() -> None:
    """Run every test on several seeds, and compare all probabilities with the uniform law."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    bits = "binary logarithm of the elements of a mask, 21 to 32 (default: 26)"
    parser.add_argument("--bits", type=between(21, 32), default=26, help=bits)  # of fewer, counts are too small
    parser.add_argument("--seeds", type=between(1, 1000), default=4, help="how many seeds (default: 4)")
    given = parser.parse_args()
    print(f"{kernels.info()}\n2**{given.bits} elements a mask; probabilities of what was seen, a column a seed")
    found = []
    for name, test in TESTS.items():
        row = [test(by_kernels(seed), 2**given.bits) for seed in range(given.seeds)]
        print(f"{name:46}", *(f"{value:9.2g}" for value in row), "  too far out" if min(row) < FALSE_ALARM else "")
        found += row
    uniform = stats.kstest(found, "uniform").pvalue
    print(f"smallest of {len(found)}: {min(found):.2g}; all of them against the uniform law: {uniform:.2g}")
    sys.exit(min(*found, uniform) < FALSE_ALARM)


if __name__ == "__main__":
    main()
