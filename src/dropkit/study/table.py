"""The table of a study: one row a method, the confirmation's means and what the test says."""

from collections.abc import Sequence
from math import nan
from statistics import fmean
from typing import Literal

from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS
from dropkit.study.metrics import Metric, metrics_of
from dropkit.study.records import Record
from dropkit.study.summary import early_loss, last_loss
from dropkit.study.wording import joined, loss_name, number, signed

__all__ = ["HEADINGS", "headings", "notes", "rich_table", "table_rows", "table_text"]

HEADINGS = (
    "method",
    "strength",
    "loss early stopped",
    "minus none",
    "p (Holm)",
    "smallest effect",
    "loss at last epoch",
    "minus none early",
    "gap at last epoch",
)
_GAP = HEADINGS[8]
_WIDE = 92  # columns of a console that has room for deviations and the gap
_WIDEST = 114  # and for every metric
_DASH = "\N{EN DASH}"


def headings(findings: Findings) -> tuple[str, ...]:
    """Return the headings: the common ones, then the metrics of the task."""
    return (*HEADINGS, *(metric.title for metric in _metrics(findings)))


def _metrics(findings: Findings, width: int = _WIDEST) -> tuple[Metric, ...]:
    """Return the metrics that a console of that width has room for."""
    found = metrics_of(findings.summary.plan.data["task"])
    return found if width >= _WIDEST else found[:1]


def notes(findings: Findings, width: int = _WIDEST) -> tuple[str, ...]:
    """Return what the columns mean, of the table on a console of that width."""
    data = findings.summary.plan.data
    loss, metrics = loss_name(data), _metrics(findings, width)
    titles = joined([f"{m.title} in the target's units" if m.in_target_units else m.title for m in metrics])
    spread = " \N{PLUS-MINUS SIGN} standard deviation" if width >= _WIDE else " (deviations and gaps: see the report)"
    return (
        f"Means over confirmation seeds{spread}; validation {loss}, lower is better.",
        "p: corrected resampled t-test of the early-stopped loss against none, after Holm; the only test here.",
        "Smallest effect: what these seeds detect with 80 % power, approximately.",
        f"{titles[:1].upper()}{titles[1:]}: of the validation rows, early stopped.",
    )


def table_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Return the cells, a tuple a method, in the order of `headings`."""
    rows, metrics = [], _metrics(findings)
    for name in findings.summary.plan.strengths:
        method, arm = METHODS[name], findings.summary.arms.get(name)
        if arm is None or not arm.records:
            rows.append((_name(name), "diverged", *[_DASH] * (len(HEADINGS) - 2 + len(metrics))))
            continue
        early, last = arm.spread(early_loss), arm.spread(last_loss)
        gap = arm.spread(lambda record: record.last.gap)
        comparison = findings.summary.comparisons.get(name)
        compared = [_DASH] * 4
        if comparison is not None:
            p = comparison.p_value
            compared = [
                signed(comparison.difference),
                "< 0.001" if p < 0.001 else number(p),
                number(comparison.smallest_effect),
                signed(comparison.last_against_early),
            ]
        elif name == "none":
            compared[3] = signed(last.mean - early.mean)
        rows.append(
            (
                _name(name),
                method.label(arm.strength) or _DASH,
                f"{number(early.mean)} \N{PLUS-MINUS SIGN} {number(early.deviation)}",
                *compared[:3],
                number(last.mean),
                compared[3],
                number(gap.mean),
                *(metric.written(_mean(arm.records, metric)) for metric in metrics),
            )
        )
    return rows


def _mean(records: Sequence[Record], metric: Metric) -> float:
    return fmean(record.early.metrics.get(metric.name, nan) for record in records)


def _name(method: str) -> str:
    return method.replace("_", " ")


def table_text(findings: Findings, width: int = 100) -> str:
    """Return the table as plain text."""
    import io

    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(rich_table(findings, width))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def rich_table(findings: Findings, width: int) -> object:
    """Return the table for a rich console; on a narrow one without deviations and gap, and with one metric."""
    from rich import box
    from rich.table import Table

    narrow = width < _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, header_style="bold")
    left_out = len(_metrics(findings)) - len(_metrics(findings, width))
    shown_headings = headings(findings)[: -left_out or None]
    for heading in shown_headings:
        if not (narrow and heading == _GAP):
            side: Literal["left", "right"] = "left" if heading in HEADINGS[:2] else "right"
            table.add_column(heading.replace(" ", "\n"), justify=side, no_wrap=True)
    for name, cells in zip(findings.summary.plan.strengths, table_rows(findings), strict=True):
        shown = [cell.split(" \N{PLUS-MINUS SIGN}")[0] for cell in cells] if narrow else list(cells)
        shown = shown[: len(shown_headings)]
        if narrow:
            del shown[HEADINGS.index(_GAP)]
        table.add_row(*shown, style="bold green" if name in findings.verdict.recommended else None)
    return table
