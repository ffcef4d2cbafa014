"""Wrong arguments of `dropkit.random`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dropkit._checks import KEY, PROBABILITY, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import Wrong, by_constraint, places, shapes

WORD = Integer(0, 2**32 - 1, "[0, 2**32)")
FIELD = Integer(0, 2**32 - 2, "[0, 2**32 - 1)", "Field 2**32 - 1 is taken by the second uniform of a normal.")


def numbers(function: str) -> Iterator[Wrong]:
    yield from by_constraint("key", KEY)
    yield from shapes("shape")
    yield from places()
    if function == "keep_mask":
        yield from by_constraint("p", PROBABILITY)
    if function in {"uniform", "normal"}:
        rule = "float16, float32 or float64"
        for value in (int, "int32", np.complex64, np.longdouble, torch.float32, "nonsense", 3):
            yield Wrong("dtype", value, ArgumentError, rule)


def keys(function: str) -> Iterator[Wrong]:
    constraints: dict[str, dict[str, Any]] = {
        "call_key": {"seed": KEY, "step": KEY, "call": WORD},
        "field": {"key": KEY, "d": FIELD},
        "fold": {"a": KEY, "b": WORD, "c": KEY},
        "threshold": {"p": PROBABILITY},
        "site": {},
    }
    for name, constraint in constraints[function].items():
        yield from by_constraint(name, constraint)
    if function in {"call_key", "site"}:
        for value in (None, 1, b"a", ["a"]):
            yield Wrong("name", value, ArgumentTypeError, "a string")


def words() -> Iterator[Wrong]:
    for name, length in (("counter", 4), ("key", 2)):
        for value in (None, 3, (1,) * (length + 1), (), [1], np.zeros(length + 1, int)):
            yield Wrong(name, value, ArgumentError, f"{length} words")
        for wrong in by_constraint(f"{name}[1]", WORD):
            rest = (0,) * (length - 2)
            yield wrong._replace(name=name, value=(0, wrong.value, *rest), shown=(wrong.value,), label=wrong.name)
        floats, negative = np.zeros(3), np.array([-1, 0])
        for value, error, rule in (
            (floats, ArgumentTypeError, "an array of integers"),
            (negative, ArgumentError, WORD.rule),
        ):
            whole = (value, *(0,) * (length - 1))
            yield Wrong(name, whole, error, rule, shown=(value,), label=f"{name}[0]")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.random.call_key": {"seed": 1, "name": "a", "step": 2, "call": 0},
    "dropkit.random.field": {"key": 1, "d": 2},
    "dropkit.random.fold": {"a": 1, "b": 2, "c": 3},
    "dropkit.random.philox4x32": {"counter": (0, 1, 2, 3), "key": (4, 5)},
    "dropkit.random.site": {"name": "a"},
    "dropkit.random.threshold": {"p": 0.5},
    "dropkit.random.keep_mask": {"key": 1, "shape": (2, 3), "p": 0.5},
    "dropkit.random.uniform32": {"key": 1, "shape": (2, 3)},
    "dropkit.random.uniform": {"key": 1, "shape": (2, 3)},
    "dropkit.random.normal": {"key": 1, "shape": (2, 3)},
}
CASES = {
    **{f"dropkit.random.{name}": list(keys(name)) for name in ("call_key", "field", "fold", "site", "threshold")},
    **{f"dropkit.random.{name}": list(numbers(name)) for name in ("keep_mask", "uniform32", "uniform", "normal")},
    "dropkit.random.philox4x32": list(words()),
}
