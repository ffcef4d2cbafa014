"""The rows of the registry of layers that fit the network of a study, as methods: a new row needs no code here.

A row fits whose function makes noise of a matrix of rows and hidden units, and does nothing in evaluation. Its layer
stands where dropout stands, behind every hidden layer, and its mask or noise has the same address.
"""

from collections.abc import Mapping

from torch import Tensor

import dropkit.nn  # fills the registry  # noqa: F401
from dropkit._checks import Number
from dropkit.nn.variants import VARIANTS, Variant
from dropkit.study.methods import dropout
from dropkit.study.methods.method import Method, Recipe

__all__ = ["methods", "noisy"]

_OPEN = Number(0.0, 1.0, open_low=True, open_high=True, remedy="p is the rate, the probability of dropping a unit.")


def methods(rows: Mapping[str, Variant] = VARIANTS) -> dict[str, Method]:
    """Return a method for each row that fits, by the name of the row's function."""
    fitting = [(row, row.function) for row in rows.values() if row.function is not None and _fits(row)]
    return {function.__name__: _method(row, function.__name__) for row, function in fitting}


def _fits(row: Variant) -> bool:
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


def noisy(hidden: Tensor, recipe: Recipe, p: float | Tensor, key: int | Tensor) -> Tensor:
    """Return hidden units of shape (models, rows, units) with the noise of a recipe's variant.

    Args:
        hidden: The units.
        recipe: Whose variant it is.
        p: The rate, or one a model.
        key: The key, or one a model.
    """
    function = VARIANTS[recipe.variant].function
    if function is None:
        raise TypeError(recipe.variant)  # no method is made of a row without one
    noised: Tensor = function(hidden, p, True, key=key)
    return noised
