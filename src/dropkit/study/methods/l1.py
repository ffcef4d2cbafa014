"""L1 penalty (Tibshirani 1996): the strength times the sum of absolute weights is added to the training loss."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="l1",
    title="L1 penalty",
    symbol="λ",  # the Greek letter is meant
    strengths=(1e-4, 3e-4, 3e-5, 1e-3, 1e-5, 3e-3, 3e-6, 1e-2),
    recipe=lambda strength: Recipe(l1=strength),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
)
