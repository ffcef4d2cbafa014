"""Dropout with input noise, the pair for tables: p is tuned, the noise stays at its most useful strength."""

from dropkit._checks import Number
from dropkit.study.methods import input_noise
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

_DEVIATION = input_noise.METHOD.strengths[0]

METHOD = Method(
    name="dropout_noise",
    title=f"dropout with input noise {_DEVIATION:g}",
    symbol="p",
    strengths=(0.5, 0.3, 0.65, 0.1, 0.8, 0.2, 0.4, 0.9),
    recipe=lambda p: Recipe(dropout=p, noise=_DEVIATION),
    domain=Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the probability of dropping a unit."),
    needs="table",
)
