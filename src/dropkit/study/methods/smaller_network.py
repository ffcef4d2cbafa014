"""A smaller network: every hidden layer has this share of its width."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="smaller_network",
    title="smaller network",
    symbol="width",
    strengths=(0.25, 0.125, 0.5, 0.0625, 0.75, 0.03125, 0.375, 0.1875),
    recipe=lambda share: Recipe(width=share),
    domain=Number(0.0, 1.0, open_low=True, open_high=True),
    log_axis=True,
    form="width \N{MULTIPLICATION SIGN} {:g}",
)
