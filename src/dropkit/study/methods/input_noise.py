"""Gaussian noise on the inputs of a table (Bishop 1995), with the strength as its deviation; anew every step."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="input_noise",
    title="input noise",
    symbol="\N{GREEK SMALL LETTER SIGMA}",
    strengths=(0.1, 0.3, 0.03, 1.0, 0.01, 2.0, 0.003, 4.0),
    recipe=lambda deviation: Recipe(noise=deviation),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
    needs="table",
)
