"""A score against the strength of each method, from the selection, with the confirmation's winner on top."""

from collections.abc import Callable
from textwrap import fill
from typing import TYPE_CHECKING

from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS
from dropkit.study.pictures.picture import EARLY, LAST, MUTED, panels
from dropkit.study.records import Record, Scores
from dropkit.study.summary import Arm, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_against_strength"]


def draw_against_strength(findings: Findings, score: Callable[[Scores], float], label: str) -> "Figure":
    """Draw one panel a method: early-stopped and last-epoch scores, a dot a selection seed, and the mean as a line.

    Methods share their vertical axis. A baseline has its own: its scores may lie so far off that nothing of the
    methods could be seen.
    """
    summary = findings.summary
    names = [name for name in summary.grid if METHODS[name].symbol] or list(summary.plan.family)
    names.sort(key=lambda name: not METHODS[name].compared)
    baselines = [name for name in names if not METHODS[name].compared]
    figure, axes = panels(len(names), label=label, apart=len(baselines))
    for panel, name in zip(axes, names, strict=True):
        _draw_method(panel, summary, name, score)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _draw_method(panel: "Axes", summary: Summary, name: str, score: Callable[[Scores], float]) -> None:
    method = METHODS[name]
    kinds: tuple[tuple[str, str, Callable[[Record], float]], ...] = (
        ("last epoch", LAST, lambda record: score(record.last)),
        ("early stopped", EARLY, lambda record: score(record.early)),
    )
    for kind, paint, value in kinds:
        arms = [arm for arm in summary.grid[name] if arm.records]
        panel.plot([a.strength for a in arms], [a.spread(value).mean for a in arms], color=paint, label=kind)
        for arm in arms:
            panel.plot(
                [arm.strength] * len(arm.records), [value(r) for r in arm.records], "o", color=paint, ms=3.5, alpha=0.6
            )
        baseline = summary.grid["none"][0]
        if baseline.records:
            panel.axhline(
                baseline.spread(value).mean, color=paint, ls=(0, (4, 3)), lw=1.1, alpha=0.8, label=f"none, {kind}"
            )
        _draw_confirmed(panel, summary.arms.get(name), value, paint)
    panel.plot([], [], "D", color=MUTED, mfc="white", ms=6, label="confirmation, mean \N{PLUS-MINUS SIGN} deviation")
    if method.log_axis:
        from matplotlib.ticker import FixedLocator, NullLocator

        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator([arm.strength for arm in summary.grid[name]]))
        panel.xaxis.set_minor_locator(NullLocator())
    planned = summary.plan.strengths[name]  # those of a widening stand close to them: their ticks go without numbers
    strengths = [arm.strength for arm in summary.grid[name]]
    panel.set_xticks(strengths, [f"{strength:g}" if strength in planned else "" for strength in strengths])
    if len(strengths) > len(planned):
        panel.tick_params(axis="x", labelrotation=45)
    panel.set_xlabel("p (rate)" if name == "dropout" else method.symbol)
    panel.set_title(fill(method.title, 22) if method.compared else f"{method.title}\n(own vertical scale)")
    panel.margins(x=0.09)


def _draw_confirmed(panel: "Axes", arm: Arm | None, value: Callable[[Record], float], paint: str) -> None:
    if arm is None or not arm.records:
        return
    spread = arm.spread(value)
    panel.errorbar(
        arm.strength, spread.mean, spread.deviation, fmt="D", color=paint, mfc="white", ms=6, capsize=3, zorder=5
    )
