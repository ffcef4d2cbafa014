"""The best strength is the first or last of its grid: a better one may lie outside."""

from dropkit.study.methods import METHODS
from dropkit.study.summary import Summary, early_loss

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Warn of every method whose chosen strength is at an end of its grid."""
    texts = []
    for name in summary.plan.family:
        grid, strength, method = summary.grid[name], summary.chosen[name], METHODS[name]
        if strength is None or len(grid) == 1 or strength not in (grid[0].strength, grid[-1].strength):
            continue
        end = "smallest" if strength == grid[0].strength else "largest"
        inner = grid[1] if end == "smallest" else grid[-2]
        losses = [arm.spread(early_loss).mean for arm in grid if arm.strength == strength]
        beside = f"{inner.spread(early_loss).mean:.3f}" if inner.records else "none, it diverged,"
        texts.append(
            f"The best strength of {method.title}, {method.label(strength)}, is the {end} that was tried (loss "
            f"{losses[0]:.3f} in the selection, {beside} at {method.label(inner.strength)}): a better one may lie "
            "beyond."
        )
    return texts
