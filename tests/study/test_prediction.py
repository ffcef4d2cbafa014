"""The recommended model of a run: what it predicts, and what it refuses."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch

from dropkit import study
from dropkit.errors import ArgumentTypeError, DataError, RunError
from dropkit.study import Budget, Dataset
from dropkit.study.result import Result
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.statements import statement_on_test_rows
from tests.helpers.command import call

pytestmark = pytest.mark.usefixtures("light_studies")

DELETED = "deleted"
HEADING = "age,colour,city,bought"


def write_table(path: Path, rows: int, seed: int, *, target: bool = True) -> Path:
    rng = np.random.default_rng(seed)
    age, red = rng.normal(40, 10, rows), rng.integers(0, 2, rows)
    bought = age / 10 + 4 * red + rng.normal(0, 1, rows)
    lines = [HEADING if target else "city,colour,age,more"]
    for row in range(rows):
        text, colour = "" if row % 15 == 2 else f"{age[row]:.2f}", ("blue", "red")[red[row]]
        city = "Rome" if row % 3 else "Oslo"
        lines.append(f"{text},{colour},{city},{bought[row]:.3f}" if target else f"{city},{colour},{text},x")
    path.write_text("\n".join(lines) + "\n")
    return path


SMALL = {"methods": ["dropout"], "rates": [0.2], "network": [8], "epochs": 6}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of a table with numbers to predict."""
    folder = tmp_path_factory.mktemp("numbers")
    table = write_table(folder / "table.csv", 300, 0)
    return study.run(str(table), target="bought", directory=folder / "run", **SMALL).directory


