"""From the columns of a table to the inputs of a network, by what the training rows hold and nothing else.

Missing numbers become the median and every number is standardised; a category becomes one input for each of its values.
All that is learned from the training rows is plain numbers, so a saved model carries them as JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CATEGORY", "DATE", "NUMBER", "Column", "Preparation", "Prepared", "fit", "standardised"]

NUMBER, CATEGORY, DATE = "number", "category", "date"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: Its heading.
        kind: ``"number"``, ``"category"``, or ``"date"``, a number of days since 1970.
        categories: The values of a category in the order of their codes; any other value, or a missing one where
            the table had none missing, sets none of the inputs.
    """

    name: str
    kind: str = NUMBER
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of inputs that it becomes."""
        return len(self.categories) if self.kind == CATEGORY else 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """Rows as a network sees them; a number to predict is `targets * target_scale + target_mean`."""

    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    target_mean: float = 0.0
    target_scale: float = 1.0


@dataclass(frozen=True)
class Preparation:
    """What the training rows say about each column.

    Args:
        columns: The columns; none where inputs stay as they are.
        fills: What replaces a missing number, one a column.
        means: What is subtracted, one a column.
        scales: What is divided by, one a column.
        seen: For each category, whether each of its values is among the training rows; empty for numbers.
        target_mean: What is subtracted from numbers to predict; 0 for classes.
        target_scale: What they are divided by; 1 for classes.
    """

    columns: tuple[Column, ...] = ()
    fills: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    seen: tuple[tuple[bool, ...], ...] = ()
    target_mean: float = 0.0
    target_scale: float = 1.0

    def apply(self, inputs: Array) -> npt.NDArray[np.float32]:
        """Return the inputs of a network, float32 of shape (rows, inputs)."""
        if not self.columns:
            return np.ascontiguousarray(inputs, np.float32)
        parts = [self._column(index, inputs[:, index]) for index in range(len(self.columns))]
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
            return np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32)

    def _column(self, index: int, values: Array) -> Array:
        column = self.columns[index]
        if column.kind == CATEGORY:  # a value that no training row has sets no input: nothing was learned about it
            codes = np.arange(column.width)
            return (values[:, None] == codes) & np.array(self.seen[index], bool)
        filled = np.where(np.isnan(values), self.fills[index], values)
        return ((filled - self.means[index]) / self.scales[index])[:, None]

    def apply_all(self, inputs: Array, targets: Array) -> Prepared:
        """Return inputs and targets as a network sees them."""
        if np.issubdtype(targets.dtype, np.floating):
            targets = ((targets - self.target_mean) / self.target_scale).astype(np.float32)
        return Prepared(self.apply(inputs), targets, self.target_mean, self.target_scale)

    @property
    def is_whole(self) -> bool:
        """Whether every column has what belongs to it, and every number is one that training rows can give."""
        parts = (self.fills, self.means, self.scales, self.seen)
        scales = (*self.scales, self.target_scale)  # 0 where the deviation is less than the least number there is
        return (
            all(len(part) == len(self.columns) for part in parts)
            and all(isinstance(one.name, str) and one.kind in (NUMBER, CATEGORY, DATE) for one in self.columns)
            and [len(one) for one in self.seen] == [len(one.categories) for one in self.columns]
            and all(map(isfinite, (*self.fills, *self.means, *scales, self.target_mean)))
            and min(scales) >= 0
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preparation":
        """Build it from plain data; what does not fit raises KeyError, TypeError or ValueError."""
        columns = tuple(
            Column(one["name"], one["kind"], tuple(str(value) for value in one["categories"]))
            for one in data["columns"]
        )
        numbers = {name: tuple(float(value) for value in data[name]) for name in ("fills", "means", "scales")}
        seen = tuple(tuple(bool(value) for value in one) for one in data["seen"])
        found = cls(
            columns, **numbers, seen=seen,
            target_mean=float(data["target_mean"]), target_scale=float(data["target_scale"]),
        )  # fmt: skip
        if not found.is_whole:
            raise ValueError(data)
        return found


def fit(columns: Sequence[Column], inputs: Array, targets: Array | None, train: npt.NDArray[np.int64]) -> Preparation:
    """Learn from the training rows.

    Args:
        columns: The columns; none to leave the inputs as they are.
        inputs: All rows; only those of `train` are read.
        targets: Numbers to predict, or None for classes.
        train: Indices of the training rows.

    Returns:
        What prepares any row.
    """
    found = [_fit_column(column, inputs[train, index]) for index, column in enumerate(columns)]
    fills, means, scales, seen = zip(*found, strict=True) if found else ((), (), (), ())
    mean, scale = (0.0, 1.0) if targets is None else _mean_and_scale(targets[train].astype(np.float64))
    return Preparation(tuple(columns), fills, means, scales, seen, mean, scale)


def _fit_column(column: Column, values: Array) -> tuple[float, float, float, tuple[bool, ...]]:
    if column.kind == CATEGORY:
        return 0.0, 0.0, 1.0, tuple(bool((values == code).any()) for code in range(column.width))
    known = values[~np.isnan(values)]
    fill = float(np.median(known)) if len(known) else 0.0
    mean, scale = _mean_and_scale(np.where(np.isnan(values), fill, values))
    return fill, mean, scale, ()


def standardised(values: Array) -> Array:
    """Return numbers with mean 0 and deviation 1; NaN stays NaN, and numbers that do not differ become 0."""
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    mean, scale = _mean_and_scale(known)
    return (values - mean) / scale


def _mean_and_scale(values: Array) -> tuple[float, float]:
    """Return mean and standard deviation; 1 for the deviation of values that do not differ."""
    from sklearn.preprocessing import StandardScaler

    unit = int(np.frexp(np.abs(values).max())[1])  # by a power of two, exactly: squares neither overflow nor vanish
    scaler = StandardScaler().fit(np.ldexp(values, -unit)[:, None])
    if scaler.var_[0] == 0:
        return float(np.ldexp(scaler.mean_[0], unit)), 1.0
    return float(np.ldexp(scaler.mean_[0], unit)), float(np.ldexp(scaler.scale_[0], unit))
