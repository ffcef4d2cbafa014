"""Dropout behind batch normalisation: product, normalisation, rectifier, dropout in every hidden layer."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="dropout_after_norm",
    title="dropout after batch normalisation",
    symbol="p",
    strengths=(0.5, 0.3, 0.65, 0.1, 0.8, 0.2, 0.4, 0.9),
    recipe=lambda p: Recipe(dropout=p, batch_norm=True),
    domain=Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the probability of dropping a unit."),
)
