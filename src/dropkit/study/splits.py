"""Splits of the rows: the test rows set aside once, then a split a seed. All follow from the study's seed alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dropkit.errors import DataError
from dropkit.random import call_key
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset
from dropkit.study.group_split import apportion, stratified_groups

__all__ = ["Split", "check_splits", "outer_split", "seed_key", "seed_split"]

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
    """Return the test rows, set aside before anything else, and the rows that are left: of data with times the last."""
    everything = np.arange(data.rows)
    if data.times is not None:
        rest, test = _newest(data, everything, budget.test_rows)
    else:
        rest, test = _divide(data, everything, budget.test_rows, call_key(seed, "study test rows", 0))
    return test, rest


def seed_split(data: Dataset, rest: Rows, budget: Budget, key: int) -> Split:
    """Return the split of the rows that are left, under the key of one seed.

    Of data with times, a seed draws a moment: it is validated on the rows after it, its epoch is chosen by the rows
    before it, and it trains on rows drawn from those before these.
    """
    if data.times is not None:
        rest = _up_to_a_moment(data, rest, budget, key)
        others, validation = _newest(data, rest, budget.validation_rows)
        others, inner = _newest(data, others, budget.inner_rows)
        others = _shuffled(others, key)
    else:
        others, validation = _divide(data, rest, budget.validation_rows, call_key(key, "validation rows", 0))
        others, inner = _divide(data, others, budget.inner_rows, call_key(key, "inner rows", 0))
    train = others[: budget.train_rows]
    if len(train) < budget.train_rows:
        raise DataError(
            f"Data set {data.name!r}: only {len(train)} of {budget.train_rows} training rows are left beside whole "
            "groups. Give a --group with smaller groups."
        )
    split = Split(train, inner, validation)
    _check_classes(data, split)
    return split


def check_splits(data: Dataset, budget: Budget, seed: int) -> None:
    """Draw the split of every seed once, so that data which cannot be split are refused before a run begins.

    Raises:
        DataError: If the rows do not reach, or a class has too few.
    """
    _, rest = outer_split(data, budget, seed)
    for number in range(budget.selection_seeds + budget.confirmation_seeds):
        seed_split(data, rest, budget, seed_key(seed, number))


def _check_classes(data: Dataset, split: Split) -> None:
    """Refuse a split without rows of a class; of data with times only among the training rows, as later ones differ."""
    if not data.is_classification:
        return
    parts = {"training": split.train}
    if data.times is None:
        parts |= {"inner": split.inner, "validation": split.validation}
    for name, rows in parts.items():
        absent = np.flatnonzero(np.bincount(data.targets[rows].astype(np.int64), minlength=data.classes) == 0)
        if len(absent):
            of_class = np.count_nonzero(data.targets == absent[0])
            raise DataError(
                f"Data set {data.name!r}: class {_class_name(data, absent[0])!r} has {of_class} of {data.rows:,} rows, "
                f"and a split left none of them among the {len(rows)} {name} rows. Give more rows of this class, or "
                "join or leave it out."
            )


def _class_name(data: Dataset, place: int) -> str:
    return data.class_names[place] if data.class_names else str(place)


def _divide(data: Dataset, rows: Rows, count: int, key: int) -> tuple[Rows, Rows]:
    """Set `count` of the rows aside, every class in its share, or whole groups."""
    from sklearn.model_selection import train_test_split

    if data.is_classification and count < data.classes:
        raise DataError(
            f"Data set {data.name!r}: {count} of {len(rows)} rows cannot be set aside with every class among them, as "
            f"there are {data.classes} classes. Set more aside, or give more rows."
        )
    if data.groups is not None:
        if len(rows) <= count:
            raise DataError(
                f"Data set {data.name!r}: only {len(rows)} rows are left beside whole groups, and {count} of them must "
                "be set aside. Give a --group with smaller groups."
            )
        divide = _divide_classes_by_group if data.is_classification else _divide_groups
        return divide(data, data.groups, rows, count, key)
    classes = data.targets[rows] if data.is_classification else None
    try:
        kept, aside = train_test_split(rows, test_size=count, stratify=classes, random_state=key % 2**32)
    except ValueError:
        smallest = int(np.bincount(data.targets[rows]).min()) if data.is_classification else len(rows)
        raise DataError(
            f"Data set {data.name!r}: {count} of {len(rows)} rows cannot be set aside with every class on both sides: "
            f"the rarest class has {smallest} of them. Give more rows, or join or leave out rare classes."
        ) from None
    return kept, aside


def _divide_groups(data: Dataset, groups: Rows, rows: Rows, count: int, key: int) -> tuple[Rows, Rows]:
    """Set whole groups aside until they hold `count` rows; rows of theirs beyond it are used on neither side."""
    rows = _shuffled(rows, key)
    names, sizes = np.unique(groups[rows], return_counts=True)
    order = _shuffled(np.arange(len(names)), key)
    taken = names[order[: np.searchsorted(np.cumsum(sizes[order]), count) + 1]]
    is_aside = np.isin(groups[rows], taken)
    return rows[~is_aside], rows[is_aside][:count]


def _divide_classes_by_group(data: Dataset, groups: Rows, rows: Rows, count: int, key: int) -> tuple[Rows, Rows]:
    """Do the same with every class on both sides, in its share as nearly as whole groups allow."""
    rng = np.random.default_rng(key)
    rows = rng.permutation(rows)
    classes = data.targets[rows].astype(np.int64)
    is_aside = stratified_groups(groups[rows], classes, count, rng)
    kept, aside = rows[~is_aside], rows[is_aside]
    shares = np.bincount(classes, minlength=data.classes) / len(rows)
    aside = aside[apportion(classes[is_aside], shares, count)]
    for part in (kept, aside):
        absent = np.flatnonzero(np.bincount(data.targets[part].astype(np.int64), minlength=data.classes) == 0)
        if len(absent):
            holding = len(np.unique(groups[rows[classes == absent[0]]]))
            every = len(np.unique(groups[rows]))
            raise DataError(
                f"Data set {data.name!r}: {count} of {len(rows)} rows cannot be set aside in whole groups with every "
                f"class on both sides: class {_class_name(data, absent[0])!r} is in {holding} of {every} groups. Give "
                "more rows, a --group with smaller groups, or join or leave out this class."
            )
    return kept, aside


def _shuffled(values: Rows, key: int) -> Rows:
    return np.random.default_rng(key).permutation(values)


def _newest(data: Dataset, rows: Rows, count: int) -> tuple[Rows, Rows]:
    """Set the latest `count` rows aside; of groups that are on both sides, the earlier rows go."""
    ordered = _by_time(data, rows)
    before, after = ordered[:-count], ordered[-count:]
    if data.groups is not None:
        before = before[~np.isin(data.groups[before], data.groups[after])]
    return before, after


def _by_time(data: Dataset, rows: Rows) -> Rows:
    """Return the rows in the order of their times; those of one time in any order but that of the file."""
    times = data.times
    assert times is not None  # noqa: S101  # asked only of data with times
    if len(np.unique(times)) == len(times):
        return rows[np.argsort(times[rows])]
    ties = np.random.default_rng(0).permutation(len(times))
    return rows[np.lexsort((ties[rows], times[rows]))]


def _up_to_a_moment(data: Dataset, rows: Rows, budget: Budget, key: int) -> Rows:
    """Return the rows up to a moment that the seed draws, late enough for all parts of the split."""
    needed = budget.train_rows + budget.inner_rows + budget.validation_rows
    spare = max(len(rows) - needed, 0)
    end = len(rows) - int(np.random.default_rng(key).integers(0, spare + 1))
    return _by_time(data, rows)[:end]
