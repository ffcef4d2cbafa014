"""What a column of text holds: numbers, dates, categories, or nothing that a network could learn from."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dropkit.study.preparation import CATEGORY, DATE, NUMBER, Column

__all__ = ["MISSING", "Inferred", "as_categories", "as_dates", "as_numbers", "encode", "infer", "unread"]

MISSING = "(missing)"
_MOST_CATEGORIES = 50
_IDENTIFIER_SHARE = 0.9
_LARGEST = 1e307  # differences of larger numbers overflow
_DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d %B %Y", "%d-%B-%Y", "%B %d, %Y", "%B %d %Y")
_TIMES = ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f")
_ZONES = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z")
_DATE_FORMATS = (*(day + time for time in _TIMES for day in _DAYS), *_ZONES)
_YEAR = r"(^|[^0-9])[0-9]{4}([^0-9]|$)"
_DAY_OR_MONTH_FIRST = re.compile(r"\d{1,2}([/-])\d{1,2}\1\d{2}(\d{2})?\b.*|\d{1,2}\.\d{1,2}\.\d{2}\b.*")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_MARKED_NUMBER = re.compile(r"[+-]?[$€£¥]?\s?[+-]?(\d+|[1-9]\d{0,2}([,']\d{3})+)(\.\d+)?\s?[%$€£¥]?")

Values = Sequence[str | None]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Inferred:
    """What was found in a column; `column` is None where it is left out, and `words` says what it is used as or why."""

    column: Column | None
    words: str


def infer(name: str, values: Values) -> Inferred:
    """Tell what a column holds from its values."""
    known = [value for value in values if value is not None]
    gaps = len(values) - len(known)
    if not known:
        return Inferred(None, "left out: every value is missing")
    distinct = Counter(known)
    if len(distinct) == 1 and not gaps:
        return Inferred(None, f"left out: always {known[0]!r}")
    filled = f", {gaps:,} missing" if gaps else ""
    if len(distinct) > 1:  # one value and gaps: a category says which rows have it
        found = _number(name, known, filled) or _date(name, known, filled)
        if found is not None:
            return found
    if all(_DAY_OR_MONTH_FIRST.fullmatch(value) for value in distinct):
        return Inferred(
            None, f"left out: dates such as {known[0]!r} may be read in two ways; write them as in 2024-12-31"
        )
    hint = unread(known)
    if len(known) > 20 and len(distinct) > _IDENTIFIER_SHARE * len(known):
        words = f"left out: an identifier or free text, {len(distinct):,} values in {len(known):,} rows{hint}"
        return Inferred(None, words)
    kept = sorted(value for value, _ in distinct.most_common(_MOST_CATEGORIES))
    words = f"category, {len(distinct)} values{filled}"
    if len(kept) < len(distinct):
        words += f", the {len(kept)} most frequent used"
    return Inferred(Column(name, CATEGORY, (*kept, *([MISSING] if gaps else []))), words + hint)


def _number(name: str, known: Sequence[str], filled: str) -> Inferred | None:
    """Tell what a column of numbers is used as; None where it holds something else."""
    numbers = as_numbers(known)
    if numbers is None:
        return None
    finite = numbers[~np.isnan(numbers)]
    if not len(finite):
        return Inferred(None, "left out: every value is infinite")
    if _counts_rows(numbers) and not filled:
        return Inferred(None, "left out: an identifier, it counts the rows")
    if name.lower() in ("id", "index") or (
        name.lower().endswith("_id") and len(set(known)) == len(known) and not filled
    ):
        return Inferred(None, "left out: an identifier, by its name")
    infinite = len(numbers) - len(finite)
    filled += f", {infinite:,} infinite, taken as missing" if infinite else ""
    return Inferred(Column(name), f"number, {finite.min():g} to {finite.max():g}{filled}")


def _date(name: str, known: Sequence[str], filled: str) -> Inferred | None:
    """Tell what a column of dates is used as; None where it holds something else."""
    days = as_dates(known)
    if days is None:
        return None
    first, last = (np.datetime64(int(np.floor(day)), "D") for day in (days.min(), days.max()))
    return Inferred(Column(name, DATE), f"date, {first} to {last}, as days{filled}")


def unread(known: Sequence[str]) -> str:
    """Say what kept a column that is mostly numbers or dates from being read as such; nothing of other columns."""
    if all(_DECIMAL_COMMA.fullmatch(value) for value in known):
        return "; commas are not read as decimal points or between thousands: write 3.5 or 3500"
    if all(_MARKED_NUMBER.fullmatch(value) for value in known):
        example = next((value for value in known if as_numbers([value]) is None), None)
        if example is not None:
            plain = re.sub(r"[^\d.+-]", "", example)
            return f"; signs of percent, currency or thousands are not read: write {plain} for {example!r}"
    for kind, is_read in (
        ("numbers", [as_numbers([value]) is not None for value in known]),
        ("dates", _days(known) > -np.inf),
    ):
        others = [value for value, read in zip(known, is_read, strict=True) if not read]
        if 0 < len(others) < len(known) / 2:
            return f"; mostly {kind}, but {len(others):,} cannot be read as such, for example {others[0]!r}"
    return ""


def as_numbers(known: Sequence[str]) -> Numbers | None:
    """Return text as numbers, NaN for infinite ones, or None where some is none."""
    try:
        numbers = np.array(known, dtype=object).astype(np.float64)
    except ValueError:
        return None
    numbers[~(np.abs(numbers) <= _LARGEST)] = np.nan
    return numbers


def as_dates(known: Sequence[str]) -> Numbers | None:
    """Return text as days since 1970, or None where some is no date that has but one meaning."""
    days = _days(known)
    return None if np.isnan(days).any() else days


def _days(known: Sequence[str]) -> Numbers:
    """Return text as days since 1970, NaN for what is no date. A time with a zone counts as that of Greenwich."""
    import polars as pl

    texts = pl.Series(known, dtype=pl.String)
    texts = texts.set(~texts.str.contains(_YEAR), None)  # 1-2-3 would be a day of the year 1
    days = pl.Series([None] * len(texts), dtype=pl.Int64)
    for form in _DATE_FORMATS if texts.count() else ():
        found = texts.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")
        days = days.zip_with(days.is_not_null(), found)
        if not days.null_count():
            break
    return days.cast(pl.Float64).to_numpy() / 86_400e6


def as_categories(values: Values, categories: Sequence[str]) -> Numbers:
    """Return the place of each value in the list, NaN where it is not in there."""
    codes = {category: float(code) for code, category in enumerate(categories)}
    return np.array([codes.get(MISSING if value is None else value, np.nan) for value in values])


def encode(column: Column, values: Values) -> Numbers:
    """Return a column as a data set holds it: numbers with NaN for gaps, days, or codes of categories.

    Raises:
        ValueError: If a value is not of the column's kind; it names the first such value.
    """
    if column.kind == CATEGORY:
        return as_categories(values, column.categories)
    known = [value for value in values if value is not None]
    found = np.full(len(values), np.nan)
    if known:
        read = as_numbers if column.kind == NUMBER else as_dates
        numbers = read(known)
        if numbers is None:
            raise ValueError(next(value for value in known if read([value]) is None))
        found[[value is not None for value in values]] = numbers
    return found


def _counts_rows(numbers: Numbers) -> bool:
    whole = np.sort(numbers)
    return len(whole) > 20 and bool((np.diff(whole) == 1).all())
