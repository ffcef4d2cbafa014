"""The findings as HTML: the report, one file with everything inside, and its essence for a notebook."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dropkit import __version__
from dropkit.study._atomic import write_atomic
from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS
from dropkit.study.pictures import PICTURES, svg
from dropkit.study.plan import Plan
from dropkit.study.statements import statement_on_test_rows, statements
from dropkit.study.summary import Summary
from dropkit.study.table import headings, notes, table_rows
from dropkit.study.verdict import CANNOT_TELL, HELPS, NOTHING, TIE
from dropkit.study.wording import joined, loss_name

__all__ = ["notebook_html", "report_html", "write_report"]

_BADGES = {HELPS: "Regularise", TIE: "A tie", NOTHING: "Nothing to gain", CANNOT_TELL: "Cannot tell"}


def write_report(path: Path, findings: Findings) -> None:
    """Write the report."""
    write_atomic(path, report_html(findings))


def report_html(findings: Findings) -> str:
    """Return the report as a page that needs nothing from elsewhere: no script, no font, no link that is fetched."""
    return _filled(
        "report.html.j2",
        findings,
        badge=_BADGES[findings.verdict.kind],
        kind=findings.verdict.kind.replace(" ", "-"),
        plan=findings.summary.plan,
        statements=statements(findings),
        check=statement_on_test_rows(findings),
        pictures=[(picture, svg(picture, findings)) for picture in PICTURES if picture.is_drawn(findings)],
        settings=_settings(findings),
        version=__version__,
    )


def notebook_html(findings: Findings, head: str, report: Path) -> str:
    """Return the advice, the table of methods and the cautions as an element to stand in a notebook, without a script.

    Args:
        findings: The findings.
        head: What study it is.
        report: Where the whole report lies.
    """
    return _filled("result.html.j2", findings, head=head, report=report)


def _filled(template: str, findings: Findings, **values: Any) -> str:
    """Fill a template, which may show the table of methods; whatever is not HTML of our own is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dropkit", "study"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    recommended = [name in findings.verdict.recommended for name in findings.summary.plan.strengths]
    return environment.get_template(template).render(
        findings=findings,
        headings=headings(findings),
        rows=list(zip(table_rows(findings), recommended, strict=True)),
        notes=notes(findings),
        **values,
    )


def _inputs(data: Mapping[str, Any]) -> str:
    return f"{data['columns']} inputs" if data["columns"] else "loaded by your own function"


def _predicted(data: Mapping[str, Any]) -> str:
    return f"{data['classes']} classes" if data["classes"] else "a number to predict"


def _tried(summary: Summary, method: str) -> str:
    """Return the strengths of a method, those apart that it got once its best was known."""
    planned = summary.plan.strengths[method]
    extra = [arm.strength for arm in summary.grid[method] if arm.strength not in planned]
    listed = ", ".join(f"{strength:g}" for strength in planned)
    return f"{listed}; then {joined([f'{strength:g}' for strength in extra])}" if extra else listed


def _network(plan: Plan) -> str:
    if plan.network:
        unfit = [method for method in METHODS.values() if not method.fits_any_network and not method.on_request]
        others = joined([method.title for method in unfit])
        return f"{plan.architecture}; {others} are for the study's own networks alone"
    return f"{plan.architecture}, ReLU, dropout after every hidden layer"


def _settings(findings: Findings) -> list[tuple[str, Any]]:
    plan, budget = findings.summary.plan, findings.summary.plan.budget
    grids = [
        (f"{METHODS[name].title}, {METHODS[name].symbol} tried", _tried(findings.summary, name))
        for name in plan.strengths
        if METHODS[name].symbol
    ]
    return [
        ("Data", plan.data["title"]),
        ("Shape", f"{plan.data['rows']:,} rows, {_inputs(plan.data)}, {_predicted(plan.data)}"),
        (
            "Rows a seed",
            f"{budget.train_rows:,} train, {budget.inner_rows:,} choose the epoch, {budget.validation_rows:,} validate",
        ),
        ("Test rows", f"{budget.test_rows:,}, set aside first"),
        ("Network", f"{_network(plan)}, {loss_name(plan.data)}"),
        ("Optimiser", f"Adam, learning rate {budget.learning_rate:g}, batches of {budget.batch_size}"),
        ("Epochs", budget.epochs),
        *grids,
        ("Seeds", f"{budget.selection_seeds} for selection, {budget.confirmation_seeds} fresh ones for confirmation"),
        ("Study seed", plan.seed),
        ("Budget", f"{budget.name}; it leaves out {budget.leaves_out}" if budget.leaves_out else budget.name),
        *([("Fitted to its time", budget.fitted)] if budget.fitted else []),
        ("Training time", f"{sum(findings.seconds.values()):.0f} s for {len(findings.summary.records)} models"),
        ("Plan", f"SHA-256 {plan.checksum[:16]}\N{HORIZONTAL ELLIPSIS}, frozen before the first model trained"),
    ]
