"""The variance of the mini-batch gradient against the batch size."""

from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.pictures.lines import draw_lines
from dropkit.study.pictures.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURE"]


def draw(findings: Findings) -> "Figure":
    """Draw one line a method, both axes logarithmic."""
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, panel = draw_lines(findings, "gradient_variance", label="trace of the gradient's covariance")
    panel.set_xscale("log")
    panel.set_yscale("log", nonpositive="mask")
    sizes = sorted({size for found in findings.measures["gradient_variance"].values() for size in found.mean})
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
    panel.set_xlabel("rows a batch")
    return figure


PICTURE = Picture(
    name="gradient_variance",
    title="How much the gradient varies",
    caption=(
        "Trace of the covariance of the mini-batch gradient at the early-stopped weights, with each method's own "
        "noise, over fresh training rows. Both axes are logarithmic; means over models with their standard "
        "deviations. More noise is no merit and no fault by itself."
    ),
    draw=draw,
)
