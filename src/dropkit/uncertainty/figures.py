"""Figures of uncertainty: each is one call, and a Matplotlib figure that belongs to no window."""

from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from dropkit._checks import Integer, require
from dropkit._look import FIRST, LOOK, MUTED, SECOND
from dropkit.uncertainty.metrics.calibration import BINNING, BINS, top_label_bins
from dropkit.uncertainty.metrics.inputs import Array, numbers, plain, rows_of, same_shape
from dropkit.uncertainty.metrics.intervals import LEVEL, intervals_of, scores_of
from dropkit.uncertainty.metrics.out_of_distribution import detection, scores_and_origins
from dropkit.uncertainty.metrics.selective import curve_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_detection", "draw_entropies", "draw_intervals", "draw_reliability", "draw_risk_coverage"]

_GROUPS = Integer(1, 10**4, "[1, 10**4]")
_NARROW = 0.012  # width of a bar of confidences, about 4 pt
_VECTORS = 3_000  # intervals that are lines in a file of vectors; more are an image in it
_DARK_GRID = "#374151"
_P = ParamSpec("_P")


def _drawn(draw: "Callable[_P, Figure]") -> "Callable[_P, Figure]":
    """Draw with the look of all figures, or say how to install what draws."""

    @wraps(draw)
    def with_look(*args: _P.args, **kwargs: _P.kwargs) -> "Figure":
        mpl = require("matplotlib", "uncertainty", "Drawing")
        with mpl.rc_context(LOOK | _dark_style(mpl.rcParams)):
            return draw(*args, **kwargs)

    return with_look


def _dark_style(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return what stays of settings whose text is light: figures are saved on the background that these ask for."""
    from matplotlib.colors import to_rgb

    if sum(to_rgb(settings["text.color"])) < 1.5:
        return {}
    kept = ("figure.facecolor", "axes.facecolor", "text.color", "axes.titlecolor", "axes.labelcolor", "axes.edgecolor")
    ticks = {f"{axis}tick.color": settings["text.color"] for axis in "xy"}
    return {name: settings[name] for name in kept} | ticks | {"grid.color": _DARK_GRID}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _inks() -> tuple[Any, Any]:
    """Return the colours of text and of the paper below it."""
    import matplotlib as mpl

    return mpl.rcParams["text.color"], mpl.rcParams["axes.facecolor"]


def _edges(values: Array, bins: int) -> Array:
    """Return the edges of bins of equal width, around numbers that are equal up to rounding."""
    low, high = values.min(), values.max()
    size = max(abs(low), abs(high))
    if high / 2 - low / 2 <= 1e-9 * size:
        margin = size / 2 or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, bins + 1)


def _histogram(panel: "Axes", groups: dict[str, Array], bins: int) -> None:
    """Draw the share of each group's rows in bins that all groups have in common."""
    edges = _edges(np.concatenate(list(groups.values())), bins)
    for (name, values), paint in zip(groups.items(), (FIRST, SECOND), strict=True):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        panel.bar(
            edges[:-1], shares, np.diff(edges), align="edge", color=paint, alpha=0.55, label=f"{name} ({len(values):,})"
        )
    panel.set_ylabel("share of rows")
    panel.legend()


@_drawn
def draw_reliability(
    probabilities: Any, labels: Any, *, bins: int = 15, binning: str = "equal_width", level: float = 0.95
) -> "Figure":
    """Draw a reliability diagram: the accuracy at each confidence, and how often each confidence is stated.

    Bars are the accuracy of each bin, and hatched ones its gap to the mean confidence. A dot at that confidence shows
    bins, too, that are too narrow for a bar. The vertical lines on the diagonal are consistency bars: where the
    accuracy of a bin with as many rows would lie if its mean confidence were right. The expected calibration error is
    in the title. It needs Matplotlib and SciPy.

    Args:
        probabilities: Of shape (rows, classes), a tensor or an array; each row sums to 1. One column is the probability
            of the second of two classes.
        labels: The true classes, integers from 0, of shape (rows,).
        bins: How many, in ``[1, 10**6]``. Default: 15.
        binning: ``"equal_width"``, or ``"equal_mass"`` for bins of about equally many rows. Default: ``"equal_width"``.
        level: Of the consistency bars, in (0, 1). Default: 0.95.

    Returns:
        The figure; ``figure.savefig("reliability.svg")`` saves it.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If a package is missing.

    Examples:
        >>> from dropkit import uncertainty
        >>> figure = uncertainty.draw_reliability([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]], [0, 1, 1], bins=10)
        >>> figure.axes[0].get_title("left")
        'expected calibration error 0.367'

    References:
        Bröcker and Smith (2007), "Increasing the reliability of reliability diagrams", of consistency bars, which are
        resampled there. Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", figure 1.
    """
    where = "draw_reliability"
    bins, binning = BINS.check(where, "bins", bins), BINNING.check(where, "binning", binning)
    level = LEVEL.check(where, "level", plain(level))
    require("scipy", "uncertainty", "A reliability diagram")
    from scipy import stats

    top = top_label_bins(*rows_of(where, probabilities, labels), bins, binning)
    is_full = top.counts > 0
    left, width = top.edges[:-1][is_full], np.diff(top.edges)[is_full]
    counts, confidence, accuracy = top.counts[is_full], top.confidence[is_full], top.accuracy[is_full]
    low, high = (end / counts for end in stats.binom.interval(level, counts, confidence))

    figure = _figure(5, 6)
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ink, paper = _inks()
    edge = np.where(width >= _NARROW, 0.8, 0.0)  # else it hides the bar
    outline: Any = {"align": "edge", "edgecolor": paper, "linewidth": edge}
    dots: Any = {"marker": "o", "markersize": 4.5, "markeredgecolor": paper, "markeredgewidth": 0.7}
    dots |= {"linestyle": "none", "clip_on": False, "zorder": 4}
    panel.bar(left, accuracy, width, color=FIRST, alpha=0.8, label="accuracy", **outline)
    panel.bar(
        left, confidence - accuracy, width, accuracy, align="edge", color="none", edgecolor=SECOND, hatch="///",
        linewidth=edge, label="gap to the confidence",
    )  # fmt: skip
    stroke = min(1.2, 48 / len(counts))  # many bins lie close together
    panel.vlines(confidence, low, high, color=ink, linewidth=stroke, label=f"{100 * level:g} % of calibrated bins")
    panel.plot(confidence, accuracy, color=FIRST, label="accuracy at the mean confidence", **dots)
    panel.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1)
    panel.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    panel.set_title(f"expected calibration error {(top.share * top.gap).sum():.3f}")
    below.bar(left, top.share[is_full], width, color=MUTED, alpha=0.6, **outline)
    below.plot(confidence, top.share[is_full], color=MUTED, **dots)
    below.axvline(float(top.share[is_full] @ confidence), color=SECOND, label="mean confidence")
    below.axvline(float(top.share[is_full] @ accuracy), color=FIRST, label="mean accuracy")
    below.set(xlabel="confidence", ylabel="share of rows")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@_drawn
