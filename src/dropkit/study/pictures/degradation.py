"""Validation loss against the share of hidden units that is removed after training."""

from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.pictures.lines import draw_lines
from dropkit.study.pictures.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURE"]


def draw(findings: Findings) -> "Figure":
    """Draw one line a method."""
    figure, panel = draw_lines(findings, "degradation", label="validation loss")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("share of hidden units removed")
    return figure


PICTURE = Picture(
    name="degradation",
    title="When hidden units are removed after training",
    caption=(
        "Early-stopped confirmation models with a share of all hidden units, drawn at random, set to zero; the "
        "others are not rescaled. Means over models with their standard deviations. The flatter, the more gracefully a "
        "network degrades."
    ),
    draw=draw,
)
