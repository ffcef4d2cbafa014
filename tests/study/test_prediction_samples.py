"""Predictions from samples: what the networks drop, what the samples tell, and what is refused."""

import csv
import io
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError, RunError
from dropkit.study import METHODS, Budget, Dataset, sampling
from dropkit.study.calibration import agreement
from dropkit.study.loading import load_again
from dropkit.study.own import check_network
from dropkit.study.preparation import fit
from dropkit.study.result import Result
from dropkit.study.sampling import Dropped, samples
from dropkit.study.saved_model import SavedModel, load_model
from dropkit.study.saving import save_models
from dropkit.study.storage import RunFolder, read_plan
from dropkit.study.verdict import Verdict
from tests.helpers.command import call

pytestmark = pytest.mark.usefixtures("light_studies")

ROWS = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
NOISY = ("dropout", "dropout_before_norm", "gaussian_dropout", "concrete_dropout", "variational_dropout", "weight_drop")
WITHOUT = ("weight_decay", "linear")


def save_as_if_recommended(result: Result, data: Dataset, method: str, network: Any = None) -> Path:
    """Write the model of a method into a copy of a run, beside it."""
    path = result.directory.with_name(f"{result.directory.name}, {method}")
    if not path.exists():
        shutil.copytree(result.directory, path)
        with pytest.MonkeyPatch.context() as patch, RunFolder.open(path) as folder:
            patch.setattr(Verdict, "saved", property(lambda _: method))
            save_models(folder, data, result.findings, network)
    return path