def draw_risk_coverage(uncertainty: Any, losses: Any) -> "Figure":
    """Draw the risk-coverage curve: the mean loss of the surest rows, whatever their share. It needs Matplotlib.

    Beside it are the curve of the best order, and that of a random one, which is flat.

    Args:
        uncertainty: A score a row, higher for the less certain, of shape (rows,), a tensor or an array.
        losses: What each row's answer costs, 0 or more, of shape (rows,), such as whether it is wrong.

    Returns:
        The figure; ``figure.savefig("risk_coverage.svg")`` saves it.

    Raises:
        ArgumentError: If a number is not finite, a loss is negative, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If Matplotlib is missing.

    Examples:
        >>> from dropkit import uncertainty
        >>> figure = uncertainty.draw_risk_coverage([0.1, 0.2, 0.7, 0.9], [False, True, False, True])
        >>> figure.axes[0].get_title("left")
        'area 0.333, excess 0.125'
    """
    curve = curve_of("draw_risk_coverage", uncertainty, losses)
    figure = _figure(5, 4)
    panel = figure.subplots()
    whole: Any = {"clip_on": False}  # also along the edges, as of a model without errors
    whole["marker"] = "o" if len(curve.coverage) == 1 else ""  # a dot, no line
    panel.plot(curve.coverage, curve.risk, color=FIRST, label="in this order", zorder=4, **whole)
    panel.plot(curve.coverage, curve.best, color=SECOND, label="in the best order", zorder=3, **whole)
    panel.axhline(float(curve.risk[-1]), color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1, label="in random order")
    panel.set(xlim=(0, 1), xlabel="coverage: share of rows answered", ylabel="risk: mean loss of those")
    panel.set_ylim(bottom=0)
    panel.set_title(f"area {curve.area:.3f}, excess {curve.excess:.3f}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@_drawn
def draw_detection(inside: Any, outside: Any, *, bins: int = 40) -> "Figure":
    """Draw how a score tells inputs from elsewhere: its histograms, and the ROC curve. It needs scikit-learn, too.

    Args:
        inside: Scores of inputs like those that the model was trained on, higher for the less certain, of shape
            (rows,), a tensor or an array.
        outside: Scores of inputs from elsewhere, of shape (other rows,).
        bins: Of the histograms, in ``[1, 10**4]``. Default: 40.

    Returns:
        The figure; ``figure.savefig("detection.svg")`` saves it.

    Raises:
        ArgumentError: If a score is not finite, there is none, or there is more than one axis.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If a package is missing.

    Examples:
        >>> from dropkit import uncertainty
        >>> figure = uncertainty.draw_detection(inside=[0.1, 0.2, 0.3, 0.6], outside=[0.5, 0.9])
        >>> figure.axes[1].get_title("left")
        'AUROC 0.875'
    """
    where = "draw_detection"
    bins = _GROUPS.check(where, "bins", bins)
    scores, is_outside = scores_and_origins(where, inside, outside)
    found = detection(scores[is_outside == 0], scores[is_outside == 1])
    from sklearn import metrics

    wrongly, rightly, _ = metrics.roc_curve(is_outside, scores)
    figure = _figure(10, 4)
    panel, curve = figure.subplots(1, 2, width_ratios=(3, 2))
    _histogram(panel, {"inside": scores[is_outside == 0], "outside": scores[is_outside == 1]}, bins)
    panel.set(xlabel="score", title="scores")
    curve.plot(wrongly, rightly, color=FIRST)
    curve.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1)
    curve.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of inside flagged", ylabel="share of outside found")
    curve.set_title(f"AUROC {found.auroc:.3f}")
    return figure


