"""Few training rows: dropout is known to be of little use below about a thousand."""

from dropkit.study.summary import Summary
from dropkit.study.wording import signed

__all__ = ["check"]

_FEW = 1000


def check(summary: Summary) -> list[str]:
    """Warn of few training rows, with what dropout did on them."""
    rows = summary.plan.budget.train_rows
    if rows >= _FEW:
        return []
    text = f"Each model trains on {rows} rows, fewer than {_FEW:,}: results this small carry over badly to more rows."
    dropout = summary.comparisons.get("dropout")
    if dropout is not None:
        text += (
            f" Here dropout changed the validation loss by {signed(dropout.difference)} with early stopping and by "
            f"{signed(dropout.last_difference)} at the last epoch."
        )
    return [text]
