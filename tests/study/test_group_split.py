"""Whole groups on one side, exact numbers of rows, and every class in its share as nearly as groups allow."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from dropkit.errors import DataError
from dropkit.study import Budget, Dataset
from dropkit.study.group_split import apportion, stratified_groups
from dropkit.study.splits import outer_split, seed_key, seed_split

Rows = np.ndarray


def budget(rows: int) -> Budget:
    return Budget(
        "t", test_rows=rows // 5, train_rows=rows // 3, inner_rows=rows // 12, validation_rows=rows // 6
    )  # fmt: skip


def parts(data: Dataset, seed: int) -> list[Rows]:
    test, rest = outer_split(data, budget(data.rows), seed)
    split = seed_split(data, rest, budget(data.rows), seed_key(seed, 0))
    return [test, split.train, split.inner, split.validation]


def grouped(groups: Rows, targets: Rows, task: str = "classification") -> Dataset:
    return Dataset("shops", "Shops", np.zeros((len(groups), 1)), targets, groups=groups, task=task)


def mixed() -> tuple[Rows, Rows]:
    """60 groups of 10 rows, most of them nearly of one class."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    return groups, (rng.random(600) < rng.beta(0.3, 0.9, 60)[groups]).astype(int)


def varied() -> tuple[Rows, Rows]:
    """100 groups of 1 to about 60 rows, each of one class of four."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(100), rng.geometric(0.08, 100))
    return groups, (np.arange(100) % 4)[groups]


def giant() -> tuple[Rows, Rows]:
    """A third of the rows in one group, the others in a hundred."""
    groups = np.concatenate([np.zeros(300, int), 1 + np.repeat(np.arange(100), 6)])
    return groups, np.random.default_rng(2).choice(3, 900, p=[0.6, 0.3, 0.1])


@pytest.mark.parametrize("make", [mixed, varied, giant])
def test_classes_keep_their_shares_in_whole_groups(make: Callable[[], tuple[Rows, Rows]]) -> None:
    data = grouped(*make())
    overall = np.bincount(data.targets) / data.rows
    drawn = set()
    for seed in range(10):
        found = parts(data, seed)
        sizes = budget(data.rows)
        wanted = [sizes.test_rows, sizes.train_rows, sizes.inner_rows, sizes.validation_rows]
        assert [len(part) for part in found] == wanted
        for one, other in itertools.combinations(found, 2):
            assert not set(data.groups[one]) & set(data.groups[other])
        for part in found:
            shares = np.bincount(data.targets[part], minlength=len(overall)) / len(part)
            np.testing.assert_allclose(shares, overall, atol=0.06)
        assert all((part == again).all() for part, again in zip(found, parts(data, seed), strict=True))
        drawn.add(tuple(sorted(found[0])))
    assert len(drawn) == 10


def test_groups_drawn_without_regard_to_classes_are_further_off() -> None:
    """The tolerance above means something: of plain draws of the same groups most parts break it."""
    groups, targets = mixed()
    rng = np.random.default_rng(0)
    far = [abs(targets[np.isin(groups, rng.permutation(60)[:5])].mean() - targets.mean()) > 0.06 for _ in range(200)]
    assert np.mean(far) > 0.5


def test_a_class_in_as_few_groups_as_there_are_parts_is_in_every_part() -> None:
    groups = np.repeat(np.arange(60), 10)
    data = grouped(groups, (groups < 5).astype(int))
    for seed in range(5):
        assert all(len(np.unique(data.targets[part])) == 2 for part in parts(data, seed))


def test_like_groups_are_drawn_equally_often() -> None:
    """Chi-squared test at a false-alarm rate of 1e-6: taking the most even draw favours no group of equal ones."""
    groups = np.repeat(np.arange(40), 10)
    classes = np.tile([0, 0, 0, 1], 100)[: len(groups)]
    classes = np.where(groups % 2, classes, 1 - classes)
    times = np.zeros(40)
    for seed in range(400):
        taken = np.unique(groups[stratified_groups(groups, classes, 100, np.random.default_rng(seed))])
        assert len(taken) == 10
        times[taken] += 1
    deviation = ((times - 100) ** 2).sum() / (100 * 0.75) * 39 / 40
    assert stats.chi2.sf(deviation, 39) > 1e-6


@pytest.mark.parametrize(
    ("groups", "targets", "message"),
    [
        (np.repeat(np.arange(60), 10), np.arange(600) // 10 == 7, r"class '1' is in 1 of 60 groups. Give more rows"),
        (np.minimum(np.arange(600) // 10, 5), np.arange(600) % 2, "groups"),
        (np.concatenate([np.zeros(550, int), np.arange(1, 51)]), np.arange(600) % 2, "are left beside whole groups"),
    ],
)
def test_groups_that_cannot_be_divided_are_refused(groups: Rows, targets: Rows, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parts(grouped(groups, targets.astype(int)), 0)


def test_numbers_to_predict_ask_nothing_of_the_groups() -> None:
    groups = np.repeat(np.arange(60), 10)
    found = parts(grouped(groups, np.arange(600.0), "regression"), 0)
    assert [len(part) for part in found] == [120, 200, 50, 100]
    for one, other in itertools.combinations(found, 2):
        assert not set(groups[one]) & set(groups[other])


def test_seats_are_apportioned_as_sainte_lague_does() -> None:
    """Seven seats for 53, 24 and 23 votes are 3, 2 and 2: by the quotients 53, 24, 23, 17.7, 10.6, 8 and 7.7."""
    votes = np.array([53.0, 24.0, 23.0])
    classes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 10))
    chosen = apportion(classes, votes, 7)
    np.testing.assert_array_equal(np.bincount(classes[chosen]), [3, 2, 2])
    for kind, number in enumerate([3, 2, 2]):
        np.testing.assert_array_equal(chosen[classes[chosen] == kind], np.flatnonzero(classes == kind)[:number])


def test_a_class_with_too_few_rows_gives_all_it_has() -> None:
    classes = np.array([0] * 2 + [1] * 20)
    np.testing.assert_array_equal(np.bincount(classes[apportion(classes, np.array([0.5, 0.5]), 12)]), [2, 10])
