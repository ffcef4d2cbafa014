"""A network that hardly over-fits: there is nothing for a regulariser to win."""

from dropkit.study.summary import Summary
from dropkit.study.wording import percent

__all__ = ["check"]

_SMALL_GAP = 0.1


def check(summary: Summary) -> list[str]:
    """Warn where the network without regularisation does almost as well on fresh rows as on its own."""
    if not summary.none.records:
        return []
    training = summary.none.spread(lambda record: record.last.training_loss).mean
    validation = summary.none.spread(lambda record: record.last.validation_loss).mean
    gap = (validation - training) / validation
    if gap >= _SMALL_GAP:
        return []
    text = (
        f"Without regularisation the network hardly over-fits: at the last epoch its loss is {training:.3f} on its "
        f"training rows and {validation:.3f} on validation rows, a gap of {percent(gap)}. Dropout cannot help such a "
        "network; more epochs or a larger one might."
    )
    return [text]
