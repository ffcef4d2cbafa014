"""The best strength is the first or last that was tried: a better one may lie outside."""

from dropkit.study.methods import METHODS, Method
from dropkit.study.summary import Arm, Summary, early_loss

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Warn of every method whose chosen strength is at an end of its grid, where its domain goes on beyond.

    Where what lies beyond ends in something that was measured too, such as no regularisation below the smallest rate of
    dropout, and that was worse, the best strength lies between two that were tried, and there is no warning.
    """
    texts = []
    for name in summary.plan.family:
        grid, strength, method = summary.grid[name], summary.chosen[name], METHODS[name]
        if strength is None or len(grid) == 1 or strength not in (grid[0].strength, grid[-1].strength):
            continue
        end = "smallest" if strength == grid[0].strength else "largest"
        bound = method.domain.low if end == "smallest" else method.domain.high
        if strength == bound:  # it belongs to the domain, and nothing lies beyond
            continue
        best, inner = (grid[0], grid[1]) if end == "smallest" else (grid[-1], grid[-2])
        limit = _limit(summary, method, bound)
        if limit is not None and _loss(limit) > _loss(best):
            continue
        at = method.label(inner.strength)
        beside = f"; at {at} training diverged" if inner.diverged else f", {_loss(inner):.3f} at {at}"
        widened = ", though the grid was widened to it" if strength not in summary.plan.strengths[name] else ""
        text = (
            f"The best strength of {method.title}, {method.label(strength)}, is the {end} that was tried{widened} "
            f"(loss {_loss(best):.3f} in the selection{beside})"
        )
        if limit is None:
            texts.append(f"{text}: a better one may lie beyond.")
        else:
            texts.append(
                f"{text}. Beyond it the method tends to {limit.label}, which did no worse: {_loss(limit):.3f}."
            )
    return texts


def _limit(summary: Summary, method: Method, bound: float) -> Arm | None:
    """Return what a method comes to at a bound of its domain, such as no regularisation, if that was measured."""
    recipe = method.recipe(bound)
    arms = [arm for name, grid in summary.grid.items() for arm in grid if METHODS[name].recipe(arm.strength) == recipe]
    return next((arm for arm in arms if arm.records and not arm.diverged), None)


def _loss(arm: Arm) -> float:
    return arm.spread(early_loss).mean
