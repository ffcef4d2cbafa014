"""Figures show the numbers that they should, and touch nothing of Matplotlib's own state."""

import io
import subprocess
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from scipy import stats
from sklearn import metrics

from dropkit import uncertainty
from dropkit.errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from dropkit.uncertainty import draw_detection, draw_entropies, draw_intervals, draw_reliability, draw_risk_coverage

# Seven rows in three of four bins; two rows are wrong.
PROBABILITIES = torch.tensor(
    [[0.6, 0.4], [0.7, 0.3], [0.35, 0.65], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [1.0, 0.0]], dtype=torch.float64
)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0])


def heights(panel: Axes, label: str) -> list[float]:
    """Those of the bars of one label."""
    (bars,) = (bars for bars in panel.containers if bars.get_label() == label)
    return [bar.get_height() for bar in bars]


def line(panel: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = (each for each in panel.lines if each.get_label() == label)
    return np.asarray(found.get_xdata()).tolist(), np.asarray(found.get_ydata()).tolist()


def strokes(panel: Axes) -> np.ndarray:
    """Those of the vertical lines: place, lower and upper end of each."""
    (collection,) = panel.collections
    return np.array([[ends[0][0], ends[0][1], ends[1][1]] for ends in collection.get_segments()])


def test_a_reliability_diagram_shows_accuracy_gap_and_how_often_each_confidence_is_stated() -> None:
    """The bins are (0.5, 0.75] with 0.6, 0.7 and 0.65, one of them wrong, and (0.75, 1] with 0.9, 0.8, 0.9 and 1."""
    figure = draw_reliability(PROBABILITIES, LABELS, bins=4)
    panel, below = figure.axes
    assert heights(panel, "accuracy") == pytest.approx([2 / 3, 3 / 4])
    assert heights(panel, "gap to the confidence") == pytest.approx([0.65 - 2 / 3, 0.9 - 3 / 4])
    assert [bar.get_x() for bar in panel.containers[0]] == [0.5, 0.75]
    assert [bar.get_y() for bar in panel.containers[1]] == pytest.approx([2 / 3, 3 / 4])
    assert [bar.get_height() for bar in below.containers[0]] == pytest.approx([3 / 7, 4 / 7])
    assert line(below, "mean confidence")[0] == pytest.approx([5.55 / 7] * 2)
    assert line(below, "mean accuracy")[0] == pytest.approx([5 / 7] * 2)
    error = (3 * (2 / 3 - 0.65) + 4 * 0.15) / 7
    assert panel.get_title("left") == f"expected calibration error {error:.3f}"


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_consistency_bars_hold_the_accuracy_of_calibrated_bins_as_often_as_they_say(level: float) -> None:
    """Of 400 rows of one confidence: the chance of the bar's counts is the level, or the next that counts allow."""
    probabilities, labels = np.tile([0.7, 0.3], (400, 1)), np.zeros(400, int)
    ((place, low, high),) = strokes(draw_reliability(probabilities, labels, level=level).axes[0])
    assert place == pytest.approx(0.7)
    held = stats.binom.cdf(round(high * 400), 400, 0.7) - stats.binom.cdf(round(low * 400) - 1, 400, 0.7)
    assert level <= held < level + 0.05


def test_bins_of_equal_mass_begin_with_the_lowest_confidence() -> None:
    panel, below = draw_reliability(PROBABILITIES, LABELS, bins=2, binning="equal_mass").axes
    bars = panel.containers[0]
    assert [bar.get_x() for bar in bars] == pytest.approx([0.6, 0.75])
    assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(1)
    assert [bar.get_height() for bar in below.containers[0]] == pytest.approx([3 / 7, 4 / 7])


def test_a_risk_coverage_figure_shows_the_curve_and_that_of_the_best_order() -> None:
    losses, scores = np.array([0.0, 1.0, 0.0, 1.0, 0.0]), np.arange(5.0)
    (panel,) = draw_risk_coverage(scores, losses).axes
    assert line(panel, "in this order") == (pytest.approx([0.2, 0.4, 0.6, 0.8, 1]), [0, 0.5, 1 / 3, 0.5, 0.4])
    assert line(panel, "in the best order")[1] == [0, 0, 0, 0.25, 0.4]
    assert line(panel, "in random order")[1] == [0.4, 0.4]


def test_a_figure_of_detection_shows_both_histograms_and_the_roc_curve() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 300), rng.normal(2, 1, 100)
    panel, curve = draw_detection(inside, outside, bins=10).axes
    edges = np.linspace(min(inside.min(), outside.min()), max(inside.max(), outside.max()), 11)
    for label, values in (("inside (300)", inside), ("outside (100)", outside)):
        np.testing.assert_allclose(heights(panel, label), np.histogram(values, edges)[0] / len(values))
    x, y = (np.asarray(data) for data in (curve.lines[0].get_xdata(), curve.lines[0].get_ydata()))
    area = metrics.roc_auc_score(np.repeat([0, 1], [300, 100]), np.concatenate([inside, outside]))
    assert metrics.auc(x, y) == pytest.approx(area)
    assert curve.get_title("left") == f"AUROC {area:.3f}"


