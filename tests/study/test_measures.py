"""What is measured on confirmed models, against closed forms, enumeration and NumPy."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit import study
from dropkit.errors import ArgumentError
from dropkit.study import Budget, Dataset
from dropkit.study.augmentation import changed
from dropkit.study.measures import MEASURES, Measured, Trained, Values
from dropkit.study.measures.co_adaptation import co_adaptation, mean_correlation
from dropkit.study.measures.degradation import DRAWS, SHARES, degradation, removal_order
from dropkit.study.measures.gradient_variance import batch_gradient, gradient_variance
from dropkit.study.measures.taking import take_measures
from dropkit.study.methods import Recipe
from dropkit.study.result import Result
from dropkit.study.statements import statements
from dropkit.study.storage import RunFolder


def model(
    widths: tuple[int, ...], rows: int, recipe: Recipe | None = None, *, numbers: bool = False, key: int = 5
) -> Trained:
    """A network with random weights and random rows; all rows train it, and all validate."""
    rng = np.random.default_rng(0)
    parameters = []
    for inputs, outputs in itertools.pairwise(widths):
        parameters += [rng.normal(size=(1, inputs, outputs)), rng.normal(size=(1, 1, outputs))]
    inputs = torch.tensor(rng.normal(size=(rows, widths[0])), dtype=torch.float32)
    targets = torch.tensor(rng.normal(size=rows), dtype=torch.float32) if numbers else None
    classes = torch.tensor(rng.integers(0, widths[-1], rows))
    everything = np.arange(rows)
    return Trained(
        key, recipe or Recipe(), [torch.tensor(part, dtype=torch.float32) for part in parameters], inputs,
        classes if targets is None else targets, everything, everything,
    )  # fmt: skip


def hidden_layers(trained: Trained, keep: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """The layers of the network in NumPy, outputs last, with hidden units multiplied by `keep`."""
    found = [trained.inputs.numpy().astype(np.float64)]
    pairs = list(zip(trained.parameters[::2], trained.parameters[1::2], strict=True))
    for layer, (weight, bias) in enumerate(pairs):
        product = found[-1] @ weight[0].double().numpy() + bias[0].double().numpy()
        found.append(np.maximum(product, 0) * keep[layer] if layer < len(keep) else product)
    return found[1:]


def test_degradation_is_the_loss_of_the_network_without_these_units() -> None:
    trained = model((4, 7, 5, 3), 30)
    found = degradation(trained).at
    assert tuple(found) == SHARES
    for share in SHARES:
        losses = []
        for draw in range(DRAWS):
            kept = np.ones(12)
            kept[removal_order(trained.key, 12, draw)[: round(share * 12)]] = 0
            outputs = torch.tensor(hidden_layers(trained, (kept[:7], kept[7:]))[-1])
            losses.append(float(F.cross_entropy(outputs, trained.targets)))
        assert found[share] == pytest.approx(np.mean(losses), rel=1e-5), share


def test_every_unit_is_removed_once_and_draws_differ() -> None:
    orders = [removal_order(1, 20, draw).tolist() for draw in range(DRAWS)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == DRAWS


def test_correlations_are_those_of_numpy() -> None:
    rng = np.random.default_rng(3)
    hidden = np.maximum(rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)), 0)
    with_idle = np.insert(hidden, [0, 3], [0.0, 7.0], axis=1)
    expected = np.abs(np.corrcoef(hidden.T)[np.triu_indices(6, 1)]).mean()
    value, left_out = mean_correlation(torch.tensor(with_idle))
    assert value == pytest.approx(expected, rel=1e-12)
    assert left_out == 2


def test_every_hidden_layer_is_correlated() -> None:
    trained = model((4, 7, 5, 3), 60)
    found = co_adaptation(trained)
    layers = hidden_layers(trained, (np.ones(7), np.ones(5)))[:2]
    varying = [layer[:, np.ptp(layer, axis=0) > 0] for layer in layers]
    expected = [np.abs(np.corrcoef(v.T)[np.triu_indices(v.shape[1], 1)]).mean() for v in varying]
    assert found.at == pytest.approx({1.0: expected[0], 2.0: expected[1]}, rel=1e-5)
    assert found.left_out == 12 - sum(v.shape[1] for v in varying)


def test_one_unit_has_no_correlation() -> None:
    assert math.isnan(mean_correlation(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))[0])
    assert mean_correlation(torch.ones(4, 3))[1] == 3
    assert Measured((co_adaptation(model((4, 1, 3), 30)),)).mean == {}


def row_gradients(trained: Trained, masks: Tensor | None = None) -> Tensor:
    """The gradient of every row's loss alone, of shape (rows, parameters), under one mask of the hidden layer."""
    found = []
    for row, target in zip(trained.inputs, trained.targets, strict=True):
        parameters = [part[0].double().requires_grad_() for part in trained.parameters]
        hidden = row[None].double()
        for layer, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
            hidden = hidden @ weight + bias
            if masks is not None and layer < len(parameters) // 2 - 1:
                hidden = hidden.relu() * masks
        loss = F.cross_entropy(hidden, target[None], label_smoothing=trained.recipe.label_smoothing)
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


