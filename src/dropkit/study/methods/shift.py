"""Random shifts of images along both axes, by whole pixels, black where nothing was; drawn anew every epoch."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="shift",
    title="random shifts",
    symbol="pixels",
    strengths=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    recipe=lambda pixels: Recipe(shift=int(pixels)),
    domain=Number(1.0, 8.0),
    whole=True,
    form="{:g} px",
    needs="images",
    change="shift",
)
