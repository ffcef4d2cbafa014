"""Mixup (Zhang et al. 2018) of the rows of a table: mixtures of two, with shares of Beta(alpha, alpha)."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="mixup",
    title="mixup",
    symbol="\N{GREEK SMALL LETTER ALPHA}",
    strengths=(0.2, 0.1, 0.4, 1.0, 0.05, 2.0, 4.0, 8.0),
    recipe=lambda alpha: Recipe(mixup=alpha),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
    needs="table",
)
