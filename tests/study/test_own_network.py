"""Studies of a network of one's own: what is trained, resumed, saved and refused."""

import html
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

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError, RunError
from dropkit.study import Budget, Dataset
from dropkit.study.methods import Recipe
from dropkit.study.network import initial_parameters
from dropkit.study.own import check_network, train_own
from dropkit.study.own.randomness import seeded
from dropkit.study.packed import Model, train
from dropkit.study.plan import make_plan
from dropkit.study.result import Result
from dropkit.study.splits import outer_split, seed_key, seed_split
from dropkit.study.statements import statements
from dropkit.study.storage import read_plan
from dropkit.study.timing import measure_epochs

pytestmark = pytest.mark.usefixtures("light_studies")

SMALL = Budget(
    "small", epochs=3, batch_size=32, test_rows=100, train_rows=200, inner_rows=60, validation_rows=100,
    confirmation_seeds=2, methods=("dropout", "weight_decay", "batch_norm", "linear"), strengths=2,
)  # fmt: skip


def network(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))


class Convolution(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(p), nn.Linear(4 * 36, 2))

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1:] == (1, 8, 8)
        return self.layers(images)


@pytest.fixture(scope="module")
def finished(toy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return study.run(toy, network=network, budget=SMALL, seed=5, directory=tmp_path_factory.mktemp("runs") / "own")


@pytest.fixture(scope="module")
def images() -> Dataset:
    rng = np.random.default_rng(1)
    pixels = rng.random((500, 8, 8), dtype=np.float32)
    targets = rng.integers(0, 2, 500)
    pixels[targets == 1, 2:5, 2:5] += 0.5
    return Dataset("images", "Squares", pixels.reshape(500, 64), targets, image_shape=(8, 8))


@pytest.fixture(scope="module")
def numbers() -> Dataset:
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(500, 6))
    targets = 10 + 3 * inputs[:, 0] + rng.normal(size=500)
    return Dataset("numbers", "Numbers", inputs, targets, task="regression")


def loaded_with(key: int, widths: tuple[int, ...]) -> Callable[[float], nn.Module]:
    """Return a factory of the study's own network with the first weights of a seed."""

    def build(_: float) -> nn.Module:
        layers: list[nn.Module] = []
        for one, other in itertools.pairwise(widths):
            layers += [nn.Linear(one, other), nn.ReLU()]
        module = nn.Sequential(*layers[:-1])
        for parameter, value in zip(module.parameters(), initial_parameters([key], widths), strict=True):
            parameter.data = value[0].T.reshape(parameter.shape).clone()
        return module

    return build


