"""Checks of arguments: constraints are data, so one table checks, explains and tests itself."""

import importlib
import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from dropkit.errors import ArgumentError, ArgumentTypeError, MissingDependencyError

__all__ = [
    "KEY",
    "POSITIVE",
    "PROBABILITY",
    "STREAM",
    "Choice",
    "Integer",
    "Number",
    "argument_error",
    "argument_type_error",
    "as_float",
    "check_axes",
    "check_shape",
    "require",
]


def _message(where: str, name: str, rule: str, value: object, remedy: str) -> str:
    shown = " ".join(repr(value).split())  # one line, even of an array
    if len(shown) > 200:
        shown = shown[:197] + "..."
    text = f"{where}: `{name}` must be {rule}, got {shown} ({type(value).__name__})."
    return f"{text} {remedy}" if remedy else text


def argument_error(where: str, name: str, rule: str, value: object, remedy: str = "") -> ArgumentError:
    """Build the error for a value that is not accepted, in the one form that all messages share."""
    return ArgumentError(_message(where, name, rule, value, remedy))


def argument_type_error(where: str, name: str, rule: str, value: object, remedy: str = "") -> ArgumentTypeError:
    """Build the error for a type that is not accepted, in the one form that all messages share."""
    return ArgumentTypeError(_message(where, name, rule, value, remedy))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's bool is no Python bool


def as_float(value: Any) -> Any:
    """Return a real number of any kind, also in a NumPy array without axes, as a float, and anything else as it is."""
    if type(value).__name__ == "ndarray" and value.ndim == 0:
        value = value.item()
    return _nearest_float(value) if isinstance(value, numbers.Real) and not _is_bool(value) else value


def _nearest_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond the range of floats
        return math.inf if value > 0 else -math.inf


def _remedy(constraint: "Number | Integer", name: str, value: object) -> str:
    has_axes = type(value).__name__ == "ndarray" and bool(value.ndim)  # type: ignore[attr-defined]  # for it is an array
    several = constraint.of_several and (isinstance(value, list | tuple) or has_axes)
    return constraint.of_several.format(name) if several else constraint.remedy


@dataclass(frozen=True)
class Number:
    """A real number from `low` to `high`, both included unless `open_low` or `open_high`.

    `remedy` ends the message; or `of_several`, if any, where several values are given, with {} for the argument's name.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    remedy: str = ""
    of_several: str = ""

    @property
    def rule(self) -> str:
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"

    def contains(self, number: float) -> bool:
        """Whether a number lies between the bounds; NaN does not."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def check(self, where: str, name: str, value: object) -> float:
        """Return `value` as a float, or raise `ArgumentError`."""
        number = as_float(value)
        if isinstance(number, float) and self.contains(number):
            return number
        raise argument_error(where, name, self.rule, value, _remedy(self, name, value))

    def bad_values(self) -> list[object]:
        """Values that must be refused: one of each kind of mistake."""
        bad: list[object] = [math.nan, True, False, "0.5", None, [0.5], 1j]
        if math.isfinite(self.low):
            bad += [math.nextafter(self.low, -math.inf), -math.inf] + ([self.low] if self.open_low else [])
        if math.isfinite(self.high):
            bad += [math.nextafter(self.high, math.inf), math.inf] + ([self.high] if self.open_high else [])
        return bad


@dataclass(frozen=True)
class Integer:
    """A whole number from `low` to `high`, both included; with remedies as those of `Number`."""

    low: int
    high: int
    name: str = ""
    remedy: str = ""
    of_several: str = ""

    @property
    def rule(self) -> str:
        return f"an integer in {self.name or f'[{self.low}, {self.high}]'}"

    def check(self, where: str, name: str, value: object) -> int:
        """Return `value` as an int, or raise `ArgumentTypeError` or `ArgumentError`."""
        if _is_bool(value):
            raise argument_type_error(where, name, self.rule, value, _remedy(self, name, value))
        try:
            whole = operator.index(value)  # type: ignore[arg-type]  # anything may be given; that is what is checked
        except TypeError:
            raise argument_type_error(where, name, self.rule, value, _remedy(self, name, value)) from None
        if self.low <= whole <= self.high:
            return whole
        raise argument_error(where, name, self.rule, value, _remedy(self, name, value))

    def bad_values(self) -> list[object]:
        """Values that must be refused: one of each kind of mistake."""
        return [self.low - 1, self.high + 1, True, 0.5, math.nan, "1", None, [1]]


@dataclass(frozen=True)
class Choice:
    """One of a fixed set of names."""

    options: tuple[str, ...]

    @property
    def rule(self) -> str:
        return "one of " + ", ".join(repr(option) for option in self.options)

    def check(self, where: str, name: str, value: object) -> str:
        """Return `value`, or raise `ArgumentError` that lists what is known."""
        if isinstance(value, str) and value in self.options:
            return value
        raise argument_error(where, name, self.rule, value)

    def bad_values(self) -> list[object]:
        """Values that must be refused: one of each kind of mistake."""
        return [*(option + "?" for option in self.options), "", None, 0, True]


POSITIVE = Number(0.0, math.inf, open_low=True, open_high=True)
PROBABILITY = Number(0.0, 1.0, remedy="p is the probability of dropping a unit.")
KEY = Integer(0, 2**64 - 1, "[0, 2**64)", "Any integer can be taken modulo 2**64.")
STREAM = Integer(0, 2**30 - 1, "[0, 2**30)")
_LENGTH = Integer(0, 2**64, "[0, 2**64]")


def check_shape(where: str, name: str, value: object, rank: int | None = None) -> tuple[int, ...]:
    """Return a shape (or one offset an axis) as a tuple of non-negative integers of the given rank."""
    rule = "a sequence of integers, one an axis"
    if isinstance(value, str | bytes | Set | Mapping) or not isinstance(value, Iterable):
        raise argument_type_error(where, name, rule, value)
    try:
        lengths = tuple(value)
    except TypeError:  # an array without axes
        raise argument_type_error(where, name, rule, value) from None
    shape = tuple(_LENGTH.check(where, f"{name}[{axis}]", length) for axis, length in enumerate(lengths))
    if rank is not None and len(shape) != rank:
        raise argument_error(where, name, f"{rank} integers, one an axis of the tensor", value)
    return shape


def check_axes(where: str, name: str, value: object, rank: int) -> tuple[int, ...]:
    """Return axes (an integer or several, negatives counted from the end) as sorted, distinct numbers below `rank`."""
    is_several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    axes: Any = value if is_several else (value,)
    domain = Integer(-rank, rank - 1, remedy=f"The tensor has {rank} axes." if rank != 1 else "The tensor has 1 axis.")
    checked = [domain.check(where, name, axis) % rank for axis in axes]
    if len(set(checked)) != len(checked):
        raise argument_error(where, name, "distinct axes", value)
    return tuple(sorted(checked))


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or raise `MissingDependencyError` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs the package {error.name!r}. Install it with: pip install 'dropkit[{extra}]'",
            name=error.name,
        ) from None
