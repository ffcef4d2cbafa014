"""What is said of intervals and of the word "unsure", against test rows counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dropkit import study
from dropkit.study import Budget, Dataset, calibration
from dropkit.study.calibration import Calibration, calibrate
from dropkit.study.loading import load_again
from dropkit.study.preparation import fit
from dropkit.study.sampling import Dropped
from dropkit.study.saved_model import SavedModel
from dropkit.study.splits import outer_split
from dropkit.study.storage import read_plan

pytestmark = pytest.mark.usefixtures("light_studies")

ROWS = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)


def fixed(values: list[float]) -> SavedModel:
    """A model whose networks give a number each, whatever the row."""
    networks = []
    for value in values:
        network = nn.Sequential(nn.Linear(2, 1)).requires_grad_(False)
        network[0].weight.zero_()
        network[0].bias.fill_(value)
        networks.append((fit((), ROWS, None, np.arange(5)), network.eval()))
    return SavedModel("none", "regression", "y", (), (), 2, tuple(networks), Dropped("", "units", (), 1.0))


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8, 0.9, 0.99])
def test_the_level_of_a_target_is_where_its_interval_begins_to_hold_it(level: float) -> None:
    """Five networks; quantiles are those of NumPy, so that which targets an interval holds can be counted."""
    values = [0.0, 1.0, 3.0, 3.0, 10.0]
    targets = np.random.default_rng(0).uniform(-1, 11, 200)
    found = calibrate(fixed(values), ROWS, targets, 0)
    assert found is not None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    inside = (targets >= low) & (targets <= high)
    assert [one <= level for one in found.levels] == inside.tolist()
    assert found.sentence(level).endswith(f"on test rows of the study they held {inside.sum()} of 200 targets.")


def test_targets_beyond_all_samples_are_in_no_interval() -> None:
    found = calibrate(fixed([0.0, 1.0]), ROWS[:4], np.array([-0.1, 0.5, 1.1, 0.0]), 0)
    assert found == Calibration((1.0, 0.0, 1.0, 1.0))
    assert found.sentence(0.999).endswith("they held 1 of 4 targets.")


def test_one_network_without_dropout_has_no_samples() -> None:
    assert calibrate(fixed([1.0]), ROWS, ROWS[:, 0], 0) is None


def test_at_most_a_thousand_rows_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_ROWS", 5)
    targets = np.where(np.isin(np.arange(200), (0, 50, 100, 149, 199)), 0.5, 9.0)  # multiples of 199 / 4, rounded
    found = calibrate(fixed([0.0, 1.0]), ROWS, targets, 0)
    assert found is not None
    assert found.levels == (0.0,) * 5


def test_classes_are_counted_by_the_rule_for_unsure() -> None:
    found = Calibration((1.0, 0.95, 0.9, 0.6, 0.5), (True, True, False, True, False))
    begins, ends = "On 5 test rows of the study", "were predicted rightly"
    assert found.sentence(0.9) == f"{begins} 3 were not unsure, of which 2 {ends}; 2 were unsure, of which 1 were."
    assert found.sentence(0.91) == f"{begins} 2 were not unsure, of which 2 {ends}; 3 were unsure, of which 1 were."
    assert found.sentence(0.5) == f"{begins} 5 were not unsure, of which 3 {ends}."
    assert Calibration((0.6, 0.5), (True, False)).sentence(0.9) == (
        "On 2 test rows of the study 2 were unsure, of which 1 were predicted rightly."
    )


@pytest.mark.parametrize(
    "data", [{"levels": [], "right": []}, {"levels": [2.0], "right": []}, {"levels": [0.5] * 2, "right": [True]}]
)
def test_damage_is_refused(data: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="levels"):
        Calibration.from_json(data)


def test_a_study_writes_what_its_test_rows_say_of_classes(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    small = {"budget": tiny, "methods": ["dropout"], "rates": [0.5]}
    directory = study.run(toy, **small, seed=3, directory=tmp_path / "run").directory
    test, _ = outer_split(toy, tiny, 3)
    found = study.predict(directory, toy.inputs[test], method="dropout", samples=30, level=0.5, seed=3)
    right = found.values.argmax(1) == toy.targets[test]
    sure = ~found.unsure
    assert 0 < sure.sum() < 100
    assert found.notes[0] == (
        f"On 100 test rows of the study {sure.sum()} were not unsure, of which {right[sure].sum()} were predicted "
        f"rightly; {(~sure).sum()} were unsure, of which {right[~sure].sum()} were."
    )


def test_a_study_writes_what_its_test_rows_say_of_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{a:.4f},{100 + 20 * a + rng.normal(0, 5):.3f}" for a in rng.normal(size=300)]
    (tmp_path / "table.csv").write_text("\n".join(["a,y", *rows]) + "\n")
    small = {"methods": ["dropout"], "rates": [0.2], "network": [16], "epochs": 10}
    directory = study.run(str(tmp_path / "table.csv"), target="y", **small, directory=tmp_path / "run").directory
    plan = read_plan(directory)
    data = load_again(plan, directory)
    test, _ = outer_split(data, plan.budget, plan.seed)
    new = ["a", *(f"{value:.4f}" for value in data.inputs[test, 0])]
    (tmp_path / "test.csv").write_text("\n".join(new) + "\n")
    for level in (0.5, 0.9):
        found = study.predict(directory, tmp_path / "test.csv", method="dropout", samples=30, level=level)
        targets = data.targets[test].astype(np.float64)
        inside = (targets >= found.low[:, 0]) & (targets <= found.high[:, 0])
        assert f"they held {inside.sum()} of {len(test)} targets." in found.notes[0]
        assert found.notes[0].startswith("The intervals are of the networks' predictions, not of the target")
    described = json.loads((directory / "models" / "dropout.json").read_text())["dropped"]
    values = study.predict(directory, tmp_path / "test.csv", method="dropout").values[:, 0]
    assert described["error"] == pytest.approx(np.sqrt(np.mean((values - targets) ** 2)))
    half = (found.high - found.low)[:, 0] / 2
    assert found.unsure.tolist() == (half > described["error"]).tolist()
    assert torch.is_grad_enabled()
