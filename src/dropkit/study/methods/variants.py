"""The rows of the registry of layers that fit the network of a study, as methods: a new row needs no code here.

A row fits whose function takes a tensor and a rate and acts on a matrix of rows and hidden units, doing nothing in
evaluation, or on weights.
On units it acts where dropout does, behind every hidden layer; on weights, on those that lead into hidden layers. Its
mask or noise has dropout's address.
"""

import inspect
import re
from collections.abc import Mapping

from torch import Tensor

import dropkit.nn  # fills the registry  # noqa: F401
from dropkit._checks import Number
from dropkit.nn.variants import VARIANTS, Variant
from dropkit.study.methods import dropout
from dropkit.study.methods.method import Method, Recipe

__all__ = ["acts_on_weights", "methods", "noisy"]

_OPEN = Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the rate of the layer.")


def methods(rows: Mapping[str, Variant] = VARIANTS) -> dict[str, Method]:
    """Return a method for each row that fits, by its name: that of the class, as a function's is written."""
    found = {}
    for row in rows.values():
        if _takes_a_rate(row) and (row.acts_on == "weights" or _fits_units(row)):
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", row.name).lower()
            found[name] = _method(row, name)
    return found


def _takes_a_rate(row: Variant) -> bool:
    """Tell whether a row's function is called with a tensor and a rate, and needs no weights or learned rates."""
    if row.function is None:
        return False
    return [*inspect.signature(row.function).parameters][:3] == ["input", "p", "training"]


def _fits_units(row: Variant) -> bool:
    takes_a_matrix = row.takes_any_shape or any(len(shape) == 2 for shape in row.inputs)
    return row.acts_on == "activations" and row.evaluation == "identity" and takes_a_matrix


def _method(row: Variant, name: str) -> Method:
    """Return the method of a row: its typical rates come first, then dropout's, as many as all methods have."""
    most = len(dropout.METHOD.strengths)
    rates = tuple(dict.fromkeys((*row.rates, *dropout.METHOD.strengths)))[:most]
    return Method(
        name=name,
        title=row.title,
        symbol="p",
        strengths=rates,
        recipe=lambda p: Recipe(dropout=p, variant=row.name if p else ""),
        domain=_OPEN,
        on_request=True,
    )


def acts_on_weights(recipe: Recipe) -> bool:
    """Whether a recipe's variant acts on weights, not on units."""
    return bool(recipe.variant) and VARIANTS[recipe.variant].acts_on == "weights"


def noisy(values: Tensor, recipe: Recipe, p: float | Tensor, key: int | Tensor) -> Tensor:
    """Return hidden units, or weights, of several models with the noise of a recipe's variant.

    Args:
        values: The units or weights, of shape (models, ...).
        recipe: Whose variant it is.
        p: The rate, or one a model.
        key: The key, or one a model.
    """
    function = VARIANTS[recipe.variant].function
    if function is None:
        raise TypeError(recipe.variant)  # no method is made of a row without one
    noised: Tensor = function(values, p, True, key=key)
    return noised
