"""A network that hardly over-fits, or not at all: there is little for a regulariser to win."""

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
    if validation - training >= _SMALL_GAP * validation > 0:
        return []
    over_fits, gap = "does not over-fit", ""
    if validation > training:
        over_fits, gap = "hardly over-fits", f", a gap of {percent((validation - training) / validation)}"
    text = (
        f"Without regularisation the network {over_fits}: at the last epoch its loss is {training:.3f} on its training "
        f"rows and {validation:.3f} on validation rows{gap}. Dropout has little to gain there; more epochs or a larger "
        "network may gain more."
    )
    return [text]
