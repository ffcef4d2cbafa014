"""Studies of rows that a function of one's own loads: what is trained, resumed, saved and refused."""

import csv
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as Rows

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError, DataError
from dropkit.study import Budget, Dataset
from dropkit.study.methods import Recipe
from dropkit.study.own import check_network, train_own
from dropkit.study.own.loading import loaded
from dropkit.study.own.randomness import Stream, seeded
from dropkit.study.packed import Model
from dropkit.study.plan import make_plan
from dropkit.study.result import Result
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.storage import read_plan
from dropkit.study.timing import measure_epochs

pytestmark = pytest.mark.usefixtures("light_studies")

SMALL = Budget(
    "small", epochs=3, batch_size=32, test_rows=100, train_rows=200, inner_rows=60, validation_rows=100,
    confirmation_seeds=2, methods=("dropout", "weight_decay"), strengths=2,
)  # fmt: skip


def network(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))


def one_number(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 1))


class OfDictionary(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.word, self.layers = nn.Embedding(2, 3), nn.Sequential(nn.Dropout(p), nn.Linear(9, 3))

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        numbers, (sign,) = inputs["numbers"], inputs["signs"]
        return self.layers(torch.cat([numbers, self.word(sign)], 1))


def sliced(x: Tensor, y: Tensor) -> Callable[[list[list[int]], bool], Any]:
    return lambda batches, _: ((x[batch], y[batch]) for batch in batches)


def like(data: Dataset, load: Any, **others: Any) -> Dataset:
    """Return a data set with the same name and targets whose rows a function loads."""
    return Dataset.from_loader(data.name, data.title, load=load, targets=data.targets, task=data.task, **others)


@pytest.fixture(scope="module")
def x(toy: Dataset) -> Tensor:
    return torch.from_numpy(toy.inputs)


@pytest.fixture(scope="module")
def y(toy: Dataset) -> Tensor:
    return torch.from_numpy(toy.targets)


class Augmented(Rows):
    """Rows with three kinds of chance in training, as files of images with random crops have."""

    def __init__(self, x: Tensor, y: Tensor, training: bool) -> None:
        self.x, self.y, self.training = x, y, training

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        found = self.x[row]
        if self.training:
            if random.random() < 0.5:  # noqa: S311  # a user's may be this one, and the next
                found = found.flip(0)
            found = found * float(np.random.uniform(0.9, 1.1)) + 0.1 * torch.randn(6)  # noqa: NPY002
        return found, self.y[row]


def augmented(toy: Dataset, workers: int) -> Dataset:
    x, y = torch.from_numpy(toy.inputs), torch.from_numpy(toy.targets)

    def load(batches: list[list[int]], training: bool) -> DataLoader:
        return DataLoader(Augmented(x, y, training), batch_sampler=batches, num_workers=workers)

    return like(toy, load)


def results(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_in_one_batch_train_as_those_of_an_array_do(toy: Dataset, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    # One batch holds all rows of a split in training and in evaluation, both ways: the same sums, bit for bit. A
    # DataLoader draws a number when it begins, which must not move the masks of dropout.
    budget = replace(SMALL, batch_size=1000)
    rows = TensorDataset(x, y)
    mine = like(toy, lambda batches, _: DataLoader(rows, batch_sampler=batches))
    for name, data in (("array", toy), ("loaded", mine)):
        study.run(data, network=network, budget=budget, seed=5, directory=tmp_path / name)
    found, expected = ((tmp_path / name / "results.csv").read_bytes() for name in ("loaded", "array"))
    assert found == expected


def test_rows_in_many_batches_train_as_those_of_an_array_do(toy: Dataset, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    # Steps are the same bit for bit; scores are sums over other parts of the rows, and agree to rounding.
    for name, data in (("array", toy), ("loaded", like(toy, sliced(x, y)))):
        study.run(data, network=network, budget=SMALL, seed=5, directory=tmp_path / name)
    assert (tmp_path / "loaded" / "models").is_dir()
    for found, expected in zip(results(tmp_path / "loaded"), results(tmp_path / "array"), strict=True):
        for column in ("phase", "method", "strength", "seed", "status", "early_epoch"):
            assert found[column] == expected[column]
        for column in ("early_training_loss", "early_validation_loss", "last_validation_loss"):
            assert float(found[column]) == pytest.approx(float(expected[column]), rel=1e-6)
    found, expected = (np.load(tmp_path / name / "models" / "confirmation-0.npz") for name in ("loaded", "array"))
    assert found.files == expected.files
    for part in found.files:
        np.testing.assert_array_equal(found[part], expected[part])


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_chance_follows_from_the_key_in_workers_too(toy: Dataset, workers: int) -> None:
    class Drawn(Rows):
        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            found = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002, S311
            return torch.tensor(found), int(toy.targets[row])

    data = like(toy, lambda batches, _: DataLoader(Drawn(), batch_sampler=batches, num_workers=workers))
    batches = list(torch.arange(128).split(32))
    first, again, other = (torch.cat(list(loaded(data, batches, training=True, key=key))) for key in (1, 1, 2))
    assert torch.equal(first, again)
    for generator in range(3):  # 256 draws of 24 bits or more: two alike for one pair of keys in 170
        assert len(torch.cat([first, other])[:, generator].unique()) == 256


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.exhaustive])])
def test_augmented_stopped_twice_and_resumed(toy: Dataset, tmp_path: Path, workers: int) -> None:
    budget = replace(SMALL, methods=("dropout",), strengths=1)

    def stop_after(epochs: int) -> Callable[[study.Progress], None]:
        calls = itertools.count()

        def stop(_: study.Progress) -> None:
            if next(calls) >= epochs:
                raise StoppedError

        return stop

    whole = study.run(augmented(toy, workers), network=network, budget=budget, seed=5, directory=tmp_path / "whole")
    with pytest.raises(StoppedError):
        study.run(
            augmented(toy, workers), network=network, budget=budget, seed=5, directory=tmp_path / "cut",
            progress=stop_after(4),
        )  # fmt: skip
    with pytest.raises(StoppedError):
        study.resume(tmp_path / "cut", data=augmented(toy, workers), network=network, progress=stop_after(15))
    torch.manual_seed(workers)
    again = study.resume(tmp_path / "cut", data=augmented(toy, workers), network=network)
    for name in ("results.csv", "model.safetensors", "model.json"):
        assert (again.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name


def test_chance_of_the_function_and_of_the_network_do_not_mix() -> None:
    with seeded(1):
        first = [torch.rand(3) for _ in range(2)]
    with seeded(2):
        expected = [torch.rand(3), np.random.rand(), random.random(), torch.rand(3)]  # noqa: NPY002, S311
    stream = Stream(1)
    with seeded(2):
        found = [torch.rand(3)]
        for number in range(2):
            with stream.turn():
                assert torch.equal(torch.rand(3), first[number])
        found += [np.random.rand(), random.random(), torch.rand(3)]  # noqa: NPY002, S311
    assert all(torch.as_tensor(one).equal(torch.as_tensor(other)) for one, other in zip(found, expected, strict=True))


def test_methods_of_a_seed_are_augmented_alike_and_epochs_are_not(toy: Dataset, x: Tensor, y: Tensor) -> None:
    seen: list[Tensor] = []

    def load(batches: list[list[int]], training: bool) -> Any:
        for batch in batches:
            inputs = x[batch] + (0.1 * torch.randn(len(batch), 6) if training else 0)
            if training and batches[0] is batch:
                seen.append(inputs)
            yield inputs, y[batch]

    class Draws(nn.Module):  # as many random numbers as p asks for
        def __init__(self, p: float) -> None:
            super().__init__()
            self.p, self.layer = p, nn.Linear(6, 3)

        def forward(self, rows: Tensor) -> Tensor:
            return self.layer(nn.functional.dropout(rows, self.p, self.training and self.p > 0))

    data, key = like(toy, load), seed_key(0, 0)
    split = seed_split(data, outer_split(data, SMALL, 0)[1], SMALL, key)
    own = check_network("run", Draws, data, SMALL, {})
    seen.clear()
    train_own(own, [Model(key, Recipe()), Model(key, Recipe(dropout=0.5))], data, {key: split}, SMALL)
    assert len(seen) == 2 * SMALL.epochs
    assert all(torch.equal(one, other) for one, other in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(seen[0] - seen[0].mean(), seen[1] - seen[1].mean())


@pytest.fixture(scope="module")
def dictionary(toy: Dataset, x: Tensor, y: Tensor) -> Dataset:
    class Named(Rows):
        def __getitem__(self, row: int) -> tuple[dict[str, Any], Tensor]:
            return {"numbers": x[row], "signs": ((x[row, 2] > 0).long(),)}, y[row]

    return like(toy, lambda batches, _: DataLoader(Named(), batch_sampler=batches), target_name="kind")


@pytest.fixture(scope="module")
def finished(dictionary: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Result:
    run = tmp_path_factory.mktemp("runs") / "dictionary"
    notes: list[str] = []
    result = study.run(
        dictionary, network=OfDictionary, budget=SMALL, epochs=6, seed=3, directory=run,
        progress=lambda state: notes.append(state.note),
    )  # fmt: skip
    (said,) = [note for note in notes if note.startswith("inputs: ")]
    for part in ("loaded by your own function", "batch norm", "input noise", "mixup", "shift", "linear model"):
        assert part in said
    return result


def test_the_report_says_how_rows_are_loaded(finished: Result) -> None:
    report = finished.report.read_text()
    assert "500 rows, loaded by your own function, 3 classes" in report
    assert "left out, as they would change inputs or network: batch norm" in report
    assert "0 inputs" not in report
    assert "1 inputs" not in report


def test_saved_networks_take_inputs_as_they_are_loaded(finished: Result, dictionary: Dataset, x: Tensor) -> None:
    modules = study.load_models(finished.directory, network=OfDictionary)
    plan = read_plan(finished.directory)
    keys = json.loads((finished.directory / "model.json").read_text())["network"]["keys"]
    method = finished.verdict.recommended[0] if finished.verdict.recommended else "none"
    records = finished.findings.summary.arms[method].records
    _, rest = outer_split(dictionary, plan.budget, plan.seed)

    def inputs(rows: Any) -> dict[str, Any]:
        return {"numbers": x[rows], "signs": [(x[rows, 2] > 0).long()]}

    for module, record, key in zip(modules, records, keys, strict=True):
        rows = seed_split(dictionary, rest, plan.budget, key).validation
        with torch.no_grad():
            found = nn.functional.cross_entropy(module(inputs(rows)), torch.tensor(dictionary.targets[rows]))
        assert float(found) == pytest.approx(record.early.validation_loss, rel=1e-5)
    with torch.no_grad():
        mean = torch.stack([module(inputs(range(50))).softmax(1) for module in modules]).mean(0)
    predicted = study.predict(finished.directory, inputs(range(50)), network=OfDictionary)  # two parts of the rows
    np.testing.assert_allclose(predicted.values, mean, atol=1e-6)
    assert predicted.target == "kind"


def test_a_prediction_needs_inputs_as_they_are_loaded(finished: Result, x: Tensor) -> None:
    for bad, what in (("new.csv", r"new\.csv"), (x.numpy(), "an array")):
        with pytest.raises(DataError, match=f"loaded by a function of your own: give study.predict inputs .* {what}"):
            study.predict(finished.directory, bad, network=OfDictionary)
    with pytest.raises(ArgumentTypeError, match="data"):
        study.predict(finished.directory, {"numbers": x, "signs": "no"}, network=OfDictionary)
    with pytest.raises(DataError, match=r"inputs\['signs'\] of shape \(4,\); its first axis must be the 5 rows"):
        study.predict(finished.directory, {"numbers": x[:5], "signs": x[:4, 0]}, network=OfDictionary)
    with pytest.raises(DataError, match=r"inputs\['numbers'\] with NaN"):
        study.predict(finished.directory, {"numbers": x / 0}, network=OfDictionary)


def test_resume_needs_the_same_rows(finished: Result, toy: Dataset, dictionary: Dataset, x: Tensor, y: Tensor) -> None:
    def other(batches: list[list[int]], _: bool) -> Any:
        return (({"numbers": x[rows] * 1.01, "signs": ((x[rows, 2] > 0).long(),)}, y[rows]) for rows in batches)

    for data in (toy, like(toy, other), like(toy, dictionary.load, groups=np.arange(500))):
        with pytest.raises(DataError, match="differs from the one that"):
            study.resume(finished.directory, data=data, network=OfDictionary)
    with pytest.raises(ArgumentError, match="give the function that builds it"):
        study.resume(finished.directory, data=dictionary)
    before = (finished.directory / "results.csv").read_bytes()
    study.resume(finished.directory, data=replace(dictionary, title="Again"), network=OfDictionary)
    assert (finished.directory / "results.csv").read_bytes() == before


def test_numbers_to_predict_of_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = torch.from_numpy(rng.normal(size=(600, 6)).astype(np.float32))
    numbers = 10 + 3 * rows[:, 0].double() + torch.from_numpy(rng.normal(size=600))
    groups = np.repeat(np.arange(200), 3)
    data = Dataset.from_loader(
        "numbers", "Numbers", load=sliced(rows, numbers[:, None]), targets=numbers, task="regression", groups=groups
    )
    budget = replace(SMALL, learning_rate=0.01, epochs=10, methods=("dropout",))
    result = study.run(data, network=one_number, budget=budget, directory=tmp_path / "run")
    assert result.findings.summary.none.records[0].early.metrics["r_squared"] > 0.6
    assert result.findings.test_rows[0].groups > 30
    found = study.predict(tmp_path / "run", rows, network=one_number).values[:, 0]
    assert abs(found.mean() - float(numbers.mean())) < 0.5
    assert np.corrcoef(found, numbers)[0, 1] > 0.8


def test_the_function_is_asked_for_the_rows_of_the_split_alone(toy: Dataset, x: Tensor, y: Tensor) -> None:
    asked: list[tuple[bool, list[list[int]]]] = []

    def load(batches: list[list[int]], training: bool) -> Any:
        asked.append((training, [list(batch) for batch in batches]))
        batches_before = [list(batch) for batch in batches]
        batches.clear()  # what it does to its argument is its own affair
        return ((x[batch], y[batch]) for batch in batches_before)

    data, key = like(toy, load), seed_key(0, 0)
    budget = replace(SMALL, train_rows=193, epochs=1)
    split = seed_split(data, outer_split(data, budget, 0)[1], budget, key)
    own = check_network("run", network, data, budget, {})
    asked.clear()
    train_own(own, [Model(key, Recipe())], data, {key: split}, budget)
    (training, batches), (evaluating, scored) = asked
    assert (training, evaluating) == (True, False)
    assert [len(batch) for batch in batches] == [32] * 6  # not the one row that is left over
    assert set(itertools.chain(*batches)) < set(split.train.tolist())
    assert list(itertools.chain(*scored)) == [*split.train, *split.inner, *split.validation]


def test_the_time_of_an_epoch_is_measured_with_the_function(toy: Dataset, x: Tensor, y: Tensor) -> None:
    asked: list[bool] = []

    def load(batches: list[list[int]], training: bool) -> Any:
        asked.append(training)
        return sliced(x, y)(batches, training)

    data = like(toy, load)
    own = check_network("run", network, data, SMALL, {})
    plan = make_plan(data, replace(SMALL, pack_size=1, minutes=1.0), 0, {"none": (0.0,), "dropout": (0.5,)})
    asked.clear()
    assert len(measure_epochs(plan, data, network=own)) == 2
    assert asked == [True, False] * 3
