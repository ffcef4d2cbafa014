"""Random brightness: images are multiplied by 1 minus to 1 plus the strength, drawn anew every epoch."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="brightness",
    title="random brightness",
    symbol="factor",
    strengths=(0.2, 0.1, 0.3, 0.5, 0.05, 0.7, 0.9, 0.02),
    recipe=lambda most: Recipe(brightness=most),
    domain=Number(0.0, 1.0, open_low=True, open_high=True),
    form="1 \N{PLUS-MINUS SIGN} {:g}",
    needs="images",
    change="brightness",
)
