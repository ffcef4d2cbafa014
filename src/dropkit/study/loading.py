"""From what a user names to a data set: an embedded source, a file, or a `Dataset` of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropkit._checks import Choice, Number, argument_error, argument_type_error
from dropkit.errors import ArgumentError, RunError
from dropkit.study.dataset import CLASSIFICATION, REGRESSION, Dataset
from dropkit.study.plan import Plan
from dropkit.study.sources import SOURCES
from dropkit.study.tabular import load_table

__all__ = ["TableOptions", "data_name", "load", "load_again"]

_TASK = Choice((CLASSIFICATION, REGRESSION))
_TEST_SIZE = Number(0.0, 10**9, open_low=True, remedy="Below 1 it is a share of the rows, from 1 on their number.")


@dataclass(frozen=True)
class TableOptions:
    """What a user says about a file; see `load_table`."""

    target: str | None = None
    task: str | None = None
    test_size: float | None = None
    group: str | None = None
    time: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


def load(where: str, data: object, options: TableOptions) -> Dataset:
    """Return the data set that a user means."""
    _check_options(where, options)
    if isinstance(data, str) and (data not in SOURCES) and _looks_like_a_file(data):
        return _load_file(where, data, options)
    if not isinstance(data, str | Dataset) or (isinstance(data, str) and data not in SOURCES):
        known = ", ".join(repr(name) for name in SOURCES)
        raise argument_error(where, "data", f"one of {known}, or the path of a CSV or Parquet file", data)
    if options.given():
        names = ", ".join(f"`{name}`" for name in options.given())
        raise ArgumentError(f"{where}: {names} must be left out for data that are no file, got data {data!r}.")
    return data if isinstance(data, Dataset) else SOURCES[data]()


def load_again(plan: Plan, path: Path) -> Dataset:
    """Return the data set that a run began with."""
    origin, name = plan.data.get("origin"), str(plan.data["name"])
    if origin:
        return load_table(**origin)
    if name not in SOURCES:
        raise RunError(f"{path} began with a data set of your own, {name!r}: give it to `resume` as `data`.")
    return SOURCES[name]()


def data_name(data: str) -> str:
    """Return the short name of a source or a file, for the run directory."""
    return Path(data).stem if data not in SOURCES else data


def _looks_like_a_file(data: str) -> bool:
    if not data or Path(data).suffix or "/" in data:
        return bool(data)
    try:
        return Path(data).exists()
    except OSError:  # no file system has such a name
        return False


def _load_file(where: str, path: str, options: TableOptions) -> Dataset:
    if options.target is None:
        from dropkit.study.reading import listed, read_table

        columns = listed(read_table(Path(path)))
        raise ArgumentError(f"{where}: `target` must name the column to predict. The columns of {path}: {columns}.")
    return load_table(path, **options.given())


def _check_options(where: str, options: TableOptions) -> None:
    for name in ("target", "group", "time"):
        value = getattr(options, name)
        if value is not None and not isinstance(value, str):
            raise argument_type_error(where, name, "the name of a column", value)
    if options.task is not None:
        _TASK.check(where, "task", options.task)
    if options.test_size is not None:
        size = _TEST_SIZE.check(where, "test_size", options.test_size)
        if size > 1 and not size.is_integer():
            raise argument_error(where, "test_size", "a share of the rows below 1, or a whole number", size)
