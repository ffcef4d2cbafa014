"""Dropout in front of batch normalisation: its training variances are not those of evaluation."""

from dropkit.study.summary import Summary, early_loss
from dropkit.study.wording import signed

__all__ = ["check"]

_BEFORE, _REFERENCES = "dropout_before_norm", ("dropout_after_norm", "batch_norm")


def check(summary: Summary) -> list[str]:
    """Warn where dropout before batch normalisation helps or leads, with how the other order did."""
    own = summary.comparisons.get(_BEFORE)
    if own is None:
        return []
    leads = own.difference == min(comparison.difference for comparison in summary.comparisons.values())
    if not (leads or own.helps):
        return []
    loss = summary.arms[_BEFORE].spread(early_loss).mean
    others = [summary.arms[name] for name in _REFERENCES if name in summary.comparisons]
    measured = "; ".join(
        f"{arm.label} {arm.spread(early_loss).mean:.3f}, {signed(arm.spread(early_loss).mean - loss)}" for arm in others
    )
    text = (
        "Dropout stands before batch normalisation in one of the methods that do well. The normalisation then learns "
        "variances that dropout has raised, and evaluates with them when dropout is off (Li et al. 2019). Here its "
        f"early-stopped validation loss is {loss:.3f}"
    )
    return [f"{text}; {measured}." if measured else f"{text}; the other order was not tried."]
