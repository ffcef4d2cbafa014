"""Everything that a finished study found, for tables, pictures, files and the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dropkit.study.cautions import cautions
from dropkit.study.dataset import Dataset
from dropkit.study.measures import Measured
from dropkit.study.measures.taking import take_measures
from dropkit.study.own import OwnNetwork
from dropkit.study.stability import Stability, stability
from dropkit.study.storage import RunFolder
from dropkit.study.summary import Summary, summarise
from dropkit.study.test_rows import OnTestRows, SavedOnTestRows, score_test_rows
from dropkit.study.verdict import Verdict

__all__ = ["Findings", "find"]


@dataclass(frozen=True)
class Findings:
    """A finished study.

    Args:
        summary: What was measured.
        stability: The advice, from the confirmation alone, and what it would be without each confirmation seed.
        cautions: What a reader should know beside it.
        test_rows: Each recommended method against none on the test rows, or the leader where none is recommended.
        seconds: Training time of each pack.
        columns: Pairs of a column of the data and how it was used or why it was left out.
        measures: What was measured on confirmed models beside their scores, by measure and method.
        saved: The saved model on the test rows; None where there is none.
    """

    summary: Summary
    stability: Stability
    cautions: tuple[str, ...]
    test_rows: tuple[OnTestRows, ...]
    seconds: Mapping[str, float]
    columns: tuple[tuple[str, str], ...] = ()
    measures: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    saved: SavedOnTestRows | None = None

    @property
    def verdict(self) -> Verdict:
        """The advice."""
        return self.stability.verdict


def find(
    folder: RunFolder, data: Dataset, network: OwnNetwork | None = None, step: Callable[[], None] = lambda: None
) -> Findings:
    """Summarise and judge a study whose packs have all trained, then use the test rows; `step` is called after each."""
    summary = summarise(folder.plan, folder.records().values())
    advice = stability(summary)
    verdict = advice.verdict
    candidates = verdict.recommended or ((verdict.leader,) if verdict.leader else ())
    test_rows, saved = score_test_rows(folder, data, summary, candidates, verdict.saved, network)
    step()
    return Findings(
        summary=summary,
        stability=advice,
        cautions=(*data.warnings, *cautions(summary)),
        test_rows=test_rows,
        seconds=folder.seconds(),
        columns=data.description,
        measures=take_measures(folder, data, summary, step) if network is None else {},  # they know our networks alone
        saved=saved,
    )
