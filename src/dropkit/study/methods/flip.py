"""Random left-right flips: half of the images are mirrored, drawn anew every epoch."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="flip",
    title="random flips",
    symbol="",
    strengths=(0.0,),
    recipe=lambda _: Recipe(flip=True),
    domain=Number(0.0, 0.0),
    needs="images",
    change="flip",
)
