"""Dropout with random shifts, the pair for images: p is tuned, the shift stays at its most useful strength."""

from dropkit._checks import Number
from dropkit.study.methods import shift
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

_PIXELS = int(shift.METHOD.strengths[0])

METHOD = Method(
    name="dropout_shift",
    title=f"dropout with shifts of {_PIXELS} px",
    symbol="p",
    strengths=(0.5, 0.3, 0.65, 0.1, 0.8, 0.2, 0.4, 0.9),
    recipe=lambda p: Recipe(dropout=p, shift=_PIXELS),
    domain=Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the probability of dropping a unit."),
    needs="images",
    change="shift",
)