RECIPES = {
    "none": Recipe(),
    "weight decay": Recipe(weight_decay=3.0),
    "l1": Recipe(l1=1e-3),
    "max-norm": Recipe(max_norm=0.5),
    "label smoothing": Recipe(label_smoothing=0.1),
    "shift": Recipe(shift=2),
    "input noise": Recipe(noise=0.3),
    "both": Recipe(weight_decay=1.0, noise=0.1),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_network_like_the_studys_own_trains_like_it(images: Dataset, recipe: Recipe) -> None:
    budget = Budget("same", hidden=(16, 8), epochs=4, test_rows=100, train_rows=200, inner_rows=60, validation_rows=100)
    key = seed_key(3, 1)
    splits = {key: seed_split(images, outer_split(images, budget, 3)[1], budget, key)}
    build = loaded_with(key, (64, 16, 8, 2))
    own = check_network("run", lambda p: nn.Sequential(nn.Flatten(), build(p)), images, budget, {})
    (expected,) = train([Model(key, recipe)], images, splits, budget)
    (found,) = train_own(own, [Model(key, recipe)], images, splits, budget)
    assert found.curves.early_epoch == expected.curves.early_epoch
    for name in ("training_loss", "inner_loss", "validation_loss"):
        assert getattr(found.curves, name) == pytest.approx(getattr(expected.curves, name), rel=2e-5)
    assert found.curves.metrics["accuracy"] == expected.curves.metrics["accuracy"]
    assert found.curves.metrics.keys() == expected.curves.metrics.keys()
    for ours, theirs in zip(found.parameters, expected.parameters, strict=True):
        np.testing.assert_allclose(ours, theirs.T.reshape(ours.shape), atol=2e-5)


def test_the_plan_says_what_is_trained_and_what_is_left_out(finished: Result) -> None:
    plan = read_plan(finished.directory)
    assert tuple(plan.strengths) == ("none", "dropout", "weight_decay", "linear")
    count = 6 * 16 + 16 + 2 * 16 + 16 * 3 + 3
    assert (plan.network["class"], plan.network["parameters"]) == ("Sequential", count)
    assert "label smoothing" in plan.budget.leaves_out
    assert "batch norm" not in plan.budget.leaves_out, "no budget could have it"
    report = html.unescape(finished.report.read_text())
    assert f"Sequential, your own, {count} parameters; batch norm" in report
    assert "smaller network are for the study's own networks alone" in report
    assert statements(finished.findings)[-1] == (
        "The loss with hidden units removed, the correlations between hidden units and the gradient variance were not "
        "measured: they are taken of the layers of the study's own networks, and Sequential is yours."
    )
    assert finished.findings.test_rows
    assert len(finished.trials) == 2 * (1 + 2 + 2 + 2) + 2 * 4


def test_a_seed_gives_the_same_results_whatever_ran_before(finished: Result, toy: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(99)
    again = study.run(toy, network=network, budget=SMALL, seed=5, directory=tmp_path / "again")
    assert (again.directory / "results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("epochs", [1, 8, 32, 55])
def test_stopped_and_resumed(finished: Result, toy: Dataset, tmp_path: Path, epochs: int) -> None:
    def stop(state: study.Progress) -> None:
        if state.done >= epochs:
            raise StoppedError

    with pytest.raises(StoppedError):
        study.run(toy, network=network, budget=SMALL, seed=5, directory=tmp_path / "cut", progress=stop)
    seen: list[study.Progress] = []
    study.resume(tmp_path / "cut", data=toy, network=network, progress=seen.append)
    assert [state.done for state in seen] == sorted(state.done for state in seen)
    assert seen[-1].done == seen[-1].total
    assert len([state for state in seen if state.phase == "measuring"]) == 2  # before and after the test rows
    for name in ("results.csv", "model.safetensors", "model.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (finished.directory / name).read_bytes(), name


def test_saved_networks_score_as_the_trials_did(finished: Result, toy: Dataset) -> None:
    modules = study.load_models(finished.directory, network=network)
    plan = read_plan(finished.directory)
    description = json.loads((finished.directory / "model.json").read_text())
    method = finished.verdict.recommended[0] if finished.verdict.recommended else "none"
    records = finished.findings.summary.arms[method].records
    _, rest = outer_split(toy, plan.budget, plan.seed)
    assert len(modules) == len(records) == 2
    for module, record, key in zip(modules, records, description["network"]["keys"], strict=True):
        assert not module.training
        rows = seed_split(toy, rest, plan.budget, key).validation
        with torch.no_grad():
            found = nn.functional.cross_entropy(module(torch.tensor(toy.inputs[rows])), torch.tensor(toy.targets[rows]))
        assert float(found) == pytest.approx(record.early.validation_loss, rel=1e-5)
    with torch.no_grad():
        mean = torch.stack([module(torch.tensor(toy.inputs[:9])).softmax(1) for module in modules]).mean(0)
    predicted = study.predict(finished.directory, toy.inputs[:9], network=network)
    np.testing.assert_allclose(predicted.values, mean, atol=1e-6)


def test_a_prediction_without_the_function_says_what_to_call(finished: Result, toy: Dataset) -> None:
    with pytest.raises(RunError, match=r"call dropkit\.study\.load_models\(.*network=") as caught:
        study.predict(finished.directory, toy.inputs)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="builds another network, Linear of 21"):
        study.load_models(finished.directory, network=lambda _: nn.Linear(6, 3))


def test_images_of_a_convolution(images: Dataset, tmp_path: Path) -> None:
    methods = ["dropout", "shift", "dropout_shift", "max_norm", "label_smoothing"]
    result = study.run(images, network=Convolution, budget=SMALL, methods=methods, directory=tmp_path / "run")
    assert {record.trial.method for record in result.trials} == {"none", *methods}
    assert result.findings.summary.none.records[0].early.metrics["accuracy"] > 0.7
    assert study.predict(tmp_path / "run", images.inputs[:5], network=Convolution).values.shape == (5, 2)


@pytest.mark.parametrize("flat", [False, True])
def test_numbers_to_predict(numbers: Dataset, tmp_path: Path, flat: bool) -> None:
    def build(p: float) -> nn.Module:
        layers = [nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 1)]
        return nn.Sequential(*layers, *([nn.Flatten(0)] if flat else []))

    budget = replace(SMALL, learning_rate=0.01)
    result = study.run(
        numbers, network=build, budget=budget, epochs=10, methods=["dropout"], directory=tmp_path / "run"
    )
    assert result.findings.summary.none.records[0].early.metrics["r_squared"] > 0.6
    found = study.predict(tmp_path / "run", numbers.inputs, network=build).values[:, 0]
    assert np.corrcoef(found, numbers.targets)[0, 1] > 0.8
    assert abs(found.mean() - numbers.targets.mean()) < 0.5


def test_a_divergence_is_recorded_and_the_others_go_on(toy: Dataset, tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.layer, self.dropout, self.p = nn.Linear(6, 3), nn.Dropout(p), p
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, rows: Tensor) -> Tensor:
            if self.training:
                self.steps += 1
            broken = self.steps > 10 if self.p == 0.5 else self.steps < 0
            return self.layer(self.dropout(rows)) / (~broken)

    result = study.run(
        toy, network=Breaks, budget=SMALL, methods=["dropout"], rates=[0.1, 0.5], directory=tmp_path / "r"
    )
    found = {(record.trial.strength, record.diverged_at) for record in result.trials}
    assert found == {(0.0, None), (0.1, None), (0.5, 2)}


def drawn() -> tuple[float, ...]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002, S311  # a user's may be these


def test_generators_are_given_back() -> None:
    with seeded(1):
        first = drawn()
    with seeded(2):
        expected = drawn(), drawn()
    with seeded(2):
        found = [drawn()]
        with seeded(1):
            assert drawn() == first
        found.append(drawn())
    assert tuple(found) == expected


ONE = nn.Linear(6, 3)


class NoTensorState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, _: Any) -> None:
        pass


def needs_p(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 5))


