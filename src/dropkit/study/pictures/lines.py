"""A measure of the confirmed models as a line a method."""

from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.pictures.picture import colour, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_lines"]


def draw_lines(findings: Findings, measure: str, label: str) -> "tuple[Figure, Axes]":
    """Draw the means over the models with their standard deviations, and name every line beside the panel."""
    figure, (panel,) = panels(1, label=label)
    for name, found in findings.measures[measure].items():
        mean, deviation = found.mean, found.deviation
        panel.errorbar(
            list(mean), list(mean.values()), list(deviation.values()), fmt="o-", ms=4, capsize=2, elinewidth=0.8,
            color=colour(name), label=findings.summary.arms[name].label, zorder=4 if name == "none" else 3,
        )  # fmt: skip
    figure.legend(loc="outside right upper")
    return figure, panel
