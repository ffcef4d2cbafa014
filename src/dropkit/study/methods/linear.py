"""A fitted linear model (logistic or ridge regression) with an L2 penalty: a baseline that a network must beat."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="linear",
    title="linear model",
    symbol="λ",  # the Greek letter is meant
    strengths=(1e-3, 1e-4, 1e-2, 1e-1, 1e-5, 1.0, 3e-3, 3e-4),
    recipe=lambda strength: Recipe(width=0.0, l2=strength),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
    compared=False,
)
