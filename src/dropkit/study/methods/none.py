"""No regularisation: what every other method is compared with."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="none",
    title="no regularisation",
    symbol="",
    strengths=(0.0,),
    recipe=lambda _: Recipe(),
    domain=Number(0.0, 0.0),
)
