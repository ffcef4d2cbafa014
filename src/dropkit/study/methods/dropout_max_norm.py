"""Dropout with max-norm, the pair of Srivastava et al. (2014), section 5.1: p is tuned, the norm stays."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

_LONGEST = 1.0

METHOD = Method(
    name="dropout_max_norm",
    title=f"dropout with max-norm {_LONGEST:g}",
    symbol="p",
    strengths=(0.5, 0.3, 0.65, 0.1, 0.8, 0.2, 0.4, 0.9),
    recipe=lambda p: Recipe(dropout=p, max_norm=_LONGEST),
    domain=Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the probability of dropping a unit."),
)
