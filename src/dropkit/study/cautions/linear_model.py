"""A linear model does as well as the best network: these data may need no network."""

from dropkit.study.plan import RELEVANT
from dropkit.study.summary import Summary, early_loss

__all__ = ["check"]


def check(summary: Summary) -> list[str]:
    """Warn where the linear baseline comes within the least difference worth having of the best network."""
    linear = summary.arms.get("linear")
    networks = [arm for name, arm in summary.arms.items() if name != "linear" and arm.records and not arm.diverged]
    if linear is None or not linear.records or linear.diverged or not networks:
        return []
    best = min(networks, key=lambda arm: arm.spread(early_loss).mean)
    own, other = linear.spread(early_loss).mean, best.spread(early_loss).mean
    if own > other * (1 + RELEVANT):
        return []
    text = (
        f"A linear model does as well: its validation loss is {own:.3f} ({linear.label}, fitted to the same rows), "
        f"against {other:.3f} of the best network here, early-stopped ({best.label}). A network "
        "has little or nothing to win on these data."
    )
    return [text]
