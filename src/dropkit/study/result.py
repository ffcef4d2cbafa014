"""What `dropkit.study.run` returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dropkit._checks import Choice
from dropkit.errors import ArgumentError
from dropkit.study.findings import Findings
from dropkit.study.pictures import PICTURES, figure
from dropkit.study.records import Record
from dropkit.study.report import notebook_html
from dropkit.study.table import notes, table_text
from dropkit.study.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result"]

_WIDTH = 120  # of the table as text


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
        return "\n".join((table_text(self.findings, _WIDTH), *notes(self.findings, _WIDTH)))

    def plot(self, name: str | None = None) -> "Figure":
        """Draw a picture of the report.

        Args:
            name: Which one: `"differences"`, `"loss_against_rate"`, `"gap_against_rate"`, `"learning_curves"`,
                `"degradation"`, `"co_adaptation"` or `"gradient_variance"`. Default: the first.

        Returns:
            A Matplotlib figure, to show in a notebook or to save with `savefig`.

        Raises:
            ArgumentError: There is no picture of that name, no method was confirmed, so that there is none at all, or
                no network of the study could be measured so.

        Examples:
            >>> import tempfile
            >>> import numpy as np
            >>> from dropkit import study
            >>> rng = np.random.default_rng(0)
            >>> inputs = rng.normal(size=(300, 2))
            >>> toy = study.Dataset("toy", "Toy points", inputs, (inputs[:, 0] > rng.normal(size=300)).astype(int))
            >>> tiny = study.Budget("tiny", hidden=(8,), epochs=2, test_rows=50, train_rows=120, inner_rows=40,
            ...                     validation_rows=90, confirmation_seeds=3)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result = study.run(toy, budget=tiny, methods=["dropout"], rates=[0.2, 0.5], directory=folder + "/t")
            >>> [panel.get_title("left") for panel in result.plot("loss_against_rate").axes]
            ['dropout']
        """
        pictures = {picture.name: picture for picture in PICTURES}
        chosen = PICTURES[0].name if name is None else Choice(tuple(pictures)).check("Result.plot", "name", name)
        if not self.findings.summary.comparisons:
            raise ArgumentError("Result.plot: no method was confirmed against none, so there is nothing to draw")
        if not pictures[chosen].is_drawn(self.findings):
            remedy = "Name another picture."
            raise ArgumentError(f"Result.plot: no network of this study has a {chosen!r} to draw. {remedy}")
        return figure(pictures[chosen], self.findings)

    @property
    def _head(self) -> str:
        plan = self.findings.summary.plan
        return f"Study of {plan.data['title']}, {len(self.trials)} trials, seed {plan.seed}"

    def __repr__(self) -> str:
        return "\n".join((self._head, self.verdict.sentence, f"Report: {self.report}"))

    def _repr_html_(self) -> str:
        return notebook_html(self.findings, self._head, self.report)
