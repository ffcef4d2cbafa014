"""The rows of the registry of layers that fit the network of a study, as methods: a new row needs no code here.

A row fits whose function takes a tensor and a rate and acts on a matrix of rows and hidden units, doing nothing in
evaluation, or on weights. A row fits too that says how its rates are learned.
On units it acts where dropout does, behind every hidden layer; on weights, on those that lead into hidden layers. Its
mask or noise has dropout's address.
"""

import inspect
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import dropkit.nn  # fills the registry  # noqa: F401
from dropkit._checks import Number
from dropkit.nn.variants import VARIANTS, Learned, Variant
from dropkit.study.methods import dropout
from dropkit.study.methods.method import Method, Recipe

__all__ = ["acts_on_weights", "first_learned", "learned_by", "methods", "noisy"]


def methods(rows: Mapping[str, Variant] = VARIANTS) -> dict[str, Method]:
    """Return a method for each row that fits, by its name: that of the class, as a function's is written."""
    found = {}
    for row in rows.values():
        fits = row.acts_on == "weights" or _fits_units(row)
        if row.learned is not None or (_takes_a_rate(row) and fits):
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
    highest = 1.0 if row.learned is None else row.learned.highest
    rate = "rate of the layer" if row.learned is None else "rate with which the layer begins to learn"
    domain = Number(0.0, highest, open_low=True, open_high=True, remedy=f"p is the {rate}.")
    common = dropout.METHOD.strengths
    rates = dict.fromkeys((*row.rates, *common, *(highest * p for p in common)))
    return Method(
        name=name,
        title=row.title,
        symbol="p" if row.learned is None else "first p",
        strengths=tuple(filter(domain.contains, rates))[: len(common)],
        recipe=lambda p: Recipe(dropout=p, variant=row.name if p else ""),
        domain=domain,
        on_request=True,
    )


def acts_on_weights(recipe: Recipe) -> bool:
    """Whether a recipe's variant acts on weights, not on units."""
    return bool(recipe.variant) and VARIANTS[recipe.variant].acts_on == "weights"


def learned_by(recipe: Recipe) -> Learned | None:
    """Return how a recipe's variant learns its rates, if it does."""
    return VARIANTS[recipe.variant].learned if recipe.variant else None


def first_learned(recipes: Sequence[Recipe], hidden: Sequence[int]) -> list[Tensor]:
    """Return what models with recipes of one kind learn of their rates, as it begins: a tensor a hidden layer, or none.

    Args:
        recipes: One a model.
        hidden: The widths of the hidden layers.
    """
    learned = learned_by(recipes[0])
    if learned is None:
        return []
    first = torch.tensor([learned.first(recipe.dropout) for recipe in recipes], dtype=torch.float32)[:, None, None]
    return [first.repeat(1, 1, units if learned.per_unit else 1) for units in hidden]


def noisy(values: Tensor, recipe: Recipe, p: float | Tensor, key: int | Tensor) -> Tensor:
    """Return hidden units, or weights, of several models with the noise of a recipe's variant.

    Args:
        values: The units or weights, of shape (models, ...).
        recipe: Whose variant it is.
        p: The rate, or one a model; or what the models have learned of it.
        key: The key, or one a model.
    """
    row = VARIANTS[recipe.variant]
    function = row.function if row.learned is None else row.learned.function
    if function is None:
        raise TypeError(recipe.variant)  # no method is made of a row without one
    noised: Tensor = function(values, p, True, key=key)
    return noised
