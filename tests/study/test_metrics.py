"""Metrics: against scikit-learn, ties and missing classes included, and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from dropkit.study.metrics import METRICS, area_under_roc, calibration_error, measured, metrics_of

RNG = np.random.default_rng(0)


def logits(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()[None]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_classification_against_scikit_learn(classes: int, decimals: int) -> None:
    outputs = RNG.normal(size=(4, 300, classes)).round(decimals)  # 0 and 1 decimal: many ties
    targets = RNG.integers(0, classes, (4, 300))
    found = measured("classification", torch.from_numpy(outputs), torch.from_numpy(targets), [1.0] * 4)
    probabilities = torch.from_numpy(outputs).softmax(-1).numpy()
    for model in range(4):
        shown, true = probabilities[model], targets[model]
        area = reference.roc_auc_score(true, shown[:, 1] if classes == 2 else shown, multi_class="ovr")
        assert found[model, 0] == pytest.approx(reference.accuracy_score(true, outputs[model].argmax(1)))
        assert found[model, 1] == pytest.approx(area, abs=1e-12)


def test_regression_against_scikit_learn() -> None:
    outputs, targets = RNG.normal(size=(3, 200, 1)), RNG.normal(size=(3, 200))
    scales = [1.0, 8.0, 250.0]
    found = measured("regression", torch.from_numpy(outputs), torch.from_numpy(targets), scales)
    for model, scale in enumerate(scales):
        own, true = outputs[model, :, 0] * scale + 40, targets[model] * scale + 40  # the target's own units
        assert found[model, 0] == pytest.approx(reference.root_mean_squared_error(true, own))
        assert found[model, 1] == pytest.approx(reference.r2_score(true, own))


def test_area_by_hand() -> None:
    outputs = logits([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8]])
    # Rows of class 1 have .4 and .8, the others .1 and .4: three wins and a tie of four pairs.
    assert float(area_under_roc(outputs, torch.tensor([[0, 0, 1, 1]]))) == 3.5 / 4
    assert float(area_under_roc(torch.zeros(1, 4, 2), torch.tensor([[0, 0, 1, 1]]))) == 0.5
    assert float(area_under_roc(-outputs, torch.tensor([[0, 0, 1, 1]]))) == 0.5 / 4


def test_calibration_error_by_hand() -> None:
    # Bins of a fifteenth: .70 and .72 lie in one (10/15 to 11/15) with one of two right, .9 lies alone and is wrong.
    outputs = logits([[0.7, 0.3], [0.28, 0.72], [0.9, 0.1]])
    targets = torch.tensor([[0, 0, 1]])
    expected = 2 / 3 * abs(0.5 - 0.71) + 1 / 3 * 0.9
    assert float(calibration_error(outputs, targets)) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_against_a_loop_over_bins() -> None:
    outputs, targets = 3 * RNG.normal(size=(2, 500, 4)), RNG.integers(0, 4, (2, 500))
    found = calibration_error(torch.from_numpy(outputs), torch.from_numpy(targets))
    for model in range(2):
        probabilities = torch.from_numpy(outputs[model]).softmax(-1).numpy()
        confidence, right = probabilities.max(1), probabilities.argmax(1) == targets[model]
        expected = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert float(found[model]) == pytest.approx(expected, abs=1e-12)


def test_certain_outputs_that_are_right_are_calibrated() -> None:
    outputs = 1000 * torch.eye(3)[None]
    found = measured("classification", outputs, torch.tensor([[0, 1, 2]]), [1.0])
    assert found.tolist() == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize("classes", [2, 3])
def test_a_missing_class_leaves_the_area_alone_undefined(classes: int) -> None:
    targets = torch.from_numpy(RNG.integers(0, classes - 1, (1, 50)))
    accuracy, area, error = measured("classification", torch.randn(1, 50, classes), targets, [1.0])[0].tolist()
    assert math.isnan(area)
    assert math.isfinite(accuracy)
    assert math.isfinite(error)


def test_targets_that_do_not_differ_leave_their_share_undefined() -> None:
    error, share = measured("regression", torch.zeros(1, 5, 1), torch.ones(1, 5), [7.0])[0].tolist()
    assert error == 7.0
    assert math.isnan(share)


def test_models_do_not_see_each_other() -> None:
    outputs, targets = torch.randn(3, 40, 3), torch.from_numpy(RNG.integers(0, 3, (3, 40)))
    together = measured("classification", outputs, targets, [1.0] * 3)
    apart = [measured("classification", outputs[i : i + 1], targets[i : i + 1], [1.0])[0] for i in range(3)]
    assert torch.equal(together, torch.stack(apart))


def test_values_are_written_in_their_own_way() -> None:
    written = {metric.name: metric.written for metric in METRICS}
    assert [written["rmse"](value) for value in (84816.4, 1234.5, 12.3456, 0.00123456)] == [
        *("84,816", "1,234", "12.35", "0.001235")
    ]
    assert [written["r_squared"](value) for value in (-0.0216, math.nan)] == ["\N{MINUS SIGN}0.022", "\N{EN DASH}"]


def test_the_registry_names_each_once() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert [metric.name for metric in metrics_of("classification")] == ["accuracy", "auc", "calibration_error"]
    assert [metric.name for metric in metrics_of("regression")] == ["rmse", "r_squared"]
