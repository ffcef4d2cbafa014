"""Few confirmation seeds: the advice may hang on one of them."""

from dropkit.study.stability import stability
from dropkit.study.summary import Summary

__all__ = ["check"]

_FEW = 8


def check(summary: Summary) -> list[str]:
    """Warn of few confirmation seeds, with how often the advice changes without one of them."""
    seeds = summary.plan.budget.confirmation_seeds
    if seeds >= _FEW:
        return []
    measured = stability(summary).sentence or "What it would be without one of them cannot be told."
    return [f"The advice rests on {seeds} confirmation seeds, fewer than {_FEW}. {measured}"]