def assert_is_trace(trained: Trained, size: int, expected: float, draws: int = 3000) -> None:
    """The squared distances to the mean gradient average to the trace; 4.5 errors let a true one fail in 7e-6."""
    gradients = torch.stack([batch_gradient(trained, size, draw) for draw in range(draws)])
    few = float(gradients[:200].var(0).sum())
    assert gradient_variance(trained, 200).at[size] == pytest.approx(few, rel=1e-6)
    distances = (gradients - gradients.mean(0)).square().sum(1)
    assert abs(float(distances.mean()) - expected) < 4.5 * float(distances.std()) / math.sqrt(draws)


def test_rows_vary_the_gradient_of_a_softmax_model_as_sampling_theory_says() -> None:
    trained = model((3, 4), 40, Recipe(label_smoothing=0.1))
    gradients = row_gradients(trained)
    trace = float(gradients.var(0).sum())
    assert_is_trace(trained, 16, trace / 16 * (1 - 16 / 40))  # without replacement


def test_masks_vary_the_gradient_as_all_masks_say() -> None:
    p = 0.4
    trained = model((2, 3, 2), 40, Recipe(dropout=p))
    masks = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=3)]
    chances = torch.stack([(1 - p) ** bits.sum() * p ** (3 - bits.sum()) for bits in masks])[:, None, None]
    gradients = torch.stack([row_gradients(trained, bits / (1 - p)) for bits in masks])
    mean = (chances * gradients).sum(0)
    of_masks = float((chances * (gradients - mean).square()).sum()) / 40
    of_rows = float(mean.var(0).sum())
    assert of_masks > of_rows / 5  # else the masks would hide behind the rows
    assert_is_trace(trained, 16, of_masks / 16 + of_rows / 16 * (1 - 16 / 40))


def test_input_noise_varies_the_gradient_of_a_line_as_its_moments_say() -> None:
    sigma = 0.7
    trained = model((1, 1), 16, Recipe(noise=sigma), numbers=True)
    slope, offset = (float(part) for part in trained.parameters)
    x, y = trained.inputs[:, 0].double(), trained.targets.double()
    error = slope * x + offset - y
    # With x + sigma z the gradient is 2 (e + sigma w z) (x + sigma z) by the slope and 2 (e + sigma w z) by the offset.
    by_slope = 4 * (sigma**2 * (error + slope * x).square() + 2 * sigma**4 * slope**2)
    by_offset = 4 * sigma**2 * slope**2
    assert_is_trace(trained, 16, float((by_slope + by_offset).sum()) / 16**2)  # all rows, so the noise alone


def test_a_batch_of_all_rows_without_noise_does_not_vary() -> None:
    trained = model((3, 5, 4), 16, Recipe(label_smoothing=0.2))
    assert gradient_variance(trained).at == pytest.approx({16.0: 0.0}, abs=1e-9)
    ones = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(
        batch_gradient(trained, 16, 0), row_gradients(trained, ones).mean(0), rtol=1e-4, atol=1e-6
    )


def test_batches_larger_than_the_training_set_are_left_out() -> None:
    assert gradient_variance(model((3, 2), 15), 2).at == {}
    assert list(gradient_variance(model((3, 2), 64), 2).at) == [16, 64]


def test_images_move_down_and_right() -> None:
    image = torch.arange(1.0, 7.0).view(1, 2, 3).expand(3, 2, 3)
    found = changed(image, {"shift": torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0]])})
    assert found.tolist() == [[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [1, 2, 3]], [[0, 4, 5], [0, 0, 0]]]


