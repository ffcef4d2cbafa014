"""Training and validation loss after every epoch, for none and the frozen winners."""

from statistics import fmean, stdev
from textwrap import fill
from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS
from dropkit.study.pictures.picture import MUTED, Picture, colour, panels
from dropkit.study.summary import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURE"]

_TITLE = 22  # characters that fit over a panel


def draw(findings: Findings) -> "Figure":
    """Draw one panel a method, all on one scale."""
    arms = [arm for arm in findings.summary.arms.values() if arm.records and not _is_fitted(arm)]
    figure, axes = panels(max(len(arms), 1), label="loss")
    for panel, arm in zip(axes, arms, strict=False):
        _draw_arm(panel, arm)
    if arms:
        tallest = max(
            max(record.curves.validation_loss[len(record.curves.validation_loss) // 10 :])
            for arm in arms
            for record in arm.records
        )
        axes[0].set_ylim(0, tallest * 1.15)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _is_fitted(arm: Arm) -> bool:
    """Return whether the models have no epochs that could be drawn."""
    return METHODS[arm.method].recipe(arm.strength).is_linear


def _draw_arm(panel: "Axes", arm: Arm) -> None:
    paint = colour(arm.method)
    for name, style, label in (
        ("validation_loss", "-", "validation"),
        ("training_loss", (0, (4, 2)), "training, dropout off"),
    ):
        columns = list(zip(*(getattr(record.curves, name) for record in arm.records), strict=True))
        epochs = range(1, len(columns) + 1)
        means = [fmean(column) for column in columns]
        spread = [stdev(column) if len(column) > 1 else 0.0 for column in columns]
        low = [mean - width for mean, width in zip(means, spread, strict=True)]
        high = [mean + width for mean, width in zip(means, spread, strict=True)]
        panel.fill_between(epochs, low, high, color=paint, alpha=0.15, lw=0)
        panel.plot(epochs, means, color=paint, ls=style, label=label)
    stops = [record.curves.early_epoch for record in arm.records]
    losses = [record.early.validation_loss for record in arm.records]
    panel.plot(stops, losses, "o", color=paint, mfc="white", ms=4.5, label="where each seed stops early")
    panel.set_xlabel("epoch")
    method = METHODS[arm.method]
    title = fill(method.title, _TITLE)
    panel.set_title(f"{title}\n{method.label(arm.strength)}" if method.symbol else title)
    panel.tick_params(colors=MUTED)


PICTURE = Picture(
    name="learning_curves",
    title="Learning curves",
    caption=(
        "Mean over the confirmation seeds, with a band of one standard deviation. The circles are the epochs that the "
        "inner rows choose."
    ),
    draw=draw,
)
