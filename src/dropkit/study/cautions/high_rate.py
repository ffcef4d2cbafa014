"""A dropout rate above 0.7: few units are left, and training is slow and rough."""

from dropkit.study.summary import Summary

__all__ = ["check"]

_HIGH = 0.7


def check(summary: Summary) -> list[str]:
    """Warn of a chosen rate above 0.7, with what it does to the fit."""
    rate, arm = summary.chosen.get("dropout"), summary.arms.get("dropout")
    if rate is None or arm is None or rate <= _HIGH or not arm.records or not summary.none.records:
        return []
    own = arm.spread(lambda record: record.last.training_loss).mean
    none = summary.none.spread(lambda record: record.last.training_loss).mean
    text = (
        f"The chosen rate p = {rate:g} leaves about {_left(summary, rate)} hidden units in a training step; the "
        f"training loss at the last epoch is {own:.3f}, against {none:.3f} without. A rate this high often means that "
        "a smaller network would do."
    )
    return [text]


def _left(summary: Summary, rate: float) -> str:
    if summary.plan.network:
        return f"{1 - rate:.0%} of the"
    width = min(summary.plan.budget.hidden)
    return f"{round(width * (1 - rate))} of {width}"
