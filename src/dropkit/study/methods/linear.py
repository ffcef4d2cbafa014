"""A linear model (logistic regression for classes) with weight decay: a baseline that a network must beat."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="linear",
    title="linear model",
    symbol="λ",  # the Greek letter is meant
    strengths=(1.0, 3.0, 0.3, 10.0, 0.1, 30.0, 0.03, 100.0),
    recipe=lambda strength: Recipe(width=0.0, weight_decay=strength),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
    compared=False,
)
