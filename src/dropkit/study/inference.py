"""What a column of text holds: numbers, dates, categories, or nothing that a network could learn from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dropkit.study.preparation import CATEGORY, DATE, NUMBER, Column

__all__ = ["MISSING", "Inferred", "as_categories", "as_dates", "as_numbers", "encode", "infer"]

MISSING = "(missing)"
_MOST_CATEGORIES = 50
_IDENTIFIER_SHARE = 0.9
_DATE_FORMATS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M")

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
    numbers = as_numbers(known)
    if numbers is not None:
        if _counts_rows(numbers) and not gaps:
            return Inferred(None, "left out: an identifier, it counts the rows")
        if name.lower() in ("id", "index") or (name.lower().endswith("_id") and len(distinct) == len(values)):
            return Inferred(None, "left out: an identifier, by its name")
        return Inferred(Column(name), f"number, {min(numbers):g} to {max(numbers):g}{filled}")
    dates = as_dates(known)
    if dates is not None:
        return Inferred(Column(name, DATE), f"date, {min(known)} to {max(known)}, as days{filled}")
    if len(known) > 20 and len(distinct) > _IDENTIFIER_SHARE * len(known):
        return Inferred(None, f"left out: an identifier or free text, {len(distinct):,} values in {len(known):,} rows")
    kept = sorted(value for value, _ in distinct.most_common(_MOST_CATEGORIES))
    words = f"category, {len(distinct)} values{filled}"
    if len(kept) < len(distinct):
        words += f", the {len(kept)} most frequent used"
    return Inferred(Column(name, CATEGORY, (*kept, *([MISSING] if gaps else []))), words)


def as_numbers(known: Sequence[str]) -> Numbers | None:
    """Return text as finite numbers, or None where some is none."""
    try:
        numbers = np.array(known, dtype=object).astype(np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def as_dates(known: Sequence[str]) -> Numbers | None:
    """Return text as days since 1970, or None where some is no date in the format of the first."""
    import polars as pl

    texts = pl.Series(list(known))
    for form in _DATE_FORMATS:
        if texts[:1].str.to_datetime(form, strict=False)[0] is not None:
            days = texts.str.to_datetime(form, strict=False).dt.epoch("us").to_numpy() / 86_400e6
            return None if np.isnan(days).any() else days
    return None


def as_categories(values: Values, categories: Sequence[str]) -> Numbers:
    """Return the place of each value in the list, NaN where it is not in there."""
    codes = {category: float(code) for code, category in enumerate(categories)}
    return np.array([codes.get(MISSING if value is None else value, np.nan) for value in values])


def encode(column: Column, values: Values) -> Numbers:
    """Return a column as a data set holds it: numbers with NaN for gaps, days, or codes of categories.

    Raises:
        ValueError: If a value is not of the column's kind.
    """
    if column.kind == CATEGORY:
        return as_categories(values, column.categories)
    known = [value for value in values if value is not None]
    found = np.full(len(values), np.nan)
    if known:
        numbers = as_numbers(known) if column.kind == NUMBER else as_dates(known)
        if numbers is None:
            raise ValueError(column.name)
        found[[value is not None for value in values]] = numbers
    return found


def _counts_rows(numbers: Numbers) -> bool:
    whole = np.sort(numbers)
    return len(whole) > 20 and bool((np.diff(whole) == 1).all())