def test_a_mean_skips_what_has_no_value() -> None:
    found = Measured((Values({1: 2.0, 2: math.nan}, 1), Values({1: 4.0, 2: 3.0}, 2), Values({1: 6.0, 2: math.nan}, 0)))
    assert found.mean == {1: 4.0, 2: 3.0}
    assert found.deviation == {1: 2.0, 2: 0.0}
    assert found.left_out == 1.0


@pytest.fixture(scope="module")
def result(toy: Dataset, tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    methods = ["dropout", "batch_norm", "label_smoothing", "linear", "smaller_network"]
    path = tmp_path_factory.mktemp("runs") / "measured"
    return study.run(toy, budget=tiny, methods=methods, rates=[0.2, 0.5], directory=path)


def test_nothing_removed_is_the_recorded_loss(result: Result) -> None:
    found = result.findings.measures["degradation"]
    assert set(found) == {"none", "dropout", "batch_norm", "label_smoothing", "smaller_network"}
    for name, measured in found.items():
        recorded = [record.early.validation_loss for record in result.findings.summary.arms[name].records]
        assert [values.at[0.0] for values in measured.models] == pytest.approx(recorded, rel=1e-5)


def test_who_is_measured(result: Result) -> None:
    measures = result.findings.measures
    assert set(measures) == {measure.name for measure in MEASURES}
    assert set(measures["gradient_variance"]) == {"none", "dropout", "label_smoothing", "smaller_network"}
    assert list(measures["gradient_variance"]["none"].mean) == [16, 64]  # 200 rows train
    assert list(measures["co_adaptation"]["none"].mean) == [1, 2]
    means = {name: found.mean[16] for name, found in measures["gradient_variance"].items()}
    assert means["dropout"] > means["none"]


def test_the_report_says_it_with_the_numbers_of_the_run(result: Result) -> None:
    measures, said = result.findings.measures, " ".join(statements(result.findings))
    dropout = result.findings.summary.arms["dropout"].label
    loss = measures["degradation"]["dropout"].mean
    assert f"{loss[0.0]:.3f} to {loss[0.5]:.3f} with {dropout}" in said
    assert f"{measures['co_adaptation']['none'].mean[2]:.3f} without regularisation" in said
    assert f"{measures['gradient_variance']['dropout'].mean[64]:.2g} with {dropout}" in said
    assert "Left out, because they train with the statistics of each batch" in said
    page = result.report.read_text(encoding="utf-8")
    assert page.count("<svg") == 7
    assert "When hidden units are removed after training" in page


def test_the_results_hold_it_and_a_resumed_run_measures_the_same(result: Result, toy: Dataset) -> None:
    path = result.directory / "results.json"
    first = json.loads(path.read_text())["measures"]
    points = first["degradation"]["methods"]["none"]["values"]
    assert [point["at"] for point in points] == list(SHARES)
    assert points[5]["mean"] == result.findings.measures["degradation"]["none"].mean[0.5]
    path.unlink()
    study.resume(result.directory, data=toy)
    assert json.loads(path.read_text())["measures"] == first


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_networks_of_one_unit_get_plain_words(task: str, tiny: Budget, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 4))
    numbers = inputs[:, 0] + rng.normal(size=500)
    targets = numbers if task == "regression" else (numbers > 0).astype(int)
    data = Dataset("narrow", "Narrow", inputs, targets, task=task)
    found = study.run(
        data, budget=tiny, network=[1], methods=["dropout", "linear"], rates=[0.2], directory=tmp_path / "n"
    )
    assert set(found.findings.measures) == {"degradation", "gradient_variance"}
    assert "no last hidden layer here has two units that vary" in found.report.read_text(encoding="utf-8")
    with pytest.raises(ArgumentError, match="no network of this study has a 'co_adaptation'"):
        found.plot("co_adaptation")


def test_an_arm_that_diverged_is_not_measured(result: Result, toy: Dataset) -> None:
    summary = result.findings.summary
    gone = {name: replace(arm, records=()) if name == "dropout" else arm for name, arm in summary.arms.items()}
    with RunFolder.open(result.directory) as folder:
        found = take_measures(folder, toy, replace(summary, arms=gone))
    assert set(found["degradation"]) == {"none", "batch_norm", "label_smoothing", "smaller_network"}
    assert found["degradation"]["none"] == result.findings.measures["degradation"]["none"]
