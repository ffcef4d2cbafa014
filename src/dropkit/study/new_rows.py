"""New rows as a model takes them, and what in them the study's rows did not have."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import argument_type_error
from dropkit.errors import DataError
from dropkit.study.inference import as_dates, as_numbers, encode
from dropkit.study.preparation import CATEGORY, DATE, Column
from dropkit.study.reading import Table, listed, read_table

if TYPE_CHECKING:
    from dropkit.study.saved_model import SavedModel

__all__ = ["NewRows", "Ranges", "ranges_of", "read_rows"]

Flags = npt.NDArray[np.bool_]
Ranges = tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True, eq=False)
class NewRows:
    """New rows, and which of them hold what the study's rows did not; flags have the shape (rows,), or (0,) for none.

    Args:
        inputs: The rows, as `SavedModel.predict` takes them.
        unknown: Rows with a category that the study did not have, or left out for being rare.
        missing: Rows with a missing number or date, or a missing category where the study had none missing.
        infinite: Rows with an infinite number, which is taken as missing.
        beyond: Rows with a number or date beyond the range of the study's rows.
        strange: Rows of which nothing is known: no value that the study knows, or one that is further beyond its range
            than that is wide.
    """

    inputs: Any
    unknown: Flags
    missing: Flags
    infinite: Flags
    beyond: Flags
    strange: Flags

    @property
    def note(self) -> str:
        """What is to be told of the rows; nothing where they are like the study's."""
        counted = (
            (self.unknown, "with unknown categories"),
            (self.missing, "with missing values"),
            (self.infinite, "with infinite numbers, taken as missing"),
            (self.beyond, "with values beyond the study's range"),
        )
        parts = [f"{int(flags.sum()):,} {words}" for flags, words in counted if flags.any()]
        return f"Of {len(self.beyond):,} rows: {', '.join(parts)}." if parts else ""


def ranges_of(columns: Sequence[Column], inputs: npt.NDArray[Any]) -> Ranges:
    """Return the least and the greatest number of each column; None for categories, and where every number is missing.

    Args:
        columns: What each column holds; none where all are numbers.
        inputs: Rows of the study, of shape (rows, columns), with NaN for gaps.
    """
    found: list[tuple[float, float] | None] = []
    for place, values in enumerate(inputs.T):
        known = values[~np.isnan(values)]
        is_number = not columns or columns[place].kind != CATEGORY
        found.append((float(known.min()), float(known.max())) if is_number and len(known) else None)
    return tuple(found)


def read_rows(model: "SavedModel", data: Any) -> NewRows:
    """Read new rows.

    Args:
        model: The model that is to predict them.
        data: A path, an array, or what a network of the user's own takes.

    Raises:
        ArgumentTypeError: If the data are something else.
        DataError: If columns are missing, or hold something else than in the study.
    """
    if not model.inputs:
        none = np.zeros(0, bool)
        return NewRows(_inputs(data), none, none, none, none, none)
    if isinstance(data, str | PathLike):
        return _table(model, Path(data))
    if isinstance(data, np.ndarray):
        return _array(model, data)
    raise argument_type_error("predict", "data", "the path of a file, or an array", data)


def _inputs(data: Any) -> Any:
    """Return what the network of a study of rows that a function loaded takes."""
    from dropkit.study.own.inputs import count_rows, fault, holds_tensors_alone

    if not holds_tensors_alone(data):
        what = "an array" if isinstance(data, np.ndarray) else str(data)
        raise DataError(
            "The study's rows were loaded by a function of your own: give study.predict inputs as the network takes "
            f"them, a tensor or tensors in a tuple, list or dictionary, not {what}."
        )
    wrong = fault(data, count_rows(data))
    if wrong:
        raise DataError(f"The new data are {wrong}.")
    return data


def _array(model: "SavedModel", data: npt.NDArray[Any]) -> NewRows:
    if model.columns:
        raise DataError(f"The study's data are a table with named columns: give a file, not an array of {data.shape}.")
    if data.ndim != 2 or data.shape[1] != model.inputs or not np.issubdtype(data.dtype, np.number):
        raise DataError(f"The array must hold numbers in {model.inputs} columns, got {data.dtype} of {data.shape}.")
    if not np.isfinite(data).all():
        raise DataError("The array holds NaN or infinity; fill or leave out these rows first.")
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
        beyond, far = _beyond(model.ranges, data.astype(np.float32))  # as the study has its own
    none = np.zeros(len(data), bool)
    return NewRows(data, none, none, none, beyond, far)


def _table(model: "SavedModel", path: Path) -> NewRows:
    if not model.columns:
        raise DataError(
            f"The study's data have no named columns, so that {path} cannot be matched with them. In Python, "
            f"dropkit.study.predict takes an array of shape (rows, {model.inputs})."
        )
    table: Table = read_table(path)
    missing = [column.name for column in model.columns if column.name not in table]
    if missing:
        raise DataError(f"{path} lacks the columns {listed(missing)}. It has {listed(table)}.")
    values = np.stack([_encoded(path, column, table[column.name]) for column in model.columns], axis=1)
    is_empty = np.array([[cell is None for cell in table[column.name]] for column in model.columns]).T
    is_category = np.array([column.kind == CATEGORY for column in model.columns])
    lost = np.isnan(values)  # a category that the study had missing is one of its categories
    beyond, far = _beyond(model.ranges, values)
    return NewRows(
        values,
        unknown=(lost & is_category & ~is_empty).any(1),
        missing=(lost & is_empty).any(1),
        infinite=(lost & ~is_category & ~is_empty).any(1),
        beyond=beyond,
        strange=(is_empty | lost).all(1) | far,
    )


def _encoded(path: Path, column: Column, values: list[str | None]) -> npt.NDArray[np.float64]:
    try:
        return encode(column, values)
    except ValueError as error:
        read = as_dates if column.kind == DATE else as_numbers
        row = next(row for row, value in enumerate(values, 1) if value is not None and read([value]) is None)
        example = " such as 2024-12-31" if column.kind == DATE else ""
        raise DataError(
            f"{path}: column {column.name!r} must hold {column.kind}s only{example}, as in the study's table, got "
            f"{str(error)!r} in row {row:,} below the heading."
        ) from None


def _beyond(ranges: Ranges, values: npt.NDArray[Any]) -> tuple[Flags, Flags]:
    """Return which rows have a number beyond the range of its column, and which one beyond by more than that is wide.

    A column that never varied takes the width of the widest one.
    """
    if not ranges:  # of a model that was saved before they were written down
        return np.zeros(len(values), bool), np.zeros(len(values), bool)
    low, high = np.array([(-np.inf, np.inf) if one is None else one for one in ranges]).T
    width = high - low
    width = np.where(width > 0, width, max((one for one in width if np.isfinite(one)), default=0.0))
    outside = np.maximum(low - values, values - high)
    return np.any(outside > 0, axis=1), np.any(outside > width, axis=1)
