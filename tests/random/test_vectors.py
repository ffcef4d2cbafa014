"""The known answers of mask definition version 1, group by group."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropkit import random
from tests.helpers import slow_masks

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "mask_vectors.json").read_text())
CHECKS: dict[str, Callable[[Any], None]] = {}


def group(check: Callable[[Any], None]) -> Callable[[Any], None]:
    CHECKS[check.__name__] = check
    return check


@group
def version(number: int) -> None:
    assert number == random.MASK_VERSION == 1


@group
def philox(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 3
    for case in cases:
        assert list(random.philox4x32(case["counter"], case["key"])) == case["words"]
        assert list(slow_masks.words(case["counter"], case["key"])) == case["words"]
    counters = np.array([case["counter"] for case in cases], np.uint64).T
    keys = np.array([case["key"] for case in cases], np.uint64).T
    np.testing.assert_array_equal(random.philox4x32(counters, keys), np.array([case["words"] for case in cases]).T)


@group
def fold(cases: list[dict[str, int]]) -> None:
    assert len(cases) == 7
    for case in cases:
        assert random.fold(case["a"], case["b"], case["c"]) == case["key"]
        assert slow_masks.fold(case["a"], case["b"], case["c"]) == case["key"]


@group
def sites(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 5
    for case in cases:
        assert random.site(case["name"]) == case["site"]


@group
def keys(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 4
    for case in cases:
        key = random.call_key(case["seed"], case["name"], case["step"], case["call"])
        assert random.field(key, case["field"]) == case["key"]


@group
def shapes(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 9
    for case in cases:
        u = random.uniform32(case["key"], case["shape"])
        assert u.dtype == np.uint32
        assert list(u.shape) == case["shape"]
        assert u.ravel().tolist() == case["u"]
        shared = [axis for axis, length in enumerate(case["shape"]) if length == 1]
        longer = [length * 3 if axis in shared else length for axis, length in enumerate(case["shape"])]
        np.testing.assert_array_equal(random.uniform32(case["key"], longer, broadcast_dims=shared), u)


@group
def shard(case: dict[str, Any]) -> None:
    u = random.uniform32(case["key"], case["shape"], offset=case["offset"], full_shape=case["full_shape"])
    assert u.ravel().tolist() == case["u"]


@group
def floats(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 16
    assert [case["col"] for case in cases] == list(range(16))
    first = cases[0]
    assert all(case["row"] == first["row"] for case in cases)
    key = random.call_key(first["seed"], first["name"], first["step"])
    shape = (first["row"] + 1, len(cases))

    def want(name: str) -> np.ndarray:
        return np.array([case[name] for case in cases])

    np.testing.assert_array_equal(random.uniform(key, shape)[-1], want("uniform64"))
    single = random.uniform(key, shape, dtype=np.float32)[-1]
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single.astype(np.float64), want("uniform32"))
    np.testing.assert_allclose(random.normal(key, shape)[-1], want("normal"), rtol=0, atol=1e-12)
    np.testing.assert_allclose(random.normal(key, shape, dtype=np.float32)[-1], want("normal"), rtol=0, atol=4e-6)


@group
def thresholds(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 11
    for case in cases:
        assert random.threshold(case["p"]) == case["T"]


@group
def uniforms(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 120
    for case in cases:
        row, column, u = case["row"], case["col"], case["u"]
        place = {"offset": (row, column), "full_shape": (2**64, 2**34), "stream": case["stream"]}
        assert random.uniform32(case["key"], (1, len(u)), **place).ravel().tolist() == u
        assert [slow_masks.draw(case["key"], row, column + i, case["stream"]) for i in range(len(u))] == u


@group
def kept(cases: list[dict[str, Any]]) -> None:
    assert len(cases) == 22
    for case in cases:
        keep = random.keep_mask(case["key"], case["shape"], case["p"])
        assert keep.dtype == np.bool_
        assert keep.sum() == case["kept"]
        assert "".join(str(int(bit)) for bit in keep[0]) == case["row0"]
        assert "".join(str(int(bit)) for bit in keep[40]) == case["row40"]


@group
def ties(case: dict[str, Any]) -> None:
    assert len(case["at"]) == 8
    last = max(place["col"] for place in case["at"])
    keep = random.keep_mask(case["key"], (1, last + 1), case["p"])
    u = random.uniform32(case["key"], (1, last + 1))
    for place in case["at"]:
        assert u[place["row"], place["col"]] == place["u"]
        assert keep[place["row"], place["col"]] == place["keep"]
    assert {place["keep"] for place in case["at"]} == {True, False}


@pytest.mark.parametrize("name", CHECKS)
def test_known_answers(name: str) -> None:
    CHECKS[name](VECTORS[name])


def test_every_group_of_known_answers_is_checked() -> None:
    assert CHECKS.keys() == VECTORS.keys()
