"""Splits: nothing is used twice, every class is everywhere, and all follows from the seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError, DataError
from dropkit.study import SOURCES, Budget, Dataset
from dropkit.study.packed import shuffled
from dropkit.study.splits import check_splits, outer_split, seed_key, seed_split


def test_parts_are_disjoint_and_of_the_right_size(toy: Dataset, tiny: Budget) -> None:
    test, rest = outer_split(toy, tiny, 3)
    for number in range(4):
        split = seed_split(toy, rest, tiny, seed_key(3, number))
        parts = [test, split.train, split.inner, split.validation]
        assert [len(part) for part in parts] == [100, 200, 60, 100]
        together = np.concatenate(parts)
        assert len(np.unique(together)) == len(together)
        for part in parts:
            shares = np.bincount(toy.targets[part], minlength=3) / len(part)
            np.testing.assert_allclose(shares, np.bincount(toy.targets) / toy.rows, atol=0.03)


def test_test_rows_do_not_depend_on_seeds_of_the_study_and_splits_do(toy: Dataset, tiny: Budget) -> None:
    test, rest = outer_split(toy, tiny, 0)
    again, _ = outer_split(toy, tiny, 0)
    assert (test == again).all()
    assert set(test) != set(outer_split(toy, tiny, 1)[0])
    first, second = (seed_split(toy, rest, tiny, seed_key(0, number)) for number in (0, 1))
    assert set(first.validation) != set(second.validation)
    same = seed_split(toy, rest, tiny, seed_key(0, 0))
    assert (same.train == first.train).all()


def test_shuffles_keep_the_rows_and_change_with_the_epoch(toy: Dataset) -> None:
    rows = np.arange(200)
    first, second = shuffled(seed_key(0, 0), rows, 0), shuffled(seed_key(0, 0), rows, 1)
    assert sorted(first) == sorted(second) == list(rows)
    assert (first != second).any()
    assert (first == shuffled(seed_key(0, 0), rows, 0)).all()


def test_a_class_too_small_to_split_is_refused(tiny: Budget) -> None:
    targets = np.zeros(500, np.int64)
    targets[0] = 1
    data = Dataset("lone", "One of a kind", np.ones((500, 2)), targets)
    with pytest.raises(DataError, match=r"lone.*100 of 500 rows cannot be set aside with every class on both sides"):
        outer_split(data, tiny, 0)


@pytest.mark.parametrize("grouped", [False, True])
def test_fewer_rows_than_classes_cannot_be_set_aside(grouped: bool, tiny: Budget) -> None:
    groups = np.arange(600) // 2 if grouped else None
    data = Dataset("even", "Even", np.ones((600, 2)), np.arange(600) % 3, groups=groups)
    with pytest.raises(
        DataError, match=r"2 of 600 rows cannot .* every class among them, as there are 3 classes"
    ) as caught:
        outer_split(data, replace(tiny, test_rows=2), 0)
    assert "rare" not in str(caught.value)


def test_rows_of_one_time_are_not_taken_in_the_order_of_the_file(tiny: Budget) -> None:
    """Of a file sorted by class, the newest rows of one time hold both classes in their shares, within 5 deviations."""
    targets = np.repeat([0, 1], 1000)
    data = Dataset("sorted", "Sorted", np.ones((2000, 1)), targets, times=np.zeros(2000))
    test, rest = outer_split(data, tiny, 0)
    assert abs(targets[test].mean() - 0.5) < 5 * 0.5 / np.sqrt(len(test))
    assert len(set(test) | set(rest)) == 2000
    assert (outer_split(data, tiny, 0)[0] == test).all()


@pytest.mark.parametrize("timed", [False, True])
def test_a_class_that_a_split_leaves_out_is_refused(tiny: Budget, timed: bool) -> None:
    """Of data with times a class may be missing later on, but not where the network learns."""
    targets = np.zeros(5000, np.int64)
    targets[-10:] = 1
    data = Dataset(
        "late",
        "Late",
        np.ones((5000, 2)),
        targets,
        class_names=("old", "new"),
        times=np.arange(5000) if timed else None,
    )
    with pytest.raises(DataError, match=r"class 'new' has 10 of 5,000 rows, and a split left none of them among the"):
        check_splits(data, tiny, 0)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.zeros(3), np.zeros(3, int), "shape"),
        (np.zeros((3, 2)), np.zeros(2, int), "shape"),
        (np.zeros((0, 2)), np.zeros(0, int), "shape"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "integers from 0"),
        (np.zeros((2, 2)), np.array([-1, 1]), "integers from 0"),
        (np.zeros((2, 2)), np.array([0, 0]), "at least two"),
        (np.zeros((2, 2)), np.array([0, 2]), "every class"),
        (np.array([["a"], ["b"]]), np.array([0, 1]), "numbers"),
        (np.array([[np.nan], [1]]), np.array([0, 1]), "NaN or infinity"),
        (np.array([[1e300], [1]]), np.array([0, 1]), "NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_unfit_data_are_refused(inputs: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"Data set 'bad'.*{message}"):
        Dataset("bad", "Bad", inputs, targets)


def test_every_source_loads() -> None:
    for name, load in SOURCES.items():
        data = load()
        assert data.name == name
        assert data.title
        assert data.note
    mnist = SOURCES["mnist"]()
    assert (mnist.rows, mnist.columns, mnist.classes) == (5000, 784, 10)
    assert (mnist.inputs.min(), mnist.inputs.max()) == (0.0, 1.0)


def test_data_that_cannot_be_split_leave_nothing_behind(tmp_path: Path) -> None:
    targets = (np.arange(400) < 3).astype(int)
    rare = Dataset("rare", "Rare", np.random.default_rng(0).normal(size=(400, 2)), targets)
    sizes = {"test_rows": 100, "train_rows": 150, "inner_rows": 50, "validation_rows": 100}
    with pytest.raises(DataError, match="with every class on both sides: the rarest class has "):
        study.run(rare, budget=study.Budget("tiny", hidden=(4,), epochs=1, **sizes), directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("name", "../escape", ArgumentError),
        ("name", "", ArgumentError),
        ("name", "a\\b", ArgumentError),
        ("name", None, ArgumentTypeError),
        ("title", 3, ArgumentTypeError),
        ("note", None, ArgumentTypeError),
    ],
)
def test_words_of_a_data_set(argument: str, value: Any, error: type[Exception]) -> None:
    words = {"name": "toy", "title": "Toy", "note": ""} | {argument: value}
    with pytest.raises(error, match=f"^Dataset: `{argument}` must be "):
        Dataset(inputs=np.ones((2, 1)), targets=np.array([0, 1]), **words)


@pytest.mark.parametrize("inputs", [np.ones((2, 1)) * 1j, np.array([["a"], ["b"]])])
def test_inputs_that_are_no_real_numbers(inputs: Any) -> None:
    with pytest.raises(DataError, match="inputs must be "):
        Dataset("toy", "Toy", inputs, np.array([0, 1]))


def test_targets_that_are_words() -> None:
    with pytest.raises(DataError, match="number the classes first"):
        Dataset("toy", "Toy", np.ones((2, 1)), np.array(["no", "yes"]))
