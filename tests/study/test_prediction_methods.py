"""Predictions with the confirmed networks of a method of one's choice, whatever the study advises."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dropkit import study
from dropkit.errors import ArgumentError, RunError
from dropkit.study import METHODS, Budget, Dataset
from dropkit.study.preparation import Preparation
from dropkit.study.result import Result
from dropkit.study.storage import RunFolder
from dropkit.study.test_rows import confirmed_parameters
from tests.helpers.command import call

pytestmark = pytest.mark.usefixtures("light_studies")

NAMES = ("dropout", "weight_drop", "weight_decay", "batch_norm", "linear")
ROWS = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def result(toy: Dataset, tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    path = tmp_path_factory.mktemp("methods") / "run"
    return study.run(toy, budget=replace(tiny, strengths=1), methods=list(NAMES), directory=path)


@pytest.fixture
def copied(result: Result, tmp_path: Path) -> Path:
    shutil.copytree(result.directory, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("method", [*NAMES, "none"])
def test_the_networks_are_those_that_the_study_confirmed(result: Result, method: str) -> None:
    with RunFolder.open(result.directory) as folder:
        kept = confirmed_parameters(folder, result.findings.summary, method)
    total = np.zeros((20, 3))
    for parameters in kept.values():
        hidden = ROWS.astype(np.float64)
        for layer in range(0, len(parameters), 2):
            hidden = hidden @ parameters[layer] + parameters[layer + 1]
            hidden = np.maximum(hidden, 0) if layer + 2 < len(parameters) else hidden
        total += np.exp(hidden) / np.exp(hidden).sum(1, keepdims=True)
    found = study.predict(result.directory, ROWS, method=method)
    np.testing.assert_allclose(found.values, total / len(kept), atol=1e-5)
    for network, parameters in zip(study.load_models(result.directory, method=method), kept.values(), strict=True):
        assert isinstance(network, nn.Sequential)
        np.testing.assert_array_equal(network[0].weight.detach().numpy(), parameters[0].T)


def test_the_advised_method_is_the_default(result: Result) -> None:
    advised = result.verdict.saved
    plain = study.predict(result.directory, ROWS).values
    np.testing.assert_array_equal(study.predict(result.directory, ROWS, method=advised).values, plain)
    others = {path.stem for path in (result.directory / "models").glob("*.json")}
    assert others == {*NAMES, "none"} - {advised}


def test_dropout_is_sampled_where_the_advice_drops_nothing(result: Result) -> None:
    found = study.predict(result.directory, ROWS, method="dropout", samples=50)
    assert found.low is not None
    assert found.high is not None
    assert (found.high > found.low).all()
    with pytest.warns(UserWarning, match="no Monte Carlo dropout: for that, choose a method that drops"):
        study.predict(result.directory, ROWS, method="linear", samples=50)


def test_each_seed_has_the_preparation_of_its_own_training_rows(result: Result, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{a:.4f},{a + rng.normal():.4f}" for a in rng.normal(size=200)]
    (tmp_path / "table.csv").write_text("\n".join(["a,y", *lines]) + "\n")
    small = {"methods": ["dropout", "weight_decay"], "rates": [0.2], "network": [8], "epochs": 3}
    directory = study.run(str(tmp_path / "table.csv"), target="y", directory=tmp_path / "run", **small).directory
    described = [json.loads(path.read_text()) for path in (directory / "models").glob("*.json")]
    advised = json.loads((directory / "model.json").read_text())
    assert len(described) == 2
    for one in described:
        assert one["members"] == advised["members"]
        assert len({Preparation.from_json(member).means for member in one["members"]}) == len(one["members"])


def test_the_command_chooses_a_method(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, words in (("l1", "--method must be one of 'none', 'batch_norm', "), ("", "--method must be one of")):
        assert call("predict", str(result.directory), "new.csv", "--method", method) == 2
        assert capsys.readouterr().err.startswith(f"dropkit: {words}")
    assert call("predict", str(result.directory), "new.csv", "--method", "dropout") == 2
    assert "no named columns" in capsys.readouterr().err


def test_a_run_of_before_says_how_to_get_them(copied: Path, toy: Dataset) -> None:
    described = json.loads((copied / "model.json").read_text())
    new = ("method", "names", "ranges", "calibration")
    old = {name: value for name, value in described.items() if name not in new}
    (copied / "model.json").write_text(json.dumps(old))
    for path in (copied / "models").glob("*.json"):
        path.unlink()
    plain = study.predict(copied, ROWS).values
    assert study.predict(copied, 100 * ROWS).notes == (), "ranges are not known"
    with pytest.raises(RunError, match=r"before its method could be chosen. Write it anew: dropkit study --resume"):
        study.predict(copied, ROWS, method="dropout")
    study.resume(copied, data=toy)
    assert json.loads((copied / "model.json").read_text()) == described
    np.testing.assert_array_equal(study.predict(copied, ROWS).values, plain)
    assert study.predict(copied, ROWS, method="dropout").values.shape == (20, 3)


@pytest.mark.parametrize(
    "damage", ["{}", "[]", "x", '{"kept": 5, "names": []}', '{"kept": [{"pack": "a", "trial": "b"}]}']
)
def test_damage_is_one_line(copied: Path, damage: str) -> None:
    (copied / "models" / "dropout.json").write_text(damage)
    with pytest.raises(RunError, match=r"damaged|cannot be read") as caught:
        study.predict(copied, ROWS, method="dropout")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["kept", "method"])
def test_a_method_never_borrows_the_weights_of_the_advised_one(copied: Path, name: str) -> None:
    path = copied / "models" / "dropout.json"
    described = json.loads(path.read_text())
    del described[name]
    path.write_text(json.dumps(described))
    with pytest.raises(RunError, match=r"the model is damaged\. Write it anew: dropkit study --resume"):
        study.predict(copied, ROWS, method="dropout")


def test_missing_networks_are_called_missing_and_trained_again(copied: Path, toy: Dataset) -> None:
    before = study.predict(copied, ROWS, method="dropout").values
    kept = json.loads((copied / "models" / "dropout.json").read_text())["kept"]
    path = copied / "models" / f"{kept[0]['pack']}.npz"
    path.unlink()
    with pytest.raises(RunError) as caught:
        study.predict(copied, ROWS, method="dropout")
    assert str(caught.value) == f"{path} is missing. Train its models again: dropkit study --resume {copied}"
    study.resume(copied, data=toy)
    np.testing.assert_array_equal(study.predict(copied, ROWS, method="dropout").values, before)


@pytest.mark.parametrize("method", ["../model", "../models/dropout", "/models/dropout", "*", "dropout/.."])
def test_an_unknown_name_lists_methods_alone(copied: Path, method: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        study.predict(copied, ROWS, method=method)
    others = sorted({*NAMES, "none"} - {advised := json.loads((copied / "model.json").read_text())["method"]})
    assert f"must be one of {', '.join(map(repr, [advised, *others]))}, got {method!r}" in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [{"ranges": [[0, 1]]}, {"ranges": [5] * 6}, {"calibration": {}}, {"calibration": {"levels": [3], "right": []}}],
    ids=str,
)
def test_damage_of_what_goes_with_samples_is_told(copied: Path, damage: dict[str, Any]) -> None:
    described = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps({**described, **damage}))
    with pytest.raises(RunError, match=r"the model is damaged\. Write it anew: dropkit study --resume"):
        study.predict(copied, ROWS)


def test_networks_of_ones_own_are_chosen_too(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    def network(p: float) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 3))

    directory = study.run(
        toy, network=network, budget=replace(tiny, strengths=1), methods=["dropout", "weight_decay", "linear"],
        directory=tmp_path / "run",
    ).directory  # fmt: skip
    values = []
    for method in ("dropout", "weight_decay", "none"):
        values.append(study.predict(directory, ROWS, network=network, method=method).values)
        modules = study.load_models(directory, network=network, method=method)
        with torch.no_grad():
            mean = torch.stack([module(torch.from_numpy(ROWS)).double().softmax(1) for module in modules]).mean(0)
        np.testing.assert_allclose(values[-1], mean.numpy(), atol=1e-6)
        assert {module[3].p for module in modules} == {METHODS["dropout"].grid(1)[0] if method == "dropout" else 0.0}
    assert abs(values[0] - values[1]).max() > 1e-4
    assert study.predict(directory, ROWS, network=network, method="dropout", samples=5).unsure is not None
    with pytest.raises(ArgumentError, match="must be one of"):
        study.predict(directory, ROWS, network=network, method="linear")
    path = directory / "model.json"
    described = json.loads(path.read_text())
    for damage in ({"rows_at_once": "5"}, {"rows_at_once": 0}, {"image_shape": "ab"}, {"image_shape": [6]}):
        path.write_text(json.dumps({**described, "network": {**described["network"], **damage}}))
        with pytest.raises(RunError, match="the model is damaged"):
            study.predict(directory, ROWS, network=network)
