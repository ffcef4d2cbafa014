"""Few confirmation seeds: the advice may hang on one of them."""

from dropkit.study.stability import stability
from dropkit.study.summary import Summary
from dropkit.study.verdict import FEW_SEEDS

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Warn of few confirmation seeds, with how often the advice changes without one of them."""
    seeds = summary.plan.budget.confirmation_seeds
    if seeds >= FEW_SEEDS:
        return []
    measured = stability(summary).sentence or "What it would be without one of them cannot be told."
    return [f"The advice rests on {seeds} confirmation seeds, fewer than {FEW_SEEDS}. {measured}"]
