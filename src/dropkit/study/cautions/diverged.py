"""Runs whose loss became NaN or infinite."""

from dropkit.study.methods import METHODS
from dropkit.study.summary import Summary

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Name every run that diverged, and what became of its method."""
    texts = []
    for method in summary.plan.strengths:
        runs = [record for record in summary.records if record.trial.method == method and record.diverged]
        if not runs:
            continue
        shown = ", ".join(
            f"{METHODS[method].label(run.strength) or 'none'}, {run.trial.phase} seed {run.trial.seed}, epoch "
            f"{run.diverged_at}"
            for run in runs[:3]
        )
        more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
        texts.append(
            f"The loss became NaN or infinite in {len(runs)} runs of {METHODS[method].title} ({shown}{more}). "
            + ("Strengths that diverged were not chosen." if method in summary.comparisons else "It was not compared.")
        )
    return texts
