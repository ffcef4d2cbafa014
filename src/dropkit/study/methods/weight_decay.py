"""Decoupled weight decay (Loshchilov and Hutter 2019): a step multiplies weights by 1 - learning rate * strength."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="weight_decay",
    title="weight decay",
    symbol="λ",  # the Greek letter is meant
    strengths=(1.0, 3.0, 0.3, 10.0, 0.1, 30.0, 0.03, 100.0),
    recipe=lambda strength: Recipe(weight_decay=strength),
    domain=Number(0.0, float("inf"), open_low=True, open_high=True),
    log_axis=True,
)