@pytest.fixture(scope="module")
def result(toy: Dataset, tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    methods = [*NOISY, *WITHOUT]
    path = tmp_path_factory.mktemp("samples") / "run"
    return study.run(toy, budget=replace(tiny, strengths=1), methods=methods, directory=path)


@pytest.fixture
def saving(result: Result, toy: Dataset) -> Callable[[str], Path]:
    """Return the run with the model of any method."""
    return lambda method: save_as_if_recommended(result, toy, method)


@pytest.fixture(scope="module")
def numbers(tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of a table of numbers, with a model that dropped, and beside it one that did not."""
    folder = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    lines = [f"{a:.4f},{b:.4f},{100 + 20 * a + rng.normal(0, 5):.3f}" for a, b in x]
    (folder / "table.csv").write_text("\n".join(["a,b,y", *lines]) + "\n")
    (folder / "new.csv").write_text("\n".join(["a,b", *(line.rpartition(",")[0] for line in lines[:40])]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Verdict, "saved", property(lambda _: "dropout"))
        result = study.run(
            str(folder / "table.csv"), target="y", methods=["dropout", "weight_decay"], rates=[0.2], network=[16],
            epochs=10, directory=folder / "run",
        )  # fmt: skip
    save_as_if_recommended(result, load_again(read_plan(result.directory), result.directory), "weight_decay")
    return folder


def plain_network(widths: tuple[int, ...] = (6, 400, 3)) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(widths):
        layers += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def crafted(dropped: Dropped | None, *networks: nn.Sequential, task: str = "classification") -> SavedModel:
    preparation = fit((), ROWS, None, np.arange(len(ROWS)))
    names = ("a", "b", "c") if task == "classification" else ()
    return SavedModel("dropout", task, "y", names, (), 6, tuple((preparation, one) for one in networks), dropped)


def drawn(model: SavedModel, count: int | None, seed: int = 0) -> np.ndarray:
    return torch.cat(list(samples(model, ROWS, count, seed)), 1).numpy()


@pytest.mark.parametrize("method", NOISY)
def test_every_method_with_dropout_samples_what_it_dropped(saving: Callable[[str], Path], method: str) -> None:
    directory = saving(method)
    described = json.loads((directory / "model.json").read_text())["dropped"]
    recipe = METHODS[method].recipe(0.5)
    assert described["variant"] == (recipe.variant or "Dropout")
    place = {"dropout_before_norm": "products", "weight_drop": "weights"}.get(method, "units")
    assert (described["place"], described["error"]) == (place, None)
    assert [len(rates) for rates in described["rates"]] == [2, 2, 2], "a rate a hidden layer of each network"
    plain, found = study.predict(directory, ROWS), study.predict(directory, ROWS, samples=300)
    assert found.low is not None
    assert found.high is not None
    assert (found.low <= found.high).all()
    assert (found.high - found.low).mean() > 0.01
    assert abs(found.values - plain.values).mean() < 0.08
    np.testing.assert_allclose(found.values.sum(1), 1)


@pytest.mark.parametrize("method", NOISY)
def test_the_mean_of_many_samples_is_near_the_network_without_noise(method: str) -> None:
    recipe = METHODS[method].recipe(0.1)
    network = plain_network()
    model = crafted(Dropped.of(recipe, [(0.1,)], None), network)
    with torch.no_grad():
        expected = network(torch.from_numpy(ROWS)).double().softmax(1).numpy()
    found = drawn(model, 400)
    assert found.shape == (400, 30, 3)
    np.testing.assert_allclose(found.mean(0), expected, atol=0.02)
    assert found.std(0).min() > 1e-4


def test_the_masks_are_those_of_dropout_at_its_place() -> None:
    """One hidden unit a weight: its outputs are 0 or twice what they were, half of the time each."""
    network = plain_network((6, 1, 1))
    network[0].bias.fill_(50.0)  # so that the rectifier lets all pass
    network[2].bias.fill_(7.0)
    with torch.no_grad():
        unit = (network(torch.from_numpy(ROWS)).double() - 7).numpy()
        product = unit - 50 * float(network[2].weight)
    for place, kept in (
        ("units", (0 * unit + 7, 2 * unit + 7)),
        ("products", (unit - product + 7, unit + product + 7)),
    ):
        found = drawn(crafted(Dropped("Dropout", place, ((0.5,),), 1.0), network, task="regression"), 400)
        dropped = abs(found - kept[0]) < 1e-4
        assert (dropped | (abs(found - kept[1]) < 1e-4)).all()
        assert abs(dropped.mean() - 0.5) < 4 * 0.5 / np.sqrt(dropped.size)


def test_dropped_weights_are_the_same_for_all_rows_of_a_pass() -> None:
    network = plain_network((6, 1, 1))
    network[0].bias.fill_(50.0)
    same = np.repeat(ROWS[:1], 20, 0)
    model = crafted(Dropped("WeightDrop", "weights", ((0.5,),), 1.0), network, task="regression")
    found = torch.cat(list(samples(model, same, 30, 0)), 1).numpy()
    assert np.ptp(found, axis=1).max() < 1e-4
    assert len(np.unique(found[:, 0].round(4))) > 10
    units = crafted(Dropped("Dropout", "units", ((0.5,),), 1.0), network, task="regression")
    assert np.ptp(torch.cat(list(samples(units, same, 30, 0)), 1).numpy(), axis=1).min() > 1


@pytest.mark.filterwarnings("ignore:mc. 5 passes gave the same output")
@pytest.mark.parametrize("variant", ["Dropout", "GaussianDropout"])
def test_at_a_rate_near_0_every_sample_is_the_network_itself(variant: str) -> None:
    model = crafted(Dropped(variant, "units", ((1e-12,),), None), plain_network())
    np.testing.assert_allclose(drawn(model, 5), np.broadcast_to(model.predict(ROWS), (5, 30, 3)), atol=1e-6)


def test_without_passes_every_network_is_a_sample() -> None:
    networks = [plain_network((6, 4, 3)), plain_network((6, 5, 3)), plain_network((6, 3))]
    model = crafted(Dropped("", "units", (), None), *networks)
    found = drawn(model, None)
    np.testing.assert_array_equal(found.mean(0), model.predict(ROWS))
    for one, network in zip(found, networks, strict=True):
        np.testing.assert_array_equal(one, network(torch.from_numpy(ROWS)).double().softmax(1).numpy())


@pytest.mark.parametrize("method", ["dropout", "weight_drop"])
def test_a_row_has_the_same_samples_however_rows_are_batched(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = Dropped.of(METHODS[method].recipe(0.5), [(0.5,), (0.5,)], None)
    model = crafted(dropped, plain_network((6, 20, 3)), plain_network((6, 20, 3)))
    whole = drawn(model, 20)
    monkeypatch.setattr(sampling, "_ROWS", 7)
    assert [part.shape[1] for part in samples(model, ROWS, 20, 0)] == [7, 7, 7, 7, 2]
    np.testing.assert_allclose(drawn(model, 20), whole, atol=1e-6)
    monkeypatch.setattr(sampling, "_NUMBERS", 2 * 20 * 3 * 16)
    assert [part.shape[1] for part in samples(model, ROWS, 20, 0)] == [7, 7, 7, 7, 2]
    monkeypatch.setattr(sampling, "_ROWS", 1000)
    assert [part.shape[1] for part in samples(model, ROWS, 20, 0)] == [16, 14]
    np.testing.assert_allclose(drawn(model, 20), whole, atol=1e-6)
    assert abs(drawn(model, 20, seed=1) - whole).max() > 0.01
    assert abs(whole[:20] - whole[20:]).max() > 0.01, "equal networks have masks of their own"


def test_agreement_counts_the_samples_that_have_the_predicted_class() -> None:
    sure, split, other = [0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.1, 0.0, 0.9]
    found = np.array([[sure, sure, sure], [sure, split, split], [sure, split, sure], [sure, sure, other]])
    # Means of row 1: 0.5, 0.4, 0.1; the likeliest is the first, of which two samples of four are. Row 2: 0.425 against
    # 0.3 and 0.275.
    assert agreement(found).tolist() == [1.0, 0.5, 0.5]


def test_columns_of_classes_and_the_rule(saving: Callable[[str], Path]) -> None:
    directory = saving("dropout")
    found = study.predict(directory, ROWS, samples=50, level=0.8, seed=4)
    each = np.concatenate([part.numpy() for part in samples(load_model(directory), ROWS, 50, 4)], axis=1)
    assert each.shape == (150, 30, 3), "50 passes over each of three networks"
    np.testing.assert_allclose(found.values, each.mean(0))
    np.testing.assert_allclose(found.low, np.quantile(each, 0.1, axis=0))
    np.testing.assert_allclose(found.high, np.quantile(each, 0.9, axis=0))
    votes = [(each[:, row].argmax(1) == found.values[row].argmax()).mean() for row in range(30)]
    assert found.unsure.tolist() == [vote < 0.8 for vote in votes]
    assert 0 < found.unsure.sum() < 30
    rows = list(csv.reader(io.StringIO(found.to_csv())))
    assert rows[0] == [
        "predicted target", *(f"probability {name}" for name in "012"), "low 0", "high 0", "low 1", "high 1", "low 2",
        "high 2", "unsure",
    ]  # fmt: skip
    assert [row[-1] for row in rows[1:]] == ["yes" if unsure else "no" for unsure in found.unsure]
    assert [float(row[5]) for row in rows[1:]] == pytest.approx(found.high[:, 0].tolist(), rel=1e-5)
    plain = list(csv.reader(io.StringIO(study.predict(directory, ROWS).to_csv())))
    assert plain[0] == rows[0][:4], "samples only add columns"


def test_numbers_are_unsure_where_half_the_interval_exceeds_the_error_on_the_test_rows(
    numbers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, new = numbers / "run", numbers / "new.csv"
    described = json.loads((directory / "model.json").read_text())["dropped"]
    saved = json.loads((directory / "results.json").read_text())["saved_model"]
    assert described["error"] == saved["metrics"]["rmse"]
    found = study.predict(directory, new, samples=60)
    half = (found.high - found.low)[:, 0] / 2
    assert found.unsure.tolist() == (half > described["error"]).tolist()
    middle = float(np.median(half))
    by_hand = study.predict(directory, new, samples=60, tolerance=middle)
    assert by_hand.unsure.tolist() == (half > middle).tolist()
    assert by_hand.unsure.sum() == 20
    assert call("predict", str(directory), str(new), "--samples", "60", "--tolerance", str(middle)) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (by_hand.to_csv(), f"dropkit: {by_hand.notes[0]}\n")
    heading, *rows = csv.reader(io.StringIO(out))
    assert heading == ["predicted y", "low", "high", "unsure"]
    assert all(float(row[1]) <= float(row[0]) <= float(row[2]) for row in rows)
    plain = study.predict(directory, new).values
    assert abs(found.values - plain).max() < 3 * half.max()
    assert found.values.mean() == pytest.approx(plain.mean(), abs=2)


def test_the_command_gives_the_same_bytes_again_and_others_of_another_seed(
    numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["predict", str(numbers / "run"), str(numbers / "new.csv"), "--samples", "20"]
    found = []
    for more in ([], ["--seed", "0", "--level", "0.9"], ["--seed", "1"], ["--level", "0.5"]):
        torch.manual_seed(len(more))
        assert call(*common, *more) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert call(*common, "--output", str(tmp_path / "out.csv")) == 0
    assert (tmp_path / "out.csv").read_text() == found[0]
    wide, narrow = (np.array([row.split(",")[1:3] for row in found[one].splitlines()[1:]], float) for one in (0, 3))
    assert ((narrow[:, 0] >= wide[:, 0]) & (narrow[:, 1] <= wide[:, 1])).all(), "the same samples, half of them inside"


@pytest.mark.parametrize("method", WITHOUT)
def test_networks_that_drop_nothing_are_samples_themselves(saving: Callable[[str], Path], method: str) -> None:
    directory = saving(method)
    with pytest.warns(UserWarning, match="drops nothing: the samples are its 3 networks, each trained on other rows"):
        found = study.predict(directory, ROWS, samples=10)
    np.testing.assert_array_equal(found.values, study.predict(directory, ROWS).values)
    assert found.unsure is not None
    assert (found.high - found.low).max() > 0


def test_the_command_says_so_in_one_line(numbers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = str(numbers / "new.csv")
    assert call("predict", str(numbers / "run, weight_decay"), new, "--samples", "5") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 41
    assert err.count("\n") == 2
    assert err.startswith("dropkit: The model, with ")
    assert "Of so few values the level of an interval says little" in err
    assert "\ndropkit: The intervals are of the networks' predictions, not of the target: on test rows " in err
    assert "drops nothing: the samples are its" in err


def test_one_network_that_drops_nothing_has_no_samples(saving: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = saving("weight_decay")
    described = json.loads((directory / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**described, "members": described["members"][:1]}))
    weights = load_file(directory / "model.safetensors")
    first = {name: value for name, value in weights.items() if name.startswith("0.")}
    save_file(first, tmp_path / "model.safetensors")
    assert study.predict(tmp_path, ROWS).values.shape == (30, 3)
    with pytest.raises(RunError, match=r"one network, with .*, which drops nothing.* or run a study with more seeds"):
        study.predict(tmp_path, ROWS, samples=10)


@pytest.mark.slow
def test_models_of_before_predict_and_get_samples_by_resuming(finished: Result, toy: Dataset, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    described = json.loads(path.read_text())
    before = {name: value for name, value in described.items() if name != "dropped"}
    path.write_text(json.dumps(before))
    plain = study.predict(tmp_path / "run", ROWS).values
    with pytest.raises(
        RunError, match=r"was saved before samples could be drawn. Write it anew: dropkit study --resume"
    ):
        study.predict(tmp_path / "run", ROWS, samples=10)
    study.resume(tmp_path / "run", data=toy)
    assert json.loads(path.read_text()) == described
    np.testing.assert_array_equal(study.predict(tmp_path / "run", ROWS).values, plain)


@pytest.mark.parametrize(
    "damage",
    [
        {"variant": "Magic"},
        {"variant": ["Dropout"]},
        {"variant": ""},
        {"place": "roof"},
        {"rates": [0.5]},
        {"rates": [["x", 0.5]] * 3},
        {"rates": [[float("nan"), 0.5]] * 3},
        {"rates": [[1.0, 0.5]] * 3},
        {"rates": [[0.5]] * 3},
        {"rates": []},
        {"error": []},
    ],
    ids=str,
)
def test_damage_is_told(saving: Callable[[str], Path], tmp_path: Path, damage: dict[str, Any]) -> None:
    directory = saving("dropout")
    described = json.loads((directory / "model.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    for found in ({**described["dropped"], **damage}, {}, 5, None):
        (tmp_path / "model.json").write_text(json.dumps({**described, "dropped": found}))
        with pytest.raises(RunError, match=r"the model is damaged\. Write it anew: dropkit study --resume"):
            study.predict(tmp_path, ROWS, samples=5)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"samples": 1}, ArgumentError, r"`samples` must be an integer in \[2, 100,000\], got 1"),
        ({"samples": 0}, ArgumentError, "samples"),
        ({"samples": -3}, ArgumentError, "samples"),
        ({"samples": 100_001}, ArgumentError, "samples"),
        ({"samples": 2.5}, ArgumentTypeError, "samples"),
        ({"samples": True}, ArgumentTypeError, "samples"),
        ({"samples": "10"}, ArgumentTypeError, "samples"),
        ({"samples": 5, "level": 0}, ArgumentError, "level"),
        ({"samples": 5, "level": 1}, ArgumentError, "level"),
        ({"samples": 5, "level": float("nan")}, ArgumentError, "level"),
        ({"level": "high"}, ArgumentError, "level"),
        ({"samples": 5, "seed": -1}, ArgumentError, "seed"),
        ({"samples": 5, "seed": 0.5}, ArgumentTypeError, "seed"),
        ({"samples": 5, "tolerance": -1.0}, ArgumentError, "tolerance"),
        ({"samples": 5, "tolerance": float("inf")}, ArgumentError, "tolerance"),
        ({"tolerance": 1.0}, ArgumentError, "`tolerance` must be left out without `samples`"),
        ({"level": 0.5}, ArgumentError, "`level` must be left out without `samples`"),
        ({"seed": 3}, ArgumentError, "`seed` must be left out without `samples`"),
        ({"method": 5}, ArgumentTypeError, "`method` must be the name of a method, got 5"),
        ({"method": "l1"}, ArgumentError, "`method` must be one of 'dropout', .*'weight_drop', got 'l1'"),
        ({"method": "../model"}, ArgumentError, "`method` must be one of"),
        ({"samples": 5, "tolerance": 1.0}, ArgumentError, "left out for classes"),
    ],
)
def test_bad_values_are_refused(
    saving: Callable[[str], Path], options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        study.predict(saving("dropout"), ROWS, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--samples", "1"], "dropkit: --samples must be an integer in [2, 100,000], got 1"),
        (["--samples", "0"], "dropkit: --samples must be an integer in [2, 100,000], got 0"),
        (["--samples", "-3"], "dropkit: --samples must be an integer in [2, 100,000], got -3"),
        (["--samples", "x"], "dropkit: --samples must be a whole number, got 'x'"),
        (["--samples", "5", "--level", "0"], "dropkit: --level must be a number in (0, 1), got 0"),
        (["--samples", "5", "--level", "1"], "dropkit: --level must be a number in (0, 1), got 1"),
        (["--samples", "5", "--level", "nan"], "dropkit: --level must be a number in (0, 1), got nan"),
        (["--samples", "5", "--level", "90%"], "dropkit: --level must be a number, got '90%'"),
        (["--samples", "5", "--tolerance", "-1"], "dropkit: --tolerance must be a number in [0, inf), got -1"),
        (["--samples", "5", "--seed", "-1"], "dropkit: --seed must be an integer in [0, 2**64), got -1"),
        (["--level", "0.5"], "dropkit: --level is of samples: give --samples too"),
        (["--seed", "1"], "dropkit: --seed is of samples: give --samples too"),
    ],
)
def test_bad_options_are_one_line(
    numbers: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", str(numbers / "run"), str(numbers / "new.csv"), *options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_no_rows_are_no_predictions(saving: Callable[[str], Path]) -> None:
    found = study.predict(saving("dropout"), ROWS[:0], samples=5)
    assert found.values.shape == found.low.shape == (0, 3)
    assert found.to_csv().count("\n") == 1


class Pair(nn.Module):
    """A network whose one argument is a dictionary, and which drops at a rate of its own too."""

    def __init__(self, p: float, other: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Dropout(other), nn.Linear(16, 2))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.layers(torch.cat([inputs["left"], inputs["right"]], 1))


@pytest.mark.parametrize("other", [0.0, 0.3])
def test_a_network_of_ones_own_drops_where_it_does(other: float, tiny: Budget, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    left, right = (torch.from_numpy(rng.normal(size=(500, 3)).astype(np.float32)) for _ in range(2))
    targets = (left[:, 0] > 0).long()

    def load(batches: list[list[int]], _: bool) -> list[Any]:
        return [({"left": left[rows], "right": right[rows]}, targets[rows]) for rows in batches]

    def network(p: float) -> nn.Module:
        return Pair(p, other)

    data = Dataset.from_loader("pairs", "Pairs", load=load, targets=targets.numpy())
    own = check_network("run", network, data, tiny, {})
    run = study.run(
        data, network=network, budget=replace(tiny, strengths=1), methods=["dropout", "weight_decay"],
        directory=tmp_path / "run",
    )  # fmt: skip
    new = {"left": left[:50], "right": right[:50]}
    for method in ("dropout", "weight_decay"):
        path = save_as_if_recommended(run, data, method, own)
        plain = study.predict(path, new, network=network)
        if method == "weight_decay" and not other:
            with pytest.warns(UserWarning, match="drops nothing"):
                found = study.predict(path, new, network=network, samples=50)
            np.testing.assert_array_equal(found.values, plain.values)
        else:
            found = study.predict(path, new, network=network, samples=200)
            assert 0 < abs(found.values - plain.values).max() < 0.1
            assert found.low is not None
            assert found.high is not None
            assert (found.high > found.low).all()
