"""What `dropkit.study.run` returns."""

from dataclasses import dataclass
from pathlib import Path

from dropkit.study.findings import Findings
from dropkit.study.records import Record
from dropkit.study.table import notes, table_text
from dropkit.study.verdict import Verdict

__all__ = ["Result"]


@dataclass(frozen=True, repr=False)
class Result:
    """A finished study.

    Args:
        directory: The run directory with the report and the result files.
        findings: Everything that was found, for further work.
    """

    directory: Path
    findings: Findings

    @property
    def verdict(self) -> Verdict:
        """The advice; `verdict.sentence` is the one to read."""
        return self.findings.verdict

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to know before trusting the advice, in words."""
        return self.findings.cautions

    @property
    def trials(self) -> tuple[Record, ...]:
        """Every trial that ran, in the order of results.csv, with its learning curves."""
        return self.findings.summary.records

    @property
    def report(self) -> Path:
        """The report: one HTML file that opens offline."""
        return self.directory / "report.html"

    def table(self) -> str:
        """Return the table of methods as text."""
        return "\n".join((table_text(self.findings), *notes(self.findings)))

    def __repr__(self) -> str:
        plan = self.findings.summary.plan
        head = f"Study of {plan.data['title']}, {len(self.trials)} trials, seed {plan.seed}"
        return "\n".join((head, self.verdict.sentence, f"Report: {self.report}"))
