"""Max-norm (Srivastava et al. 2014, section 5.1): no hidden unit's incoming weight vector is longer than c."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="max_norm",
    title="max-norm",
    symbol="c",
    strengths=(0.5, 0.25, 1.0, 0.12, 2.0, 0.06, 4.0, 0.03),
    recipe=lambda longest: Recipe(max_norm=longest),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
)
