"""Splits of the rows: the test rows set aside once, then a split a seed. All follow from the study's seed alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dropkit.errors import DataError
from dropkit.random import call_key
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset

__all__ = ["Split", "outer_split", "seed_key", "seed_split"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one seed: trained on, choosing the epoch, and scoring."""

    train: Rows
    inner: Rows
    validation: Rows


def seed_key(seed: int, number: int) -> int:
    """Return the key from which seed `number` of the study draws its split, its first weights, shuffles and masks."""
    return call_key(seed, "study seed", number)


def outer_split(data: Dataset, budget: Budget, seed: int) -> tuple[Rows, Rows]:
    """Return the test rows, set aside before anything else, and the rows that are left."""
    rest, test = _divide(data, np.arange(data.rows), budget.test_rows, call_key(seed, "study test rows", 0))
    return test, rest


def seed_split(data: Dataset, rest: Rows, budget: Budget, key: int) -> Split:
    """Return the split of the rows that are left, under the key of one seed."""
    others, validation = _divide(data, rest, budget.validation_rows, call_key(key, "validation rows", 0))
    others, inner = _divide(data, others, budget.inner_rows, call_key(key, "inner rows", 0))
    train = others[: budget.train_rows]
    return Split(train, inner, validation)


def _divide(data: Dataset, rows: Rows, count: int, key: int) -> tuple[Rows, Rows]:
    """Set `count` of the rows aside, every class in its share."""
    from sklearn.model_selection import train_test_split

    try:
        kept, aside = train_test_split(rows, test_size=count, stratify=data.targets[rows], random_state=key % 2**32)
    except ValueError as error:
        raise DataError(
            f"Data set {data.name!r}: {count} of {len(rows)} rows with every class cannot be set aside ({error})"
        ) from None
    return kept, aside
