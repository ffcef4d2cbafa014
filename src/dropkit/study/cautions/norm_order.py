"""Dropout in front of batch normalisation: its training variances are not those of evaluation."""

from dropkit.study.summary import Summary, early_loss
from dropkit.study.wording import signed

__all__ = ["check"]

_BEFORE, _REFERENCES = "dropout_before_norm", ("dropout_after_norm", "batch_norm")


def check(summary: Summary) -> list[str]:
    """Warn wherever dropout before batch normalisation was compared, with how the other order did."""
    if _BEFORE not in summary.comparisons:
        return []
    loss = summary.arms[_BEFORE].spread(early_loss).mean
    others = [summary.arms[name] for name in _REFERENCES if name in summary.comparisons]
    measured = "; ".join(
        f"{arm.label} {arm.spread(early_loss).mean:.3f}, {signed(arm.spread(early_loss).mean - loss)}" for arm in others
    )
    text = (
        "Dropout stands before batch normalisation in one of the methods compared. The normalisation then learns "
        "variances that dropout has raised, and evaluates with them when dropout is off (Li et al. 2019). Here its "
        f"early-stopped validation loss is {loss:.3f}"
    )
    return [f"{text}; {measured}." if measured else f"{text}; the other order was not tried."]
