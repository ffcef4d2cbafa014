"""Random rotations of images about their middle, by up to so many degrees either way; drawn anew every epoch."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="rotation",
    title="random rotations",
    symbol="degrees",
    strengths=(10.0, 5.0, 15.0, 20.0, 30.0, 3.0, 45.0, 2.0),
    recipe=lambda degrees: Recipe(rotation=degrees),
    domain=Number(0.0, 180.0, open_low=True),
    form="{:g}\N{DEGREE SIGN}",
    needs="images",
    change="rotation",
)
