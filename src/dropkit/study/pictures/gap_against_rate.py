"""The gap between validation and training loss against the rate of dropout, and against every other strength."""

from dropkit.study.pictures.against_strength import draw_against_strength
from dropkit.study.pictures.picture import Picture

__all__ = ["PICTURE"]

PICTURE = Picture(
    name="gap_against_rate",
    title="Gap against rate and strength",
    caption=(
        "Validation loss minus training loss, both with dropout off. A smaller gap is less over-fitting, and no "
        "merit by itself: a model that learns nothing has none."
    ),
    draw=lambda findings: draw_against_strength(findings, lambda scores: scores.gap, "gap of the loss"),
)
