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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context as style_context
from matplotlib.text import Text
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


def test_bins_too_narrow_for_a_bar_show_as_dots() -> None:
    """All rows of one confidence make one bin of equal mass, which has no width."""
    probabilities, labels = np.tile([0.9, 0.1], (10, 1)), np.repeat([0, 1], [7, 3])
    panel, below = draw_reliability(probabilities, labels, binning="equal_mass").axes
    x, y = line(panel, "accuracy at the mean confidence")
    assert (x, y) == ([pytest.approx(0.9)], [pytest.approx(0.7)])
    (shares,) = (each for each in below.lines if each.get_marker() == "o")
    assert np.asarray(shares.get_xydata()).tolist() == [[pytest.approx(0.9), 1]]
    figure = draw_reliability(probabilities, labels, binning="equal_mass")
    figure.axes[0].lines[0].set_color("red")
    assert len(pixels(figure, "red")) > 5


def pixels(figure: Figure, colour: str) -> np.ndarray:
    """The places of pixels of a colour."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())
    return np.argwhere((image == np.round(255 * np.array(to_rgba(colour)))).all(-1))


def test_a_risk_coverage_figure_shows_the_curve_and_that_of_the_best_order() -> None:
    losses, scores = np.array([0.0, 1.0, 0.0, 1.0, 0.0]), np.arange(5.0)
    (panel,) = draw_risk_coverage(scores, losses).axes
    assert line(panel, "in this order") == (pytest.approx([0.2, 0.4, 0.6, 0.8, 1]), [0, 0.5, 1 / 3, 0.5, 0.4])
    assert line(panel, "in the best order")[1] == [0, 0, 0, 0.25, 0.4]
    assert line(panel, "in random order")[1] == [0.4, 0.4]


def test_the_curves_of_a_model_without_errors_are_seen_though_they_lie_on_the_axis() -> None:
    figure = draw_risk_coverage(np.arange(50.0), np.zeros(50))
    (panel,) = figure.axes
    panel.lines[0].set(color="red", linewidth=4)
    panel.lines[1].set(color="lime", linewidth=8)
    for colour in ("red", "lime"):
        height, width = np.ptp(pixels(figure, colour), axis=0)
        assert width > 300
        assert height >= (3 if colour == "red" else 7)  # half of it if it were cut off at the axis


@pytest.mark.parametrize("call", ["draw_intervals", "draw_reliability", "draw_risk_coverage"])
def test_nothing_runs_through_the_legend(call: str) -> None:
    figure = getattr(uncertainty, call)(**DRAWN[call])
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert not any(legend.get_window_extent().overlaps(panel.get_tightbbox()) for panel in figure.axes)


def test_lines_are_thinner_where_bins_are_many() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 2000)
    for bins, expected in ((15, 1.2), (200, 48 / 100)):
        panel, _ = draw_reliability(np.stack([confidence, 1 - confidence], 1), np.zeros(2000, int), bins=bins).axes
        assert panel.collections[0].get_linewidth() == pytest.approx([expected])


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_bars_of_narrow_bins_keep_their_colour(binning: str) -> None:
    """Four of five rows are right, whatever is said: below 0.1 all is of the colour of bars."""
    confidence = np.repeat(np.linspace(0.5, 1, 200), 10)
    probabilities, labels = np.stack([confidence, 1 - confidence], 1), np.arange(2000) % 5 == 0
    figure = draw_reliability(probabilities, labels, bins=100, binning=binning)
    panel, below = figure.axes
    for bars in (*panel.containers, below.containers[0]):
        assert {each.get_linewidth() for each in bars} == {0}
    for bar in panel.containers[0]:
        bar.set(color="red", alpha=1)
    found = pixels(figure, "red")
    (left, low), (right, high) = panel.transData.transform([(0.51, 0.02), (0.99, 0.10)])
    inside = (found > (figure.bbox.height - high, left)) & (found < (figure.bbox.height - low, right))
    assert inside.all(-1).sum() > 0.9 * (right - left) * (high - low)
    wide, _ = draw_reliability(PROBABILITIES, LABELS, bins=4).axes
    assert {each.get_linewidth() for bars in wide.containers for each in bars} == {0.8}


def test_a_file_of_vectors_does_not_grow_with_thousands_of_intervals() -> None:
    sizes = []
    for rows in (3_100, 12_400):
        file = io.BytesIO()
        draw_intervals(np.zeros(rows), np.ones(rows), np.arange(rows) % 2 * 1.5, level=0.9).savefig(file, format="svg")
        sizes.append(len(file.getvalue()))
    assert max(sizes) < 300_000
    file = io.BytesIO()
    draw_intervals(np.zeros(100), np.ones(100), np.ones(100), level=0.9).savefig(file, format="svg")
    assert b"<image" not in file.getvalue()


@pytest.mark.parametrize("size", ["xx-large", 30])
def test_the_sizes_of_labels_are_those_of_all_figures(size: Any) -> None:
    with style_context({"axes.labelsize": size, "xtick.labelsize": size, "ytick.labelsize": size}):
        (panel,) = draw_risk_coverage([0.1, 0.2], [0, 1]).axes
    assert {panel.xaxis.label.get_size(), panel.yaxis.label.get_size()} == {10}
    assert {text.get_size() for text in (*panel.get_xticklabels(), *panel.get_yticklabels())} == {10}


def test_a_risk_coverage_figure_of_one_row_shows_a_point() -> None:
    figure = draw_risk_coverage([0.3], [0.5])
    (panel,) = figure.axes
    assert line(panel, "in this order") == ([1], [0.5])
    panel.lines[0].set_color("red")
    assert len(pixels(figure, "red")) > 5


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


def test_the_more_rows_the_smaller_their_targets_but_in_the_legend_they_are_seen() -> None:
    sizes = {}
    for rows in (10, 3000):
        (panel,) = draw_intervals(np.zeros(rows), np.ones(rows), np.arange(rows) % 2 * 1.5, level=0.9).axes
        sizes[rows] = [each.get_markersize() for each in panel.lines if each.get_marker() == "o"]
        (legend,) = panel.figure.legends
        dots = [each for each in legend.legend_handles if isinstance(each, Line2D) and each.get_marker() == "o"]
        assert [each.get_markersize() for each in dots] == [5, 5]
        names = [text.get_text() for text in legend.get_texts()]
        stroke = legend.legend_handles[names.index("interval")]
        assert isinstance(stroke, Line2D)
        assert stroke.get_linewidth() == (6 if rows == 10 else 4)
    assert max(sizes[3000]) < min(sizes[10]) / 2


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


def test_scores_that_are_equal_up_to_rounding_lie_in_the_middle() -> None:
    """Entropies of the same 50 probabilities: one number, but for the order in which they are added."""
    rng = np.random.default_rng(0)
    probabilities = rng.permuted(np.tile(rng.dirichlet(np.ones(50)), (60, 1)), axis=1)
    labels = probabilities.argmax(1)
    entropy = -(probabilities * np.log(probabilities)).sum(1)
    assert 0 < np.ptp(entropy) < 1e-14
    (panel,) = draw_entropies(probabilities, labels, bins=3).axes
    assert heights(panel, "right (60)") == [0, 1, 0]
    panel, _ = draw_detection(entropy[:20], entropy[20:], bins=3).axes
    assert heights(panel, "inside (20)") == heights(panel, "outside (40)") == [0, 1, 0]


@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 1e17])
def test_scores_that_are_all_one_number_lie_in_the_middle_whatever_its_size(value: float) -> None:
    panel, _ = draw_detection([value], [value, np.nextafter(value, 2 * value)], bins=3).axes
    assert heights(panel, "inside (1)") == heights(panel, "outside (2)") == [0, 1, 0]
    assert all(bar.get_width() > 0 for bar in panel.containers[0])


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


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize("call", DRAWN)
def test_all_text_and_lines_stand_out_from_the_background_of_the_style(call: str, style: str) -> None:
    with style_context(style):
        figure = getattr(uncertainty, call)(**DRAWN[call])
        file = io.BytesIO()
        figure.savefig(file, format="png")
        saved = mpl.rcParams["savefig.facecolor"]
    paper = brightness(figure.get_facecolor() if saved == "auto" else saved)
    assert paper == (0 if style == "dark_background" else 1)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 5
    assert all(abs(brightness(text.get_color()) - paper) > 0.5 for text in texts)
    for panel in figure.axes:
        assert brightness(panel.get_facecolor()) == paper
        assert all(abs(brightness(tick.get_color()) - paper) > 0.2 for tick in panel.get_xticklines())
    if call == "draw_reliability":
        assert abs(brightness(figure.axes[0].collections[0].get_edgecolor()[0]) - paper) > 0.5
    if call == "draw_intervals":
        assert abs(brightness(figure.axes[0].lines[0].get_color()) - paper) > 0.5


def brightness(colour: Any) -> float:
    return sum(to_rgb(colour)) / 3


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
