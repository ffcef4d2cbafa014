"""Constraints: what they take, what they refuse and the sentence that says so; and that bad values really are bad."""

import decimal
import fractions
import math
import re
from typing import Any

import numpy as np
import pytest

from dropkit import _checks, errors
from dropkit._checks import (
    KEY,
    PROBABILITY,
    STREAM,
    Choice,
    Integer,
    Number,
    argument_error,
    argument_type_error,
    check_axes,
    check_shape,
    require,
)
from dropkit.errors import ArgumentError, ArgumentTypeError, MissingDependencyError

HALF_OPEN = Number(0.0, 1.0, open_high=True)
OPEN = Number(0.0, math.inf, open_low=True, open_high=True, remedy="Take more.")
CONSTRAINTS = {
    "probability": PROBABILITY, "key": KEY, "stream": STREAM, "half open": HALF_OPEN, "open": OPEN,
    "integer": Integer(-3, 5), "choice": Choice(("one", "two")),
}  # fmt: skip


def sentence(where: str, name: str, rule: str, value: object, remedy: str = "") -> str:
    return f"{where}: `{name}` must be {rule}, got {value!r} ({type(value).__name__}).{remedy and ' ' + remedy}"


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_bad_value_is_refused_in_the_one_form(name: str) -> None:
    constraint = CONSTRAINTS[name]
    bad = constraint.bad_values()
    assert len(bad) >= 5
    for value in bad:
        with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
            constraint.check("here", "thing", value)
        want = sentence("here", "thing", constraint.rule, value, getattr(constraint, "remedy", ""))
        assert str(caught.value) == want
        assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    ("constraint", "rule"),
    [(PROBABILITY, "a number in [0, 1]"), (HALF_OPEN, "a number in [0, 1)"), (OPEN, "a number in (0, inf)"),
     (KEY, "an integer in [0, 2**64)"), (STREAM, "an integer in [0, 2**30)"), (Integer(-3, 5), "an integer in [-3, 5]"),
     (Choice(("one", "two")), "one of 'one', 'two'")],
    ids=repr,
)  # fmt: skip
def test_rules_in_words(constraint: Any, rule: str) -> None:
    assert constraint.rule == rule


@pytest.mark.parametrize(
    "value",
    [
        0,
        1,
        0.0,
        -0.0,
        1.0,
        0.5,
        np.float32(0.5),
        np.float64(1),
        np.int64(1),
        fractions.Fraction(1, 3),
        np.array(0.5),
        np.array(1),
        np.array(0.5, np.float16),
    ],
    ids=repr,
)
def test_numbers_of_every_kind_become_floats(value: Any) -> None:
    checked = PROBABILITY.check("here", "p", value)
    assert type(checked) is float
    assert checked == float(value)


