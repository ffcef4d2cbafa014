"""The mean absolute correlation between hidden units, a panel a layer."""

from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.pictures.picture import Picture, colour, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURE"]


def draw(findings: Findings) -> "Figure":
    """Draw one panel a hidden layer, with a row a method: a dot a model and a diamond for their mean."""
    found = findings.measures["co_adaptation"]
    layers = sorted({layer for measured in found.values() for layer in measured.mean}) or [1.0]
    figure, axes = panels(len(layers), height=1.1 + 0.42 * len(found))
    for panel, layer in zip(axes, layers, strict=True):
        for row, (name, measured) in enumerate(found.items()):
            values = [values.at.get(layer, float("nan")) for values in measured.models]
            panel.plot(values, [row] * len(values), "o", color=colour(name), ms=5, alpha=0.55, mew=0)
            if layer in measured.mean:
                panel.plot(measured.mean[layer], row, "D", color=colour(name), mfc="white", ms=7, zorder=5)
        panel.set_title(f"hidden layer {layer:g}")
        panel.set_xlim(left=0)
        panel.set_xlabel("mean absolute correlation")
        panel.grid(visible=True, axis="x")
        panel.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(found)), [findings.summary.arms[name].label for name in found])
    axes[0].set_ylim(len(found) - 0.5, -0.5)
    return figure


PICTURE = Picture(
    name="co_adaptation",
    title="How alike the hidden units are",
    caption=(
        "Mean absolute correlation between two hidden units of a layer over the validation rows, dropout off: a dot an "
        "early-stopped confirmation model, the diamond their mean. Units that never vary are left out."
    ),
    draw=draw,
)