BAD = {
    "a module": (ONE, ArgumentTypeError, "a function of p that builds"),
    "no argument": (lambda: ONE, ArgumentError, r"fails at p = 0: TypeError"),
    "fails": (lambda p: [][int(p)], ArgumentError, r"fails at p = 0: IndexError"),
    "no module": (lambda p: p, ArgumentTypeError, "This is what the function gave"),
    "the same module": (lambda _: ONE, ArgumentError, "the same parameters at every call"),
    "shared parameters": (lambda _: nn.Sequential(ONE, nn.Linear(3, 3)), ArgumentError, "the same parameters"),
    "lazy": (lambda _: nn.LazyLinear(3), ArgumentError, "a lazy module"),
    "state that is no tensor": (lambda _: NoTensorState(6, 3), ArgumentError, "is no tensor"),
    "no parameters": (lambda _: nn.Identity(), ArgumentError, "without a parameter"),
    "other shapes": (lambda p: nn.Linear(6, 3, bias=p == 0), ArgumentError, "other parameters at p = 0.5"),
    "p does nothing": (lambda _: nn.Linear(6, 3), ArgumentError, "p = 0 and p = 0.5 train alike"),
    "p is fixed": (lambda _: nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 3)), ArgumentError, "train alike"),
    "other inputs": (lambda p: nn.Sequential(nn.Dropout(p), nn.Linear(5, 3)), ArgumentError, r"inputs of \(32, 6\)"),
    "other outputs": (needs_p, ArgumentError, r"outputs of shape \(32, 3\).*gave torch.float32 of \(32, 5\)"),
}


@pytest.mark.parametrize(("factory", "kind", "message"), BAD.values(), ids=BAD)
def test_a_bad_function_is_refused_before_a_run_begins(
    toy: Dataset, tmp_path: Path, factory: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        study.run(toy, network=factory, budget=SMALL, directory=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [5, "big", b"64", ONE, nn.Sequential(ONE, nn.ReLU()), {64: 64}, []])
def test_what_is_neither_widths_nor_a_function_is_told_of_both(toy: Dataset, tmp_path: Path, value: Any) -> None:
    kind = ArgumentError if value == [] else ArgumentTypeError
    message = r"^run: `network` must be widths of hidden layers such as \[64, 64\], or a function of p that builds"
    with pytest.raises(kind, match=message) as caught:
        study.run(toy, network=value, budget=SMALL, directory=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_methods_that_change_the_network_are_refused_by_name(toy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"batch_norm.*These act on any network: none, dropout, weight_decay"):
        study.run(toy, network=network, budget=SMALL, methods=["dropout", "batch_norm"], directory=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_p_may_do_nothing_where_no_method_drops(toy: Dataset, tmp_path: Path) -> None:
    tiny = study.run(
        toy, network=lambda _: nn.Linear(6, 3), budget=SMALL, epochs=1, methods=["l1"], directory=tmp_path / "run"
    )
    assert len(tiny.trials) == 2 * 3 + 2 * 2


def test_the_time_of_an_epoch_is_measured_with_the_network(toy: Dataset) -> None:
    built = []

    def counted(p: float) -> nn.Module:
        built.append(p)
        return network(p)

    own = check_network("run", counted, toy, SMALL, {})
    plan = make_plan(toy, replace(SMALL, pack_size=1, minutes=1.0), 0, {"none": (0.0,), "dropout": (0.5,)})
    built.clear()
    assert len(measure_epochs(plan, toy, network=own)) == 2
    assert set(built) == {0.0, 0.5}


def test_resume_needs_the_same_function(finished: Result, toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    def other(p: float) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(p), nn.Linear(16, 3))

    with pytest.raises(ArgumentError, match="began with a network of your own, Sequential: give the function"):
        study.resume(finished.directory, data=toy)
    with pytest.raises(ArgumentError, match="builds another one"):
        study.resume(finished.directory, data=toy, network=other)
    plain = study.run(toy, budget=tiny, epochs=1, methods=["dropout"], rates=[0.5], directory=tmp_path / "plain")
    with pytest.raises(ArgumentError, match="must be left out for"):
        study.resume(plain.directory, data=toy, network=network)
    with pytest.raises(ArgumentError, match="must be left out for"):
        study.load_models(plain.directory, network=network)
