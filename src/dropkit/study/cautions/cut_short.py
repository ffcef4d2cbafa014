"""Training that ends before early stopping would have ended it: more epochs may change the advice."""

from dropkit.study.summary import Arm, Summary
from dropkit.study.verdict import judge
from dropkit.study.wording import joined

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Warn where most seeds of what is recommended stop early within the last tenth of the epochs.

    Where nothing is recommended, that is the leader and no regularisation.
    """
    verdict, epochs = judge(summary), summary.plan.budget.epochs
    names = verdict.recommended or [name for name in (verdict.leader, "none") if name]
    first = epochs * 9 // 10 + 1
    late = {summary.arms[name].label: _late(summary.arms[name], first) for name in names}
    seeds = summary.plan.budget.confirmation_seeds
    parts = [f"{count} of {seeds} seeds with {label}" for label, count in late.items() if count > seeds / 2]
    if not parts:
        return []
    text = (
        f"Training may have been cut short: {joined(parts)} stop early no sooner than epoch {first} of {epochs}. More "
        "epochs (--epochs) may change losses and ranking."
    )
    return [text]


def _late(arm: Arm, first: int) -> int:
    return sum(record.curves.early_epoch >= first for record in arm.records)