@pytest.fixture(scope="module")
def classes(toy: Dataset, tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return study.run(
        toy, budget=tiny, methods=["dropout"], rates=[0.2], directory=tmp_path_factory.mktemp("toy") / "run"
    )


def test_numbers_are_predicted_in_their_own_units(numbers: Path, tmp_path: Path) -> None:
    new = write_table(tmp_path / "new.csv", 200, 1, target=False)
    found = study.predict(numbers, new)
    truth = [float(line.rpartition(",")[2]) for line in write_table(tmp_path / "x.csv", 200, 1).read_text().split()[1:]]
    assert found.values.shape == (200, 1)
    assert np.corrcoef(found.values[:, 0], truth)[0, 1] > 0.8
    assert abs(found.values.mean() - np.mean(truth)) < 0.5
    rows = list(csv.reader(io.StringIO(found.to_csv())))
    assert rows[0] == ["predicted bought"]
    assert [float(row[0]) for row in rows[1:]] == pytest.approx(found.values[:, 0].tolist(), rel=1e-6)


def test_the_prediction_is_the_mean_over_the_confirmation_models(classes: Result, toy: Dataset, tiny: Budget) -> None:
    summary = classes.findings.summary
    method = classes.verdict.recommended[0] if classes.verdict.recommended else "none"
    found = study.predict(classes.directory, toy.inputs)
    np.testing.assert_allclose(found.values.sum(1), 1, rtol=1e-6)
    assert found.class_names == ("0", "1", "2")
    assert found.labels == [str(label) for label in found.values.argmax(1)]
    # Jensen's inequality: on any rows the log loss of the mean is at most the mean of the losses.
    test, _ = outer_split(toy, tiny, 0)
    losses = -np.log(found.values[test, toy.targets[test]])
    mean = next((row.loss if method == row.method else row.none_loss) for row in classes.findings.test_rows)
    assert losses.mean() <= mean + 1e-6
    assert losses.mean() > mean - 0.1
    assert len(summary.arms[method].records) == 3


def test_the_report_scores_the_saved_model_on_the_test_rows(classes: Result, toy: Dataset, tiny: Budget) -> None:
    saved = classes.findings.saved
    assert saved is not None
    test, _ = outer_split(toy, tiny, 0)
    values = study.predict(classes.directory, toy.inputs[test]).values
    targets = toy.targets[test]
    assert saved.loss == pytest.approx(sklearn.metrics.log_loss(targets, values), rel=1e-5)
    assert saved.metrics["accuracy"] == pytest.approx((values.argmax(1) == targets).mean())
    assert saved.metrics["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(targets, values, multi_class="ovr"))
    said = f"has loss {saved.loss:.3f}, accuracy {saved.metrics['accuracy']:.3f}."
    assert said in statement_on_test_rows(classes.findings)
    assert said in classes.report.read_text(encoding="utf-8")
    written = json.loads((classes.directory / "results.json").read_text())["saved_model"]
    assert written == {"method": saved.method, "models": 3, "loss": saved.loss, "metrics": dict(saved.metrics)}


def test_the_saved_model_of_numbers_is_scored_in_their_units(tiny: Budget, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 3))
    targets = 1000 + 50 * inputs[:, 0] + rng.normal(0, 20, 500)
    data = Dataset("numbers", "Numbers", inputs, targets.astype(np.float32), task="regression")
    result = study.run(data, budget=tiny, methods=["dropout"], rates=[0.2], directory=tmp_path / "run")
    saved = result.findings.saved
    assert saved is not None
    test, _ = outer_split(data, tiny, 0)
    found, truth = study.predict(result.directory, inputs[test]).values[:, 0], data.targets[test]
    assert saved.metrics["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(truth, found), rel=1e-5)
    assert saved.metrics["r_squared"] == pytest.approx(sklearn.metrics.r2_score(truth, found), rel=1e-5)
    preparations = json.loads((result.directory / "model.json").read_text())["members"]
    scales = np.array([one["target_scale"] for one in preparations])
    assert len(set(scales)) == 3
    assert saved.loss == pytest.approx(np.mean((found - truth) ** 2) * np.mean(scales**-2.0), rel=1e-5)
    assert f"RMSE {saved.metrics['rmse']:.4g}." in statement_on_test_rows(result.findings)


def test_saved_weights_predict_the_same_in_plain_torch(classes: Result, toy: Dataset) -> None:
    from safetensors.torch import load_file

    weights = load_file(classes.directory / "model.safetensors")
    description = json.loads((classes.directory / "model.json").read_text())
    assert len(description["members"]) == 3
    total = torch.zeros(toy.rows, 3, dtype=torch.float64)
    for member in range(3):
        hidden = torch.from_numpy(toy.inputs)
        for layer in range(3):
            hidden = hidden @ weights[f"{member}.{2 * layer}"] + weights[f"{member}.{2 * layer + 1}"]
            hidden = hidden.relu() if layer < 2 else hidden
        total += hidden.double().softmax(1)
    np.testing.assert_allclose(study.predict(classes.directory, toy.inputs).values, total / 3, atol=1e-5)


def test_the_networks_of_a_study_are_modules(classes: Result, toy: Dataset, tiny: Budget) -> None:
    modules = study.load_models(classes.directory)
    records = classes.findings.summary.arms[classes.verdict.saved].records
    assert len(modules) == len(records) == 3
    _, rest = outer_split(toy, tiny, 0)
    for module, record in zip(modules, records, strict=True):
        assert isinstance(module, torch.nn.Module)
        assert not module.training
        rows = seed_split(toy, rest, tiny, seed_key(0, record.trial.seed)).validation
        with torch.no_grad():
            outputs = module(torch.tensor(toy.inputs[rows]))
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(toy.targets[rows]))
        assert float(loss) == pytest.approx(record.early.validation_loss, rel=1e-5)


def test_new_categories_gaps_and_more_columns_are_no_obstacle(numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("colour,age,city,more\ngreen,,Paris,1\nred,50,,2\ngreen,inf,Paris,3\n")
    found = study.predict(numbers, tmp_path / "new.csv").values
    assert np.isfinite(found).all()
    assert found[2] == found[0]  # an infinite number counts as missing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age,city\n1,Rome\n", "lacks the columns colour. It has age, city"),
        ("age,colour,city\nold,red,Rome\n", "column 'age' must hold numbers only, as in the study's table, got 'old'"),
        ("age,colour,city\n40,red,Rome\n1e300,red,Rome\n", "Row 2 of the new data lies so far outside the study's"),
        ("age,colour,city\n1,red\n", "ragged: line 2"),
        ("age,colour,city\n", "no rows below its heading"),
        ("", "is empty"),
        (None, "cannot be read"),
    ],
)
def test_unfit_tables_are_one_line(
    numbers: Path, tmp_path: Path, text: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.csv"
    if text is not None:
        new.write_text(text)
    code = call("predict", str(numbers), str(new), "--output", str(tmp_path / "out.csv"))
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert not (tmp_path / "out.csv").exists()


def test_the_command_writes_to_the_screen_or_to_a_file(
    numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_table(tmp_path / "new.csv", 20, 1, target=False)
    for more in ([], ["--output", str(tmp_path / "out.csv")]):
        assert call("predict", str(numbers), str(new), *more) == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "out.csv").read_text() == study.predict(numbers, new).to_csv()
    assert out.count("\n") == 21


def test_what_is_no_run_or_no_data_is_refused(
    classes: Result, numbers: Path, toy: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="holds no model"):
        study.predict(tmp_path, "new.csv")
    with pytest.raises(ArgumentTypeError, match="directory"):
        study.predict(5, "new.csv")
    with pytest.raises(RunError, match="holds no model"):
        study.load_models(tmp_path)
    with pytest.raises(ArgumentTypeError, match="data"):
        study.predict(tmp_path, [[1, 2]])
    with pytest.raises(DataError, match="no named columns"):
        study.predict(classes.directory, "new.csv")
    assert call("predict", str(classes.directory), "new.csv") == 2
    words = "new.csv cannot be matched with them. In Python, dropkit.study.predict takes an array of shape (rows, 6)."
    assert capsys.readouterr().err == f"dropkit: The study's data have no named columns, so that {words}\n"
    with pytest.raises(DataError, match="give a file, not an array"):
        study.predict(numbers, np.ones((2, 3)))
    for bad in (toy.inputs[:, :5], toy.inputs[0], toy.inputs.astype(str)):
        with pytest.raises(DataError, match="must hold numbers in 6 columns"):
            study.predict(classes.directory, bad)
    with pytest.raises(DataError, match="NaN"):
        study.predict(classes.directory, np.full((1, 6), np.nan))


@pytest.mark.parametrize("damage", [("model.json", "{}"), ("model.json", "x"), ("model.safetensors", "noise")])
def test_a_damaged_model_is_one_line(classes: Result, toy: Dataset, tmp_path: Path, damage: tuple[str, str]) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((classes.directory / name).read_bytes())
    (tmp_path / damage[0]).write_text(damage[1])
    with pytest.raises(RunError, match=r"the model .*Write it anew: dropkit study --resume") as caught:
        study.predict(tmp_path, toy.inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("places", "value"),
    [
        (("members", 1, "columns"), []),
        (("members", 1, "columns", 1), DELETED),
        (("members", 0, "columns", 0, "kind"), []),
        (("members", 0, "columns", 0, "kind"), "roof"),
        *((("members", 0, "columns", 0, "name"), value) for value in (None, True, -1, float("inf"), [], {})),
        (("members", 1, "columns", 0, "name"), "other"),
        (("members", 0, "columns", 1, "categories"), ["red"]),
        (("members", 1, "fills"), []),
        (("members", 1, "means"), [0.0]),
        (("members", 0, "scales", 0), -1),
        (("members", 0, "scales", 0), float("inf")),
        (("members", 0, "seen"), []),
        (("members", 0, "seen", 1), [True]),
        (("members", 0, "target_mean"), float("nan")),
        (("members", 0, "target_scale"), -1),
        (("inputs",), float("inf")),
        (("inputs",), 2),
        (("inputs",), "3"),
        (("task",), "classification"),
        (("task",), "roof"),
        (("target",), None),
        (("class_names",), [5]),
        (("ranges", 0), [1, 0]),
        (("dropped", "error"), float("nan")),
    ],
    ids=str,
)
def test_a_description_whose_parts_do_not_fit_is_damaged(
    numbers: Path, tmp_path: Path, places: tuple[str | int, ...], value: object
) -> None:
    described = json.loads((numbers / "model.json").read_text())
    inner = described
    for place in places[:-1]:
        inner = inner[place]
    if value is DELETED:
        del inner[places[-1]]
    else:
        inner[places[-1]] = value
    (tmp_path / "model.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes((numbers / "model.safetensors").read_bytes())
    new = write_table(tmp_path / "new.csv", 5, 1, target=False)
    with pytest.raises(RunError, match=r"the model is damaged\. Write it anew: dropkit study --resume"):
        study.predict(tmp_path, new)


def test_missing_weights_are_called_missing(numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes((numbers / "model.json").read_bytes())
    with pytest.raises(RunError, match=r"model.safetensors is missing\. Write it anew: dropkit study --resume"):
        study.predict(tmp_path, "new.csv")


def test_a_table_is_read_again_on_resuming(numbers: Path) -> None:
    before = (numbers / "results.csv").read_bytes()
    (numbers / "results.csv").unlink()
    study.resume(numbers)
    assert (numbers / "results.csv").read_bytes() == before
