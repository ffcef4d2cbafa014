"""Preparation: what scikit-learn's pipeline gives, from the training rows alone."""

import json
import math

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dropkit.errors import ArgumentError, DataError
from dropkit.study import Dataset
from dropkit.study.preparation import CATEGORY, Column, Preparation, fit

COLUMNS = (
    Column("age"),
    Column("colour", CATEGORY, ("blue", "green", "red")),
    Column("constant"),
    Column("size", CATEGORY, ("large", "small")),
)


@pytest.fixture
def table() -> np.ndarray:
    rng = np.random.default_rng(0)
    numbers = rng.normal(40, 9, 60)
    numbers[::7] = np.nan
    return np.stack([numbers, rng.integers(0, 3, 60), np.full(60, 2.5), rng.integers(0, 2, 60)], axis=1)


def test_it_does_what_scikit_learn_does(table: np.ndarray) -> None:
    train = np.arange(10, 50)
    reference = ColumnTransformer(
        [
            ("age", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), [0]),
            ("colour", OneHotEncoder(categories=[[0, 1, 2]], sparse_output=False), [1]),
            ("constant", StandardScaler(), [2]),
            ("size", OneHotEncoder(categories=[[0, 1]], sparse_output=False), [3]),
        ]
    ).fit(table[train])
    found = fit(COLUMNS, table, None, train).apply(table)
    np.testing.assert_allclose(found, reference.transform(table), rtol=1e-6, atol=1e-6)


def test_rows_that_do_not_train_change_nothing(table: np.ndarray) -> None:
    train = np.arange(0, 30)
    other = table.copy()
    other[30:] = (1e6, 0, -3, 1)
    assert fit(COLUMNS, table, table[:, 0], train) != fit(COLUMNS, table, table[:, 0], train + 30)
    before, after = (fit(COLUMNS, values, np.arange(60.0), train) for values in (table, other))
    assert before == after


def test_a_category_that_no_training_row_has_sets_no_input(table: np.ndarray) -> None:
    table[:40, 1] = np.arange(40) % 2
    table[40:, 1] = 2
    found = fit(COLUMNS, table, None, np.arange(40)).apply(table)
    assert (found[:40, 1:4].sum(1) == 1).all()
    assert (found[40:, 1:4] == 0).all()


def test_it_survives_json(table: np.ndarray) -> None:
    found = fit(COLUMNS, table, np.arange(60.0), np.arange(50))
    back = Preparation.from_json(json.loads(json.dumps(found.to_json())))
    assert back == found
    np.testing.assert_array_equal(back.apply(table), found.apply(table))


def test_targets_are_standardised_on_the_training_rows_and_can_be_put_back() -> None:
    targets = np.random.default_rng(1).normal(100, 20, 50).astype(np.float32)
    data = Dataset("line", "Line", np.ones((50, 2)), targets, task="regression")
    train = np.arange(20)
    found = data.prepared(train)
    assert found.targets[train].mean() == pytest.approx(0, abs=1e-5)
    assert found.targets[train].std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.targets * found.target_scale + found.target_mean, targets, rtol=1e-5)
    assert (data.outputs, data.classes, data.columns) == (1, 0, 2)
    np.testing.assert_array_equal(found.inputs, data.inputs)


def test_classes_and_plain_inputs_stay_as_they_are() -> None:
    data = Dataset("toy", "Toy", np.eye(4), np.array([0, 1, 2, 1]))
    found = data.prepared(np.arange(3))
    np.testing.assert_array_equal(found.inputs, np.eye(4))
    np.testing.assert_array_equal(found.targets, [0, 1, 2, 1])
    assert (data.outputs, data.classes, data.task) == (3, 3, "classification")


def test_the_inputs_of_a_table_are_counted_after_preparation(table: np.ndarray) -> None:
    data = Dataset("table", "Table", table, np.arange(60) % 2, schema=COLUMNS)
    assert data.columns == data.prepared(np.arange(30)).inputs.shape[1] == 1 + 3 + 1 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": np.array([1.0, math.nan])}, "NaN or infinity"),
        ({"targets": np.array([1.0, math.inf])}, "NaN or infinity"),
        ({"targets": np.array([2.0, 2.0])}, "all are 2"),
        ({"targets": np.array(["a", "b"])}, "targets must be numbers"),
        ({"targets": np.array([1.0])}, "shape"),
        ({"groups": np.array([1])}, "groups must be one finite number a row"),
        ({"times": np.array([1.0, math.nan])}, "times must be one finite number a row"),
        ({"schema": (Column("a"), Column("b"))}, "schema must describe 1 columns, got 2"),
        ({"class_names": ("a", "b")}, "class_names must name 0 classes"),
    ],
)
def test_unfit_data_are_refused(options: dict[str, object], message: str) -> None:
    given = {"inputs": np.zeros((2, 1)), "targets": np.array([1.0, 2.0]), "task": "regression", **options}
    with pytest.raises(DataError, match=f"Data set 'bad'.*{message}"):
        Dataset("bad", "Bad", **given)


@pytest.mark.parametrize("task", ["ranking", "", None, 1])
def test_an_unknown_task_is_refused(task: object) -> None:
    with pytest.raises(ArgumentError, match="`task` must be one of 'classification', 'regression'"):
        Dataset("bad", "Bad", np.zeros((2, 1)), np.array([0, 1]), task=task)
