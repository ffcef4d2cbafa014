"""Masks pass the battery at a small size, each test with a false-alarm rate of 1e-6; and every test can fail."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.helpers.statistics import FALSE_ALARM
from tests.statistics.battery import NEIGHBOURS, TESTS, Draw, by_kernels, main

SIZE = 2**22


def fair(shape: tuple[int, int], p: float, **changes: Any) -> np.ndarray:
    """Masks of an unrelated generator."""
    return np.random.default_rng(zlib.crc32(repr(changes).encode())).random(shape) >= p


@pytest.mark.parametrize("name", TESTS)
def test_masks_of_the_kernels(name: str) -> None:
    assert TESTS[name](by_kernels(2025), SIZE) > FALSE_ALARM


@pytest.mark.parametrize("name", TESTS)
def test_masks_of_an_unrelated_generator(name: str) -> None:
    assert TESTS[name](fair, SIZE // 2) > FALSE_ALARM


def with_fault(fault: Callable[[np.ndarray], Any]) -> Draw:
    """Fair masks in which something has been overwritten, or that something was made of."""

    def draw(shape: tuple[int, int], p: float, **changes: Any) -> np.ndarray:
        keep = fair(shape, p, **changes)
        made = fault(keep)
        return keep if made is None else made

    return draw


def copied(to: Any, source: Any) -> Draw:
    def fault(keep: np.ndarray) -> None:
        keep[to] = keep[source]

    return with_fault(fault)


def turned(keep: np.ndarray) -> np.ndarray:
    """Every row is the one before it, turned by one."""
    at = np.arange(keep.shape[1])
    return keep[0][(at - np.arange(len(keep))[:, None]) % len(at)]


def with_dependent_rows(keep: np.ndarray) -> None:
    matrices = keep.reshape(-1, 64, 64)
    matrices[:, 63] = matrices[:, 0] ^ matrices[:, 1]


def of_16_bits(shape: tuple[int, int], p: float, **changes: Any) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**16, shape) >= p * 2**16


FAULTS: dict[str, Draw] = {
    "units kept at five rates": lambda shape, p, **changes: fair(shape, 1.02 * p, **changes),
    "sixteen neighbours jointly": copied(np.s_[:, 15::16], np.s_[:, ::16]),
    "repeated words of 32": copied(np.s_[10:20], np.s_[:10]),
    "weights of words of 64": copied(np.s_[:, 32:64], np.s_[:, :32]),
    "weights of neighbouring words": copied(np.s_[:, 64:128], np.s_[:, :64]),
    "ranks of 64 rows of 64": with_fault(with_dependent_rows),
    "lengths of runs": copied(np.s_[:, 1::10], np.s_[:, ::10]),
    "gaps between the units of a small rate": with_fault(lambda keep: np.repeat(keep[:, ::2], 2, axis=1)),
    "pairs of 64 lanes": copied(np.s_[:, 40::64], np.s_[:, 5::64]),
    "columns at p = 0.1": copied(np.s_[:, 200:210], np.s_[:, 100:110]),
    "columns at p = 0.5": copied(np.s_[:, 200:210], np.s_[:, 100:110]),
    "rows at p = 0.1": copied(np.s_[160:220], np.s_[100:160]),
    "rows at p = 0.5": copied(np.s_[160:220], np.s_[100:160]),
    "diagonals at p = 0.1": with_fault(turned),
    "diagonals at p = 0.5": with_fault(turned),
    "the planes of draws near a threshold": of_16_bits,
    **dict.fromkeys(NEIGHBOURS, lambda shape, p, **_: fair(shape, p)),
}


@pytest.mark.parametrize("name", TESTS)
def test_faults_are_caught(name: str) -> None:
    assert TESTS[name](FAULTS[name], SIZE // 2) < FALSE_ALARM


@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [
        ("--bits", "3", "21 to 32"),
        ("--bits", "33", "21 to 32"),
        ("--bits", "2.5", "21 to 32"),
        ("--seeds", "0", "1 to 1000"),
        ("--seeds", "-1", "1 to 1000"),
    ],
)
def test_sizes_that_the_tests_are_not_made_for_are_refused(
    option: str, value: str, limits: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["battery", f"{option}={value}"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert f"argument {option}: must be an integer from {limits}, got {value!r}" in capsys.readouterr().err
