"""Which methods and strengths a study gets."""

import re

import numpy as np
import pytest

from dropkit.errors import ArgumentError
from dropkit.study import BUDGETS, METHODS, Dataset
from dropkit.study.grids import check_methods, that_fit

QUICK = BUDGETS["quick"]


def test_every_method_of_a_budget_gets_as_many_strengths() -> None:
    grids = check_methods("test", QUICK, None, None)
    assert list(grids) == ["none", *(name for name in METHODS if name in QUICK.methods)]
    assert {len(grid) for name, grid in grids.items() if METHODS[name].symbol} == {4}
    assert grids["none"] == check_methods("test", QUICK, ["l1", "batch_norm"], None)["batch_norm"] == (0.0,)


def test_rates_give_all_methods_as_many_chances() -> None:
    grids = check_methods("test", QUICK, ["dropout", "l1", "linear", "none"], [0.6, 0.2])
    assert grids["dropout"] == (0.2, 0.6)
    assert [len(grids[name]) for name in ("none", "l1", "linear")] == [1, 2, 2]
    alone = check_methods("test", QUICK, ["dropout"], [rate / 20 for rate in range(1, 20)])
    assert len(alone["dropout"]) == 19


def test_a_baseline_alone_is_no_study() -> None:
    with pytest.raises(ArgumentError, match="besides none and baselines"):
        check_methods("test", QUICK, ["linear"], None)


def test_methods_that_do_not_fit_the_data_are_left_out_or_refused(toy: Dataset) -> None:
    image = Dataset("image", "Images", np.ones((4, 6)), np.array([0, 1, 0, 1]), image_shape=(2, 3))
    line = Dataset("line", "Numbers", np.ones((4, 6)), np.arange(4.0), task="regression")
    grids = check_methods("test", QUICK, None, None)
    kept = {data.name: set(grids) - set(that_fit("test", grids, data, None)) for data in (image, toy, line)}
    assert kept == {"image": {"input_noise"}, "toy": {"shift"}, "line": {"shift", "label_smoothing"}}
    asked = check_methods("test", QUICK, ["shift", "dropout"], None)
    with pytest.raises(ArgumentError, match=re.escape("methods that fit 'toy', got ['shift']")):
        that_fit("test", asked, toy, ["shift", "dropout"])
