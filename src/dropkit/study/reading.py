"""Reading a table from a CSV or Parquet file: columns of text, None where a value is missing."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from dropkit.errors import DataError

__all__ = ["Table", "columns_of_text", "listed", "read_table"]

Table = dict[str, list[str | None]]

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "nat", "?", "-", "#n/a", "(missing)"})
_SEPARATORS = ",;\t|"
_PARQUET = b"PAR1"
_QUOTED = re.compile(r'"[^"]*"')
_HEADING = re.compile(r'(?:"[^"]*"|[^"\r\n])*')


def read_table(path: Path) -> Table:
    """Read a Parquet file, known by its first bytes, or else CSV with a heading.

    A CSV file is UTF-8; its fields stand between commas, semicolons, tabs or bars, whichever the heading has most of.

    Raises:
        DataError: If the file is missing, empty, no such table, ragged, or two columns share a name.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory. Name a CSV or Parquet file.")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Name a CSV or Parquet file.") from None
    if not content.strip():
        raise DataError(f"{path} is empty. A table needs a heading and rows.")
    if not content.startswith(_PARQUET) and path.suffix.lower() in (".parquet", ".pq"):
        raise DataError(f"{path} is no Parquet file: it does not begin with PAR1. If it is CSV, name it .csv.")
    table = _parquet(path, content) if content.startswith(_PARQUET) else _csv(path, content)
    if not table or not next(iter(table.values())):
        raise DataError(f"{path} has no rows below its heading.")
    return table


def listed(names: Iterable[str], most: int = 30) -> str:
    """Return names in one line, for a sentence; of very many the first ones."""
    every = _one_line(names)
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more:,} more" if more > 0 else "")


def columns_of_text(names: list[str], rows: list[list[str]]) -> Table:
    """Turn rows of text into columns, with None for what stands for a missing value."""
    cleaned = [[None if (text := cell.strip()).lower() in _MISSING else text for cell in row] for row in rows]
    return {name: list(column) for name, column in zip(names, zip(*cleaned, strict=True), strict=True)}


def _csv(path: Path, content: bytes) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8. Save the table as CSV in UTF-8, or as Parquet.") from None
    if "\0" in text:
        raise DataError(f"{path} is no text: it holds zero bytes. Save the table as CSV in UTF-8, or as Parquet.")
    text = text.lstrip("\r\n")
    heading = _HEADING.match(text)
    separator = max(_SEPARATORS, key=_QUOTED.sub("", heading.group() if heading else "").count)
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = _one_line(next(reader))
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path} is ragged: line {reader.line_num} has {len(row)} fields, the heading {len(names)}."
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path} is no CSV: line {reader.line_num}: {error}.") from None
    _check_names(path, names)
    return columns_of_text(names, rows) if rows else {}


def _parquet(path: Path, content: bytes) -> Table:
    import polars as pl

    try:
        frame = pl.read_parquet(content)
        unfit = [name for name, kind in frame.schema.items() if kind.is_nested() or kind in (pl.Binary, pl.Duration)]
        if unfit:
            kind = frame.schema[unfit[0]]
            raise DataError(f"{path}: column {unfit[0]!r} holds {kind}. Leave it out or turn it into numbers.")
        text = frame.select(pl.all().cast(pl.String))
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is no Parquet file that can be read: {reason}.") from None
    names = _one_line(text.columns)
    _check_names(path, names)
    return columns_of_text(names, [["" if cell is None else cell for cell in row] for row in text.iter_rows()])


def _one_line(names: Iterable[str]) -> list[str]:
    return [" ".join(line.strip() for line in name.splitlines()).strip() for name in names]


def _check_names(path: Path, names: list[str]) -> None:
    if not all(names):
        raise DataError(f"{path}: column {names.index('') + 1} has no name. The first line must name every column.")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]!r}. Rename one.")
