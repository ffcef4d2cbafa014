"""The best strength is the first or last that was tried: a better one may lie outside."""

from dropkit.study.methods import METHODS, Method
from dropkit.study.summary import Summary, early_loss

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Warn of every method whose chosen strength is at an end of its grid, where its domain goes on beyond."""
    texts = []
    for name in summary.plan.family:
        grid, strength, method = summary.grid[name], summary.chosen[name], METHODS[name]
        if strength is None or len(grid) == 1 or strength not in (grid[0].strength, grid[-1].strength):
            continue
        end = "smallest" if strength == grid[0].strength else "largest"
        if _nothing_beyond(method, strength, end):
            continue
        inner = grid[1] if end == "smallest" else grid[-2]
        losses = [arm.spread(early_loss).mean for arm in grid if arm.strength == strength]
        beside = f"{inner.spread(early_loss).mean:.3f}" if inner.records else "none, it diverged,"
        widened = ", though the grid was widened to it" if strength not in summary.plan.strengths[name] else ""
        texts.append(
            f"The best strength of {method.title}, {method.label(strength)}, is the {end} that was tried{widened} "
            f"(loss {losses[0]:.3f} in the selection, {beside} at {method.label(inner.strength)}): a better one may "
            "lie beyond."
        )
    return texts


def _nothing_beyond(method: Method, strength: float, end: str) -> bool:
    """Whether the strength is the last one that there is: a bound that belongs to the domain."""
    domain = method.domain
    return strength == domain.low if end == "smallest" else strength == domain.high