@_drawn
def draw_intervals(lower: Any, upper: Any, targets: Any, *, level: float, mean: Any = None) -> "Figure":
    """Draw prediction intervals in the order of the predictions, with the targets. It needs Matplotlib.

    Targets outside their interval stand out, and coverage and mean width are in the title.

    Args:
        lower: Lower ends, of shape (rows,), a tensor or an array.
        upper: Upper ends, of the same shape, nowhere below the lower ones.
        targets: What came true, of the same shape.
        level: The share that the intervals should hold, in (0, 1).
        mean: The predictions, of the same shape. Default: the middles of the intervals.

    Returns:
        The figure; ``figure.savefig("intervals.svg")`` saves it.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If Matplotlib is missing.

    Examples:
        >>> from dropkit import uncertainty
        >>> figure = uncertainty.draw_intervals([0.0, 0.0], [1.0, 2.0], [0.5, 2.1], level=0.9)
        >>> figure.axes[0].get_title("left")
        '90 % intervals: coverage 50.0 %, mean width 1.5'
    """
    where = "draw_intervals"
    level = LEVEL.check(where, "level", plain(level))
    numbers(where, "lower", lower, rank=1)
    low, high, true = intervals_of(where, lower, upper, targets)
    found = scores_of(low, high, true, level)
    middle = (low + high) / 2 if mean is None else same_shape(where, "mean", mean, "lower", low.shape)
    order = np.argsort(middle, kind="stable")
    low, high, true, middle = low[order], high[order], true[order], middle[order]
    places, is_out = np.arange(len(low)), (true < low) | (true > high)

    from matplotlib.lines import Line2D

    figure = _figure(8, 4)
    panel = figure.subplots()
    width = max(0.5, min(6.0, 300 / len(low)))
    is_large = len(low) > _VECTORS
    panel.vlines(places, low, high, color=MUTED, alpha=0.45, linewidth=width, label="interval", rasterized=is_large)
    panel.plot(places, middle, color=_inks()[0], linewidth=1, label="prediction", zorder=3)
    dot = min(1.0, (300 / len(low)) ** 0.5)  # many rows lie close together
    for rows, paint, size, side in ((~is_out, FIRST, 4, "inside"), (is_out, SECOND, 5, "outside")):
        panel.plot(
            places[rows], true[rows], "o", color=paint, markeredgewidth=0, markersize=size * dot, rasterized=is_large,
            label=f"target {side}",
        )  # fmt: skip
    panel.set(xlabel="rows in the order of their predictions", ylabel="target")
    title = f"{100 * level:.4g} % intervals: coverage {100 * found.coverage:.1f} %, mean width {found.width:.4g}"
    panel.set_title(title)
    legend = figure.legend(loc="outside lower center", ncols=4)  # whose samples are seen however many rows there are
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        if isinstance(handle, Line2D) and handle.get_marker() == "o":
            handle.set_markersize(5)
        elif isinstance(handle, Line2D) and text.get_text() == "interval":
            handle.set_linewidth(max(width, 4.0))
    return figure


@_drawn
def draw_entropies(probabilities: Any, labels: Any, *, bins: int = 30) -> "Figure":
    """Draw the entropy of right predictions beside that of wrong ones. It needs Matplotlib.

    The further the histograms are apart, the more errors the entropy gives away.

    Args:
        probabilities: Of shape (rows, classes), a tensor or an array; each row sums to 1. One column is the probability
            of the second of two classes.
        labels: The true classes, integers from 0, of shape (rows,).
        bins: Of the histograms, in ``[1, 10**4]``. Default: 30.

    Returns:
        The figure; ``figure.savefig("entropies.svg")`` saves it.

    Raises:
        ArgumentError: If a number is out of its range, or a shape does not fit.
        ArgumentTypeError: If an argument is of another type.
        MissingDependencyError: If Matplotlib is missing.

    Examples:
        >>> from dropkit import uncertainty
        >>> figure = uncertainty.draw_entropies([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [0, 1, 1])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['right (2)', 'wrong (1)']
    """
    where = "draw_entropies"
    bins = _GROUPS.check(where, "bins", bins)
    found, classes = rows_of(where, probabilities, labels)
    entropy = -(found * np.log(np.where(found > 0, found, 1))).sum(1)
    is_right = found.argmax(1) == classes
    figure = _figure(6, 4)
    panel = figure.subplots()
    _histogram(panel, {"right": entropy[is_right], "wrong": entropy[~is_right]}, bins)
    panel.set(xlabel="entropy of the prediction, in nats", title=f"accuracy {is_right.mean():.3f}")
    return figure
