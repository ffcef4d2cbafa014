"""Each confirmation seed's difference to none, with the mean and what could have been detected."""

from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.pictures.picture import Picture, colour, panels
from dropkit.study.summary import early_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURE"]


def draw(findings: Findings) -> "Figure":
    """Draw one row a method."""
    summary = findings.summary
    figure, (panel,) = panels(1, height=1.1 + 0.6 * len(summary.comparisons))
    none = {record.trial.seed: early_loss(record) for record in summary.none.records}
    for row, comparison in enumerate(summary.comparisons.values()):
        arm = summary.arms[comparison.method]
        values = [early_loss(record) - none[record.trial.seed] for record in arm.records]
        reach = comparison.smallest_effect
        panel.barh(row, 2 * reach, left=-reach, height=0.5, color="#e5e7eb", zorder=0)
        panel.plot(values, [row] * len(values), "o", color=colour(arm.method), ms=5, alpha=0.55, mew=0)
        mean, error, paint = comparison.difference, comparison.standard_error, colour(arm.method)
        panel.errorbar(mean, row, xerr=error, fmt="D", color=paint, mfc="white", ms=7, capsize=4, zorder=5)
    panel.axvline(0, color="#374151", lw=1)
    panel.set_yticks(range(len(summary.comparisons)), [summary.arms[name].label for name in summary.comparisons])
    panel.set_ylim(len(summary.comparisons) - 0.5, -0.5)
    panel.grid(visible=False)
    panel.set_xlabel("early-stopped validation loss minus that of none (left of 0 is better)")
    return figure


PICTURE = Picture(
    name="differences",
    title="The comparison that decides",
    caption=(
        "A dot a confirmation seed; the diamond is their mean, with its corrected standard error. The grey bar spans "
        "the differences that this many seeds would have missed one time in five or more."
    ),
    draw=draw,
)
