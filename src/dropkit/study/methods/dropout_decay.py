"""Dropout with weight decay, a pair that many networks use: p is tuned, the decay stays."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

_DECAY = 0.3

METHOD = Method(
    name="dropout_decay",
    title=f"dropout with weight decay {_DECAY:g}",
    symbol="p",
    strengths=(0.5, 0.3, 0.65, 0.1, 0.8, 0.2, 0.4, 0.9),
    recipe=lambda p: Recipe(dropout=p, weight_decay=_DECAY),
    domain=Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the probability of dropping a unit."),
)
