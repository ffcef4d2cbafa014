"""The pictures of the report, one file each, in their order."""

from dropkit.study.pictures import (
    co_adaptation,
    degradation,
    differences,
    gap_against_rate,
    gradient_variance,
    learning_curves,
    loss_against_rate,
)
from dropkit.study.pictures.picture import Picture, figure, svg

__all__ = ["PICTURES", "Picture", "figure", "svg"]

PICTURES: tuple[Picture, ...] = (
    differences.PICTURE,
    loss_against_rate.PICTURE,
    gap_against_rate.PICTURE,
    learning_curves.PICTURE,
    degradation.PICTURE,
    co_adaptation.PICTURE,
    gradient_variance.PICTURE,
)
