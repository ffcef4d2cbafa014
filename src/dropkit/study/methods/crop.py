"""Random crops of images: a window with at least this share of the sides, stretched to the whole; anew every epoch."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="crop",
    title="random crops",
    symbol="side",
    strengths=(0.9, 0.8, 0.7, 0.95, 0.6, 0.5, 0.85, 0.75),
    recipe=lambda share: Recipe(crop=share),
    domain=Number(0.0, 1.0, open_low=True, open_high=True),
    form="side \N{GREATER-THAN OR EQUAL TO} {:g}",
    needs="images",
    change="crop",
)
