"""What a network of one's own gets: a tensor, or tensors in tuples, lists and dictionaries; rows come first."""

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Inputs",
    "count_rows",
    "fault",
    "holds_tensors_alone",
    "mapped",
    "same",
    "shapes_in_words",
    "split",
    "tensors",
]

Inputs = Any  # a tensor, or a tuple, list or dictionary of such


def tensors(inputs: Inputs, place: str = "inputs") -> Iterator[tuple[str, Any]]:
    """Return each part that is no tuple, list or dictionary, with its place in words."""
    if isinstance(inputs, Mapping):
        for name, part in inputs.items():
            yield from tensors(part, f"{place}[{name!r}]")
    elif isinstance(inputs, tuple | list):
        for number, part in enumerate(inputs):
            yield from tensors(part, f"{place}[{number}]")
    else:
        yield place, inputs


def mapped(inputs: Inputs, change: Callable[[Any], Any]) -> Inputs:
    """Return inputs of the same form with every tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: mapped(part, change) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        parts = [mapped(part, change) for part in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return change(inputs)


def fault(inputs: Inputs, rows: int) -> str:
    """Return what is wrong with inputs of so many rows; nothing where they are fit."""
    found = list(tensors(inputs))
    if not found:
        return f"inputs without a tensor, {inputs!r}"
    for place, value in found:
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return f"{place} of type {type(value).__name__}; a network gets dense tensors"
        if value.ndim == 0 or len(value) != rows:
            return f"{place} of shape {tuple(value.shape)}; its first axis must be the {rows} rows"
        if not value.isfinite().all():
            return f"{place} with NaN or infinity"
    return ""


def holds_tensors_alone(value: object) -> bool:
    """Return whether a value is a tensor of one or more dimensions, or holds such and nothing else."""
    found = list(tensors(value))
    return bool(found) and all(isinstance(part, Tensor) and part.ndim for _, part in found)


def count_rows(inputs: Inputs) -> int:
    """Return how many rows the first tensor has."""
    return next(len(value) for _, value in tensors(inputs))


def shapes_in_words(inputs: Inputs) -> str:
    """Return the shape of every tensor in words."""
    return str(mapped(inputs, lambda value: tuple(value.shape)))


def split(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """Return the rows in parts of at most `size`."""
    for start in range(0, count_rows(inputs), size):
        yield mapped(inputs, itemgetter(slice(start, start + size)))


def same(one: Inputs, other: Inputs) -> bool:
    """Return whether two inputs are alike, bit for bit."""
    pairs = [dict(tensors(one)), dict(tensors(other))]
    return pairs[0].keys() == pairs[1].keys() and all(
        value.dtype == pairs[1][place].dtype and torch.equal(value, pairs[1][place])
        for place, value in pairs[0].items()
    )
