"""From a table of text to a data set: which columns a network gets, as what, and what is predicted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit.errors import ArgumentError, DataError
from dropkit.study.dataset import CLASSIFICATION, REGRESSION, Dataset
from dropkit.study.inference import Inferred, as_dates, as_numbers, encode, infer, unread
from dropkit.study.leaks import leaks
from dropkit.study.preparation import DATE, NUMBER, Column
from dropkit.study.reading import Table, listed, read_table
from dropkit.study.sizes import sizes_for

__all__ = ["load_table", "table_dataset"]

_MOST_NUMBERED_CLASSES = 10
_MOST_CLASSES = 100
_LEAST_OF_A_CLASS = 10
_LARGEST_TARGET = 1e30
_MOST_WITHOUT_TIME = 0.1
_FAR = 1e5


def load_table(
    path: str,
    target: str,
    *,
    task: str | None = None,
    test_size: float | None = None,
    group: str | None = None,
    time: str | None = None,
) -> Dataset:
    """Read a CSV or Parquet file as a data set.

    Args:
        path: The file.
        target: The column to predict.
        task: ``"classification"`` or ``"regression"``. Default: classification for words, and for at most 10 different
            whole numbers; regression for other numbers.
        test_size: Share of the rows below 1, or their number, to set aside as test rows. Default: a fifth.
        group: A column whose equal values must not stand on two sides of a split, such as a customer. Default: none.
        time: A column of dates or numbers; later rows are predicted from earlier ones. Default: none.

    Returns:
        The data set; `description` says how each column is used, `warnings` what looks wrong.

    Raises:
        ArgumentError: If a column is unknown or an option out of range.
        DataError: If the file or the target is unfit.
    """
    file = Path(path)
    data = table_dataset(read_table(file), target, name=file.stem, title=file.name, task=task, group=group, time=time)
    options = {"target": target, "task": data.task, "test_size": test_size, "group": group, "time": time}
    origin = {"path": str(file.resolve()), **options}
    return replace(data, origin=origin, sizes=sizes_for(data, test_size))


def table_dataset(
    table: Table,
    target: str,
    *,
    name: str,
    title: str,
    task: str | None = None,
    group: str | None = None,
    time: str | None = None,
) -> Dataset:
    """Build a data set from columns of text; the arguments are those of `load_table`."""
    special = {"target": target, "group": group, "time": time}
    for option, column in special.items():
        if column is not None and column not in table:
            raise ArgumentError(f"--{option} {column!r} is no column of {title}. Its columns: {listed(table)}.")
    given = [column for column in special.values() if column is not None]
    if len(set(given)) != len(given):
        raise ArgumentError(f"--target, --group and --time must be different columns, got {', '.join(given)}.")
    table, gaps = _known(table, target)
    if not table[target]:
        raise DataError(f"{title}: every value of the target {target!r} is missing.")
    table, without_time = _with_time(table, time, title)
    kind, targets, class_names = _targets(table[target], target, title, task)
    found = {column: infer(column, values) for column, values in table.items() if column not in given}
    schema = [(one.column, table[column]) for column, one in found.items() if one.column is not None]
    if not schema:
        reasons = "; ".join(f"{column}: {one.words}" for column, one in found.items())
        raise DataError(f"{title} has no column to predict {target!r} from ({reasons or 'no other column'}).")
    inputs = np.stack([encode(column, values) for column, values in schema], axis=1)
    columns = tuple(column for column, _ in schema)
    numbers = {
        f"The column {column.name!r}": values
        for column, values in zip(columns, inputs.T, strict=True)
        if column.kind == NUMBER
    }
    if kind == REGRESSION:
        numbers[f"The target {target!r}"] = targets.astype(np.float64)
    return Dataset(
        name=name,
        title=title,
        inputs=inputs,
        targets=targets,
        task=kind,
        schema=columns,
        class_names=class_names,
        target_name=target,
        groups=_groups(table, group, title),
        times=_times(table, time, title),
        description=_described(table, found, special, kind, class_names, gaps),
        warnings=(*without_time, *leaks(columns, inputs, targets, target), *_far_off(numbers)),
    )


def _known(table: Table, column: str) -> tuple[Table, int]:
    """Return the rows that have a value in a column, and how many have none."""
    known = [row for row, value in enumerate(table[column]) if value is not None]
    gaps = len(table[column]) - len(known)
    return {name: [values[row] for row in known] for name, values in table.items()} if gaps else table, gaps


def _with_time(table: Table, time: str | None, title: str) -> tuple[Table, tuple[str, ...]]:
    """Return the rows whose time is known, with a warning of the others if they are few."""
    if time is None:
        return table, ()
    rows = len(table[time])
    table, gaps = _known(table, time)
    if gaps > _MOST_WITHOUT_TIME * rows:
        raise DataError(
            f"{title}: {gaps:,} of {rows:,} rows have no {time!r}, more than a tenth. Fill them in, leave these rows "
            "out, or study without --time."
        )
    return table, (f"{gaps:,} of {rows:,} rows have no {time!r} and were left out.",) if gaps else ()


def _targets(
    values: list[Any], target: str, title: str, task: str | None
) -> tuple[str, npt.NDArray[Any], tuple[str, ...]]:
    numbers = as_numbers(values)
    if numbers is not None and not np.isnan(numbers).any() and len(set(numbers.tolist())) < len(set(values)):
        values = [str(number).removesuffix(".0") for number in numbers.tolist()]  # 1 and 1.0 are one class
    distinct = Counter(values)
    if len(distinct) == 1:
        raise DataError(f"{title}: the target {target!r} is always {values[0]!r}: there is nothing to predict.")
    if task is None:
        few = numbers is not None and len(distinct) <= _MOST_NUMBERED_CLASSES and bool((numbers % 1 == 0).all())
        task = CLASSIFICATION if numbers is None or few else REGRESSION
    if task == REGRESSION:
        if numbers is None:
            example = next(value for value in values if as_numbers([value]) is None)
            raise DataError(f"{title}: the target {target!r} must hold numbers for regression, got {example!r}.")
        return task, _checked_numbers(numbers, values, target, title), ()
    if numbers is None and as_dates(values) is not None:
        raise DataError(f"{title}: the target {target!r} holds dates. Predict a class or a number.")
    if len(distinct) > _MOST_CLASSES:
        raise DataError(
            f"{title}: the target {target!r} has {len(distinct):,} different values, more than {_MOST_CLASSES} "
            f"classes{unread(values)}."
        )
    rare, count = min(distinct.items(), key=lambda item: (item[1], item[0]))
    if count < _LEAST_OF_A_CLASS:
        raise DataError(
            f"{title}: class {rare!r} of the target {target!r} has {count} of {len(values):,} rows; every class needs "
            f"{_LEAST_OF_A_CLASS}, to be in every part of the splits. Join it with another class or leave it out."
        )
    names = tuple(sorted(distinct, key=lambda name: (float(name), name) if numbers is not None else (0.0, name)))
    places = {name: place for place, name in enumerate(names)}
    return task, np.array([places[value] for value in values]), names


def _checked_numbers(
    numbers: npt.NDArray[np.float64], values: list[Any], target: str, title: str
) -> npt.NDArray[np.float32]:
    """Return numbers to predict as float32, if it can hold them."""
    where = f"{title}: the target {target!r}"
    infinite = np.isnan(numbers)
    if infinite.any():
        example = values[int(infinite.argmax())]
        raise DataError(
            f"{where} is infinite in {infinite.sum():,} of {len(values):,} rows, such as {example!r}. Leave them out."
        )
    largest, spread = np.abs(numbers).max(), np.ptp(numbers)
    if largest > _LARGEST_TARGET or 0 < spread < 1 / _LARGEST_TARGET:
        raise DataError(
            f"{where} goes from {numbers.min():g} to {numbers.max():g}. Multiply it by a power of ten that brings it "
            "near 1."
        )
    narrow = numbers.astype(np.float32)
    if np.abs(narrow - numbers).max() > 1e-3 * numbers.std():
        raise DataError(
            f"{where} goes from {numbers.min():.17g} to {numbers.max():.17g}, too little for numbers of this size. "
            "Subtract a constant, such as the smallest, from all of them."
        )
    return narrow


def _far_off(numbers: Mapping[str, npt.NDArray[np.float64]]) -> tuple[str, ...]:
    """Return a warning wherever a number is so far from the others that no network can train on it."""
    texts = []
    for what, values in numbers.items():
        known = values[~np.isnan(values)]
        distances = np.abs(known - np.median(known))
        usual = np.quantile(distances, 0.9)
        if usual > 0 and distances.max() / _FAR > usual:
            texts.append(
                f"{what} holds {known[distances.argmax()]:g}, while nine rows in ten are within "
                f"{usual:g} of its median: such a number hides all others. If it is wrong, correct it and run again."
            )
    return tuple(texts)


def _groups(table: Table, group: str | None, title: str) -> npt.NDArray[Any] | None:
    if group is None:
        return None
    values: list[object] = [row if value is None else value for row, value in enumerate(table[group])]
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    if len(places) < 10:
        raise DataError(f"{title}: the groups of {group!r} are only {len(places)}; splits need 10 at least.")
    return np.array([places[value] for value in values])


def _times(table: Table, time: str | None, title: str) -> npt.NDArray[Any] | None:
    if time is None:
        return None
    values = table[time]
    known = [value for value in values if value is not None]
    column = Column(time) if as_numbers(known) is not None else Column(time, DATE)
    try:
        times = encode(column, known)
    except ValueError as error:
        raise DataError(
            f"{title}: {time!r} must hold numbers or dates such as 2024-12-31, got {str(error)!r}."
        ) from None
    infinite = int(np.isnan(times).sum())
    if infinite:
        raise DataError(f"{title}: {infinite:,} rows have an infinite {time!r}. Leave them out.")
    if len(np.unique(times)) == 1:
        raise DataError(f"{title}: {time!r} is always {known[0]!r}: no row is later than another.")
    return times


def _described(
    table: Table,
    found: Mapping[str, Inferred],
    special: Mapping[str, str | None],
    task: str,
    names: tuple[str, ...],
    gaps: int,
) -> tuple[tuple[str, str], ...]:
    """Say of each column what it is used as, or why it is left out."""
    group, time = special["group"], special["time"]
    what = f"target, {len(names)} classes: {listed(names, most=5)}" if names else f"target, {task}"
    what += f"; {gaps:,} rows without it left out" if gaps else ""
    uses = {"group": "group, its rows stay on one side of a split", "time": "time, later rows are predicted"}
    if group is not None and None in table[group]:
        uses["group"] += f"; {table[group].count(None):,} rows without one stand alone"
    if time is not None and len(set(table[time])) < len(table[time]):
        uses["time"] += "; rows of one time may stand on two sides"
    head = [(str(special["target"]), what)]
    head += [(str(special[option]), words) for option, words in uses.items() if special[option] is not None]
    return (*head, *((column, one.words) for column, one in found.items()))