@pytest.mark.parametrize("with_mean", [False, True])
def test_intervals_stand_in_the_order_of_the_predictions_and_targets_outside_stand_out(with_mean: bool) -> None:
    lower, upper, targets = np.array([2.0, 0.0, 1.0]), np.array([3.0, 1.0, 2.0]), np.array([2.5, 1.5, 0.5])
    mean = np.array([2.2, 0.3, 1.9]) if with_mean else None
    (panel,) = draw_intervals(lower, upper, targets, level=0.9, mean=mean).axes
    np.testing.assert_allclose(strokes(panel), [[0, 0, 1], [1, 1, 2], [2, 2, 3]])
    assert line(panel, "prediction")[1] == ([0.3, 1.9, 2.2] if with_mean else [0.5, 1.5, 2.5])
    assert line(panel, "target inside") == ([2], [2.5])
    assert line(panel, "target outside") == ([0, 1], [1.5, 0.5])
    assert panel.get_title("left") == "90 % intervals: coverage 33.3 %, mean width 1"


def test_entropies_of_right_and_wrong_predictions_have_their_own_histograms() -> None:
    (panel,) = draw_entropies(PROBABILITIES, LABELS, bins=5).axes
    entropy = torch.special.entr(PROBABILITIES).sum(1).numpy()
    is_right = (PROBABILITIES.argmax(1) == LABELS).numpy()
    edges = np.linspace(entropy.min(), entropy.max(), 6)
    np.testing.assert_allclose(heights(panel, "right (5)"), np.histogram(entropy[is_right], edges)[0] / 5)
    np.testing.assert_allclose(heights(panel, "wrong (2)"), np.histogram(entropy[~is_right], edges)[0] / 2)


def test_where_all_are_right_the_histogram_of_the_wrong_is_empty() -> None:
    (panel,) = draw_entropies(PROBABILITIES, PROBABILITIES.argmax(1), bins=5).axes
    assert heights(panel, "wrong (0)") == [0] * 5


DRAWN: dict[str, dict[str, Any]] = {
    "draw_detection": {"inside": torch.ones(3), "outside": torch.ones(2), "bins": 3},
    "draw_entropies": {"probabilities": PROBABILITIES, "labels": LABELS, "bins": 3},
    "draw_intervals": {"lower": torch.zeros(2), "upper": torch.ones(2), "targets": torch.ones(2), "level": 0.9},
    "draw_reliability": {"probabilities": PROBABILITIES, "labels": LABELS, "bins": 3, "level": 0.9},
    "draw_risk_coverage": {"uncertainty": torch.ones(2), "losses": torch.ones(2)},
}


@pytest.mark.parametrize("call", DRAWN)
def test_every_figure_can_be_saved_and_settings_are_as_before(call: str) -> None:
    before = dict(mpl.rcParams)
    figure = getattr(uncertainty, call)(**DRAWN[call])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_figures_need_no_pyplot() -> None:
    code = "\n".join(
        (
            "import sys, io",
            "from dropkit.uncertainty import draw_detection",
            "draw_detection([1.0, 2.0], [2.0]).savefig(io.BytesIO())",
            "assert 'matplotlib.pyplot' not in sys.modules",
        )
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


WRONG = [
    ("draw_detection", "inside", torch.ones(0), ArgumentError, "one row or more, got (0,)"),
    ("draw_detection", "outside", None, ArgumentTypeError, "a dense tensor or an array of real numbers, got None"),
    ("draw_detection", "bins", 0, ArgumentError, "an integer in [1, 10**4], got 0"),
    ("draw_entropies", "labels", LABELS.double(), ArgumentTypeError, "of an integer type, got dtype('float64')"),
    ("draw_entropies", "probabilities", -PROBABILITIES, ArgumentError, "in [0, 1], got -0."),
    ("draw_entropies", "bins", "3", ArgumentTypeError, "an integer in [1, 10**4], got '3'"),
    ("draw_intervals", "lower", torch.full((2,), 2.0), ArgumentError, "nowhere below `lower`, got 1.0"),
    ("draw_intervals", "level", 0, ArgumentError, "a number in (0, 1), got 0"),
    ("draw_intervals", "mean", torch.ones(3), ArgumentError, "of shape (2,), as `lower` is, got (3,)"),
    ("draw_intervals", "targets", torch.tensor([0.0, float("nan")]), ArgumentError, "finite numbers, got nan"),
    ("draw_reliability", "binning", "mass", ArgumentError, "one of 'equal_width', 'equal_mass', got 'mass'"),
    ("draw_reliability", "level", 1.0, ArgumentError, "a number in (0, 1), got 1.0"),
    ("draw_reliability", "labels", LABELS + 1, ArgumentError, "classes from 0 to 1, got 2"),
    ("draw_risk_coverage", "losses", torch.tensor([1.0, -1.0]), ArgumentError, "0 or more, got -1.0"),
    ("draw_risk_coverage", "uncertainty", torch.ones(2, 1), ArgumentError, "of one axis, got (2, 1)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "name", "value", "error", "rule"), WRONG, ids=[f"{case[0]}-{case[1]}-{i}" for i, case in enumerate(WRONG)]
)
def test_a_wrong_argument_is_named_with_the_rule(
    call: str, name: str, value: Any, error: type[Exception], rule: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(uncertainty, call)(**DRAWN[call] | {name: value})
    named = "upper" if "nowhere below" in rule else name
    assert str(caught.value).startswith(f"{call}: `{named}` must be {rule}")


def test_intervals_of_several_axes_are_not_drawn() -> None:
    with pytest.raises(ArgumentError, match=r"draw_intervals: `lower` must be of one axis, got \(2, 1\)"):
        draw_intervals(torch.zeros(2, 1), torch.ones(2, 1), torch.ones(2, 1), level=0.9)


@pytest.mark.parametrize("call", DRAWN)
def test_without_matplotlib_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'matplotlib'.*dropkit\[uncertainty\]"):
        getattr(uncertainty, call)(**DRAWN[call])
