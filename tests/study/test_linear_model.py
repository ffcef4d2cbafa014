"""The fitted linear model: the lowest penalised loss, by its own definition, and how a pack of them is scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dropkit.study import METHODS, Budget, Dataset
from dropkit.study import run as run_study
from dropkit.study.checkpoint import Checkpoint
from dropkit.study.linear_model import fit_linear
from dropkit.study.packed import Model, Training, train
from dropkit.study.splits import Split
from tests.helpers.studies import splits_of

pytestmark = pytest.mark.usefixtures("light_studies")


def penalised(weight: torch.Tensor, bias: torch.Tensor, inputs: np.ndarray, targets: np.ndarray, l2: float) -> float:
    """The sentence of the docstring, in float64."""
    found = torch.from_numpy(inputs).double() @ weight + bias
    if targets.dtype.kind == "f":
        loss = (found[:, 0] - torch.from_numpy(targets)).square().mean()
    else:
        loss = torch.nn.functional.cross_entropy(found, torch.from_numpy(targets))
    weights = weight[:, 1] - weight[:, 0] if found.shape[1] == 2 else weight
    return loss + l2 * weights.square().sum()


@pytest.mark.parametrize("l2", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("classes", [0, 2, 4])
def test_no_direction_lowers_the_penalised_loss(classes: int, l2: float) -> None:
    rng = np.random.default_rng(classes)
    inputs = rng.normal(size=(300, 5))
    score = inputs[:, 0] - 2 * inputs[:, 1] + rng.normal(size=300)
    targets = np.digitize(score, np.linspace(-2, 2, classes - 1)) if classes else score
    parameters = [torch.from_numpy(part).double() for part in fit_linear(inputs, targets, classes, l2)]
    assert [part.shape for part in parameters] == [(5, classes or 1), (1, classes or 1)]
    for part in parameters:
        part.requires_grad_()
    penalised(*parameters, inputs, targets, l2).backward()
    for part in parameters:
        assert part.grad.abs().max() < 3e-4


def test_ridge_is_its_closed_form() -> None:
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(80, 4)), rng.normal(size=80)
    weight, bias = fit_linear(inputs, targets, 0, 0.2)
    centred = inputs - inputs.mean(0)
    exact = np.linalg.solve(centred.T @ centred + 80 * 0.2 * np.eye(4), centred.T @ targets)
    np.testing.assert_allclose(weight[:, 0], exact, rtol=1e-5)
    np.testing.assert_allclose(bias.item(), targets.mean() - inputs.mean(0) @ exact, rtol=1e-5)


def test_a_class_without_training_rows_gets_the_odds_of_half_a_row() -> None:
    weight, bias = fit_linear(np.zeros((20, 2)), np.repeat([0, 3], 10), 4, 0.1)
    chances = torch.from_numpy(bias).softmax(1).numpy()[0]
    np.testing.assert_allclose(chances, np.array([0.5, 0.025, 0.025, 0.5]) / 1.05, rtol=1e-4)
    assert not weight.any()
    _, only = fit_linear(np.zeros((20, 2)), np.full(20, 1), 2, 0.1)
    np.testing.assert_allclose(only, [[np.log(0.025), 0.0]], rtol=1e-6)


def test_separable_rows_and_huge_numbers_end_without_a_warning() -> None:
    inputs = np.linspace(-1, 1, 40)[:, None]
    weight, _ = fit_linear(inputs, (inputs[:, 0] > 0).astype(int), 2, 1e-12)
    assert np.isfinite(weight).all()
    huge = inputs.astype(np.float32) * 1e38
    assert len(fit_linear(huge, (inputs[:, 0] > 0).astype(int), 2, 1.0)) == 2
    assert len(fit_linear(huge, inputs[:, 0], 0, 1.0)) == 2


@pytest.fixture(scope="module")
def splits(toy: Dataset, tiny: Budget) -> dict[int, Split]:
    return splits_of(toy, tiny, 2)


def test_a_pack_is_fitted_once_on_exactly_the_training_rows(
    toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    models = [Model(key, METHODS["linear"].recipe(l2)) for key in splits for l2 in (0.01, 0.1)]
    done: list[None] = []
    trainings = train(models, toy, splits, tiny, lambda: done.append(None))
    assert len(done) == tiny.epochs
    for model, training in zip(models, trainings, strict=True):
        rows = splits[model.key].train
        expected = fit_linear(toy.inputs[rows], toy.targets[rows], 3, model.recipe.l2)
        for part, exact in zip(training.parameters, expected, strict=True):
            np.testing.assert_array_equal(part, exact)
        assert len(training.curves.inner_loss) == tiny.epochs
        assert len(set(training.curves.inner_loss)) == 1
        assert training.curves.early_epoch == 1
        check_losses(training, toy, splits[model.key])
    assert len({training.curves.validation_loss for training in trainings}) == len(models)


def check_losses(training: Training, data: Dataset, split: Split) -> None:
    weight, bias = (torch.from_numpy(part) for part in training.parameters)
    for rows, name in (
        (split.train, "training_loss"),
        (split.inner, "inner_loss"),
        (split.validation, "validation_loss"),
    ):
        found = torch.from_numpy(data.inputs[rows]) @ weight + bias
        loss = torch.nn.functional.cross_entropy(found, torch.from_numpy(data.targets[rows]))
        assert getattr(training.curves, name)[0] == pytest.approx(float(loss), abs=1e-5)


def test_a_fit_leaves_no_checkpoint(toy: Dataset, tiny: Budget, splits: dict[int, Split], tmp_path: Path) -> None:
    models = [Model(key, METHODS["linear"].recipe(0.1)) for key in splits]
    train(models, toy, splits, tiny, checkpoint=Checkpoint(tmp_path / "kept", "one"))
    assert not list(tmp_path.iterdir())


def test_a_few_hundred_rows_do_not_leave_it_under_trained(tmp_path: Path) -> None:
    """So few rows are 15 steps an epoch, and three epochs of them leave a trained model near its first weights."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 8))
    chance = 1 / (1 + np.exp(-inputs @ rng.normal(size=8)))
    data = Dataset("logistic", "Logistic", inputs, (rng.uniform(size=300) < chance).astype(int))
    result = run_study(
        data, methods=["dropout", "linear"], rates=[0.3], network=[8], epochs=3, directory=tmp_path / "a"
    )
    arms = result.findings.summary.arms
    best_possible = -np.mean(chance * np.log(chance) + (1 - chance) * np.log(1 - chance))
    losses = [record.early.validation_loss for record in arms["linear"].records]
    assert np.mean(losses) < best_possible + 0.1
    assert np.mean(losses) < np.mean([record.early.validation_loss for record in arms["none"].records]) - 0.05
