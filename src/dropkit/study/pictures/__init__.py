"""The pictures of the report, one file each, in their order."""

from dropkit.study.pictures import differences, gap_against_rate, learning_curves, loss_against_rate
from dropkit.study.pictures.picture import Picture, figure, svg

__all__ = ["PICTURES", "Picture", "figure", "svg"]

PICTURES: tuple[Picture, ...] = (
    differences.PICTURE,
    loss_against_rate.PICTURE,
    gap_against_rate.PICTURE,
    learning_curves.PICTURE,
)
