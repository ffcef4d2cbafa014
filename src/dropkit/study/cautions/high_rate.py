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
    width = min(summary.plan.budget.hidden)
    text = (
        f"The chosen rate p = {rate:g} leaves about {round(width * (1 - rate))} of {width} hidden units in a training "
        f"step; the training loss at the last epoch is {own:.3f}, against {none:.3f} without. A rate this high often "
        "means that a smaller network would do."
    )
    return [text]
