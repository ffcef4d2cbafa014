"""Validation loss against the rate of dropout, and against the strength of every other method."""

from dropkit.study.pictures.against_strength import draw_against_strength
from dropkit.study.pictures.picture import Picture

__all__ = ["PICTURE"]

PICTURE = Picture(
    name="loss_against_rate",
    title="Validation loss against rate and strength",
    caption=(
        "Dots are the selection seeds, lines their means, dashes no regularisation on the same seeds. The diamond is "
        "the chosen strength on the fresh confirmation seeds, with the standard deviation over them. Lower is better."
    ),
    draw=lambda findings: draw_against_strength(findings, lambda scores: scores.validation_loss, "validation loss"),
)
