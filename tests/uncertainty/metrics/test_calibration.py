"""Calibration errors against torchmetrics, scikit-learn, exact enumeration and the definition of the smooth one."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from sklearn.calibration import calibration_curve

from dropkit.errors import ArgumentError
from dropkit.uncertainty import calibration_error
from dropkit.uncertainty.metrics.calibration import binned, debiased_square, top_label_bins


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """200 rows of four classes, about half of them right, and no confidence on the edge of a bin."""
    rows = torch.arange(200, dtype=torch.float64)
    probabilities = torch.stack([2 * torch.sin(1.7 * rows + k * k) for k in range(4)], dim=1).softmax(1)
    labels = ((7 * rows + 3 * (0.37 * rows).floor()) % 4).long()
    return probabilities, torch.where(rows % 3 == 0, probabilities.argmax(1), labels)


@pytest.mark.parametrize(
    ("estimator", "bins", "published"),
    [
        ("equal_width", 15, 0.16209201514720917),
        ("equal_width", 7, 0.15409445762634277),
        ("maximum", 15, 0.2814161479473114),
        ("maximum", 7, 0.21917152404785156),
    ],
)
def test_the_expected_and_the_maximum_error_are_those_of_torchmetrics(
    estimator: str, bins: int, published: float
) -> None:
    """As torchmetrics 1.9.0 gives them, in float32, for these rows."""
    found = calibration_error(*example(), estimator=estimator, bins=bins)
    assert found == pytest.approx(published, abs=1e-6)


def test_the_adaptive_error_is_that_of_scikit_learns_quantile_bins() -> None:
    """With 200 rows without ties and 8 bins, each has 25: the error is the plain mean over bins."""
    probabilities, labels = example()
    confidence, predicted = probabilities.max(1)
    accuracy, mean = calibration_curve(predicted == labels, confidence, n_bins=8, strategy="quantile")
    assert len(mean) == 8
    found = calibration_error(probabilities, labels, estimator="equal_mass", bins=8)
    assert found == pytest.approx(np.abs(accuracy - mean).mean(), abs=1e-12)


def test_the_classwise_error_is_the_mean_of_two_class_problems() -> None:
    probabilities, labels = example()
    expected = 0.0
    for k in range(4):
        of = probabilities[:, k].numpy()
        for low in np.arange(10) / 10:
            inside = (of > low) & (of <= low + 0.1)
            if inside.any():
                gap = abs((labels.numpy() == k)[inside].mean() - of[inside].mean())
                expected += gap * inside.mean() / 4
    assert calibration_error(probabilities, labels, estimator="classwise", bins=10) == pytest.approx(expected)


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.9])
def test_the_square_of_the_debiased_error_is_unbiased(chance: float) -> None:
    """Over all labels of five rows that are called certain: where all are, nothing need be cut off at 0."""
    probabilities = np.tile([1.0, 0.0], (5, 1))
    mean = plain = 0.0
    for right in itertools.product((0, 1), repeat=5):
        weight = math.prod(chance if r else 1 - chance for r in right)
        labels = 1 - np.array(right)
        mean += weight * calibration_error(probabilities, labels, estimator="debiased", bins=1) ** 2
        plain += weight * calibration_error(probabilities, labels, bins=1) ** 2
    assert mean == pytest.approx((1 - chance) ** 2)
    assert plain == pytest.approx((1 - chance) ** 2 + chance * (1 - chance) / 5)


@pytest.mark.parametrize("rows", [2, 4, 15, 20, 30, 60])
def test_the_debiased_error_of_few_rows_is_unbiased_in_its_square_and_the_lowest(rows: int) -> None:
    """Of a calibrated model, whose error is 0. By draws; the square is that of which the error is the root, uncut."""
    rng = np.random.default_rng(0)
    squares, found = [], {name: [] for name in ("debiased", "equal_width", "equal_mass")}
    for _ in range(300):
        probabilities = rng.dirichlet(np.ones(4), rows)
        labels = (probabilities.cumsum(1) > rng.random((rows, 1))).argmax(1)
        for name, values in found.items():
            values.append(calibration_error(probabilities, labels, estimator=name))
        top = top_label_bins(probabilities, labels, min(15, rows // 2), "equal_mass")
        assert top.counts.min() > 1
        squares.append(debiased_square(top))
    assert found["debiased"] == pytest.approx(np.maximum(squares, 0) ** 0.5)
    assert abs(np.mean(squares)) < 4 * np.std(squares) / 300**0.5
    means = {name: np.mean(values) for name, values in found.items()}
    assert min(means, key=lambda name: means[name]) == "debiased"


@pytest.mark.parametrize("gap", [0.0, 0.1, -0.05])
def test_the_debiased_square_is_unbiased_where_confidences_vary(gap: float) -> None:
    """Over all labels of four rows in each of two bins, that are right less often than is said."""
    confidence = np.array([0.52, 0.61, 0.7, 0.74, 0.78, 0.83, 0.9, 0.95])
    chance, mean = confidence - gap, 0.0
    for right in itertools.product((0.0, 1.0), repeat=8):
        weight = math.prod(c if r else 1 - c for r, c in zip(right, chance, strict=True))
        top = binned(confidence, np.array(right), 4, "equal_width")
        assert top.counts.tolist() == [0, 0, 4, 4]
        mean += weight * debiased_square(top)
    assert mean == pytest.approx(gap**2, abs=1e-12)


@pytest.mark.parametrize(("rows", "bins"), [(6, 3), (20, 1), (20, 4)])
def test_the_debiased_square_is_unbiased_over_rows_drawn_anew(rows: int, bins: int) -> None:
    """Wherever bins of equal mass end. Five standard errors: of right code, one seed in 1.7 million would fail.

    With 20 rows in one bin, the formula for equal confidences is 0.0034 too low, ten standard errors.
    """
    rng, gap, found = np.random.default_rng(0), 0.1, []
    for _ in range(6_000):
        confidence = rng.uniform(0.1, 1, rows)
        is_right = (rng.uniform(size=rows) < confidence - gap).astype(float)
        found.append(debiased_square(binned(confidence, is_right, bins, "equal_mass")))
    assert abs(np.mean(found) - gap**2) < 5 * np.std(found) / len(found) ** 0.5


def test_of_equal_confidences_the_debiased_error_is_the_published_one() -> None:
    """Kumar et al. (2019), section 5: the squared gap less accuracy (1 - accuracy) / (rows - 1), by hand."""
    probabilities = np.tile([0.9, 0.1], (10, 1))
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    expected = ((0.9 - 0.6) ** 2 - 0.6 * 0.4 / 9) ** 0.5
    assert calibration_error(probabilities, labels, estimator="debiased", bins=1) == pytest.approx(expected, abs=1e-12)


def test_rows_that_ties_leave_alone_in_a_bin_say_nothing_of_noise() -> None:
    """Three bins of two rows would be, but five rows share a confidence; the one that is left is wrong."""
    confidence = np.array([0.6, 0.6, 0.6, 0.6, 0.6, 0.9])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    for labels, expected in (([0, 0, 0, 1, 1, 1], 0.0), ([1, 1, 1, 1, 1, 1], 0.6)):
        assert calibration_error(probabilities, labels, estimator="debiased", bins=15) == pytest.approx(expected)
    with pytest.raises(ArgumentError, match="two rows or more for the debiased estimator"):
        calibration_error(probabilities[:1], [0], estimator="debiased")


def test_the_debiased_error_of_a_calibrated_model_is_lower_than_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 2000)
    labels = (rng.uniform(size=2000) > confidence).astype(int)
    probabilities = np.stack([confidence, 1 - confidence], 1)
    debiased = calibration_error(probabilities, labels, estimator="debiased")
    assert debiased < 0.012 < calibration_error(probabilities, labels) < 0.05


@pytest.mark.parametrize("estimator", ["equal_mass", "debiased"])
def test_rows_of_one_confidence_share_a_bin_whatever_their_order(estimator: str) -> None:
    confidence = np.repeat([0.6, 0.7, 0.9], [5, 9, 6])
    probabilities, labels = np.stack([confidence, 1 - confidence], 1), np.arange(20) % 3 % 2
    order = np.random.default_rng(0).permutation(20)
    found = calibration_error(probabilities, labels, estimator=estimator, bins=4)
    assert found == calibration_error(probabilities[order], labels[order], estimator=estimator, bins=4)


def test_a_bin_holds_its_upper_edge() -> None:
    """0.75 and 0.7 lie in (0.5, 0.75]: one gap of |0.5 - 0.725|, not the two of 0.25 and 0.7."""
    probabilities = [[0.75, 0.25], [0.7, 0.3]]
    assert calibration_error(probabilities, [0, 1], bins=4) == pytest.approx(0.225)
    assert calibration_error(probabilities, [0, 1], bins=1000) == pytest.approx((0.25 + 0.7) / 2)


def test_the_smooth_error_is_the_fixed_point_of_its_definition() -> None:
    """Its bandwidth is put into the definition: the integral of the size of residuals under a reflected Gaussian."""
    probabilities, labels = example()
    confidence, predicted = (value.numpy() for value in probabilities.max(1))
    residuals = (predicted == labels.numpy()) - confidence
    bandwidth = calibration_error(probabilities, labels, estimator="smooth")
    images = np.concatenate([confidence + 2 * k for k in range(-2, 3)] + [-confidence + 2 * k for k in range(-2, 3)])

    def smoothed(at: float) -> float:
        kernel = np.exp(-(((at - images) / bandwidth) ** 2) / 2) / (bandwidth * math.sqrt(2 * math.pi))
        return abs((kernel * np.tile(residuals, 10)).sum()) / len(confidence)

    integral, _ = integrate.quad(smoothed, 0, 1, limit=400)
    assert bandwidth == pytest.approx(integral, abs=2e-4)
    assert 0.05 < bandwidth < 0.3


@pytest.mark.parametrize("right", [0, 3, 10])
def test_the_smooth_error_of_one_confidence_is_how_far_it_is_off(right: int) -> None:
    labels = np.repeat([0, 1], [right, 10 - right])
    found = calibration_error(np.tile([0.7, 0.3], (10, 1)), labels, estimator="smooth")
    assert found == pytest.approx(abs(right / 10 - 0.7), abs=1e-6)


@pytest.mark.parametrize("estimator", ["equal_width", "equal_mass", "debiased", "maximum", "classwise", "smooth"])
def test_certain_and_right_has_no_error_and_certain_and_wrong_all_of_it(estimator: str) -> None:
    probabilities = torch.eye(3)[[0, 1, 2, 0]]
    assert calibration_error(probabilities, torch.tensor([0, 1, 2, 0]), estimator=estimator) == 0
    wrong = calibration_error(probabilities, torch.tensor([1, 2, 0, 2]), estimator=estimator)
    assert wrong == pytest.approx(2 / 3 if estimator == "classwise" else 1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_type_that_need_gradients_and_arrays_give_the_same(dtype: torch.dtype) -> None:
    probabilities, labels = example()
    given = probabilities.to(dtype)
    expected = calibration_error(given.double().numpy() / given.double().numpy().sum(1, keepdims=True), labels.numpy())
    assert calibration_error(given.requires_grad_(), labels.short()) == pytest.approx(expected, abs=0.02)
