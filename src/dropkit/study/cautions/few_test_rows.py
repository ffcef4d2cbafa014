"""Few test rows: the check on them can tell next to nothing."""

from dropkit.study.summary import Summary

__all__ = ["check"]

_FEW = 20


def check(summary: Summary) -> list[str]:
    """Warn of few test rows, with their number."""
    rows = summary.plan.budget.test_rows
    if rows >= _FEW:
        return []
    words = "1 test row" if rows == 1 else f"{rows} test rows"
    text = (
        f"The check has only {words}, fewer than {_FEW}: it can tell next to nothing, and its interval is no guide. "
        f"Set {_FEW} or more aside (--test-size, or test_rows of a Budget)."
    )
    return [text]