@pytest.mark.parametrize(
    "value",
    [math.nan, np.float64("nan"), np.bool_(True), np.array([0.5]), np.array(True), np.array("0.5"), np.array(0.5j),
     np.array(math.nan), decimal.Decimal("0.5"), 10**400, -(10**400), -1e-300,
     1 + 2**-52, "", b"1", {}, object],
    ids=lambda value: f"{type(value).__name__} {value!r:.9}",
)  # fmt: skip
def test_what_is_no_probability(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^here: `p` must be a number in \[0, 1\], got "):
        PROBABILITY.check("here", "p", value)


def test_open_ends_are_refused_and_closed_ones_taken() -> None:
    assert HALF_OPEN.check("here", "x", 0.0) == 0.0
    assert HALF_OPEN.check("here", "x", math.nextafter(1.0, 0.0)) < 1
    for constraint, end in ((HALF_OPEN, 1.0), (OPEN, 0.0), (OPEN, math.inf)):
        with pytest.raises(ArgumentError):
            constraint.check("here", "x", end)
        assert end in constraint.bad_values() or math.isinf(end)


@pytest.mark.parametrize("value", [0, 2**64 - 1, np.uint64(2**64 - 1), np.int8(5), np.array(7)], ids=repr)
def test_integers_of_every_kind_become_ints(value: Any) -> None:
    checked = KEY.check("here", "key", value)
    assert type(checked) is int
    assert checked == int(value)


@pytest.mark.parametrize(
    "value", [1.0, np.float64(2), "3", None, np.bool_(True), True, [1], np.array([1, 2]), 1j], ids=repr
)
def test_what_is_no_integer_is_an_error_of_type(value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"(?s)^here: `key` must be an integer in \[0, 2\*\*64\), got "):
        KEY.check("here", "key", value)


@pytest.mark.parametrize("value", [-1, 2**64, np.int64(-1)], ids=repr)
def test_integers_out_of_range_are_errors_of_value(value: Any) -> None:
    with pytest.raises(ArgumentError):
        KEY.check("here", "key", value)


def test_errors_are_errors_of_python_and_of_dropkit() -> None:
    for kind in (errors.ArgumentError, errors.DataError):
        assert issubclass(kind, ValueError)
    assert issubclass(errors.ArgumentTypeError, TypeError)
    assert issubclass(errors.RunError, RuntimeError)
    assert issubclass(errors.UnsupportedError, RuntimeError)
    assert issubclass(errors.MissingDependencyError, ModuleNotFoundError)
    assert all(issubclass(getattr(errors, name), errors.DropkitError) for name in errors.__all__)
    assert isinstance(argument_error("a", "b", "c", 1), ArgumentError)
    assert isinstance(argument_type_error("a", "b", "c", 1), ArgumentTypeError)


def test_messages_name_everything_and_stay_short() -> None:
    assert str(argument_error("f", "x", "small", 9, "Halve it.")) == "f: `x` must be small, got 9 (int). Halve it."
    assert str(argument_type_error("f", "x", "small", "9")) == "f: `x` must be small, got '9' (str)."
    assert len(str(argument_error("f", "x", "small", "9" * 10_000))) < 300


@pytest.mark.parametrize(
    ("value", "rank", "want"),
    [((), None, ()), ([], 0, ()), ((2, 3), 2, (2, 3)), (np.array([2, 3]), None, (2, 3)), (range(3), 3, (0, 1, 2)),
     (iter([4]), 1, (4,)), ((2**64,), None, (2**64,))],
)  # fmt: skip
def test_shapes(value: Any, rank: int | None, want: tuple[int, ...]) -> None:
    checked = check_shape("here", "shape", value, rank)
    assert checked == want
    assert type(checked) is tuple
    assert all(type(length) is int for length in checked)


@pytest.mark.parametrize(
    ("value", "rank", "kind", "message"),
    [(3, None, ArgumentTypeError, "here: `shape` must be a sequence of integers, one an axis, got 3 (int)."),
     (None, None, ArgumentTypeError, "here: `shape` must be a sequence of integers, one an axis, got None (NoneType)."),
     ("23", None, ArgumentTypeError, "here: `shape` must be a sequence of integers, one an axis, got '23' (str)."),
     (b"23", None, ArgumentTypeError, "here: `shape` must be a sequence of integers, one an axis, got b'23' (bytes)."),
     ((2, -1), None, ArgumentError, "here: `shape[1]` must be an integer in [0, 2**64], got -1 (int)."),
     ((2.0,), None, ArgumentTypeError,
      "here: `shape[0]` must be an integer in [0, 2**64], got 2.0 (float)."),
     ((True,), None, ArgumentTypeError,
      "here: `shape[0]` must be an integer in [0, 2**64], got True (bool)."),
     ((2, 3), 3, ArgumentError, "here: `shape` must be 3 integers, one an axis of the tensor, got (2, 3) (tuple).")],
    ids=lambda value: repr(value)[:20] if not isinstance(value, str) else "",
)  # fmt: skip
def test_bad_shapes(value: Any, rank: int | None, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        check_shape("here", "shape", value, rank)


@pytest.mark.parametrize(
    ("value", "want"),
    [((), ()), ([], ()), (0, (0,)), (-1, (2,)), ((2, 0), (0, 2)), ([-1, 1], (1, 2)), (np.int64(1), (1,))],
    ids=repr,
)  # fmt: skip
def test_axes(value: Any, want: tuple[int, ...]) -> None:
    assert check_axes("here", "axes", value, 3) == want


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [(3, ArgumentError, "an integer in [-3, 2], got 3 (int). The tensor has 3 axes."),
     (-4, ArgumentError, "an integer in [-3, 2], got -4 (int). The tensor has 3 axes."),
     ((0, 5), ArgumentError, "an integer in [-3, 2], got 5 (int). The tensor has 3 axes."),
     ((0, -3), ArgumentError, "distinct axes, got (0, -3) (tuple)."),
     ([1, 1], ArgumentError, "distinct axes, got [1, 1] (list)."),
     (True, ArgumentTypeError, "an integer in [-3, 2], got True (bool). The tensor has 3 axes."),
     (0.0, ArgumentTypeError, "an integer in [-3, 2], got 0.0 (float). The tensor has 3 axes."),
     ("0", ArgumentTypeError, "an integer in [-3, 2], got '0' (str). The tensor has 3 axes."),
     (None, ArgumentTypeError, "an integer in [-3, 2], got None (NoneType). The tensor has 3 axes.")],
    ids=[0, 1, 2, 3, 4, 5, 6, 7, 8],
)  # fmt: skip
def test_bad_axes(value: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape('here: `axes` must be ' + message)}$"):
        check_axes("here", "axes", value, 3)
    if value == 3:
        with pytest.raises(kind, match=r"The tensor has 1 axis\.$"):
            check_axes("here", "axes", value, 1)


def test_axes_of_a_scalar() -> None:
    assert check_axes("here", "axes", (), 0) == ()
    for axis in (0, -1):
        with pytest.raises(ArgumentError, match=r"The tensor has 0 axes\.$"):
            check_axes("here", "axes", axis, 0)


def test_missing_packages_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require("math", "study", "This") is math
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_package.part", "study", "The report")
    message = "The report needs the package 'no_such_package'. Install it with: pip install 'dropkit[study]'"
    assert str(caught.value) == message
    assert caught.value.name == "no_such_package"

    def broken(name: str) -> None:
        raise ModuleNotFoundError("inside", name="something_else")

    monkeypatch.setattr(_checks.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match=r"^inside$") as other:
        require("installed", "study", "The report")
    assert not isinstance(other.value, MissingDependencyError)
