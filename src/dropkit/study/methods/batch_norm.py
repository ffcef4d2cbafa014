"""Batch normalisation (Ioffe and Szegedy 2015) between product and rectifier of every hidden layer."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="batch_norm",
    title="batch normalisation",
    symbol="",
    strengths=(0.0,),
    recipe=lambda _: Recipe(batch_norm=True),
    domain=Number(0.0, 0.0),
)
