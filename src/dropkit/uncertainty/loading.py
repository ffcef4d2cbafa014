"""Batch after batch of a loader: what a model's forward is given of each, and what is told where it goes wrong."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, default_collate

from dropkit._checks import argument_type_error, require
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.sites.interception.names import unwrapped
from dropkit.uncertainty.engine.lengths import Lengths
from dropkit.uncertainty.engine.ways import Way
from dropkit.uncertainty.results.result import Result

__all__ = ["joined", "predicted"]

Predict = Callable[[tuple[Any, ...], dict[str, Any], int, int, bool], tuple[Result, Way]]

_TARGETS = ("label", "labels", "label_ids", "target", "targets")
_NO_NAME = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def predicted(
    model: Module, loader: Iterable[Any], predict: Predict, lengths: Lengths, progress: bool
) -> Iterator[Result]:
    """Return an iterator over the result of every batch; what is no loader raises before it is asked for any.

    Args:
        model: The model.
        loader: What yields batches, as for `MonteCarlo.batches`.
        predict: Given the forward's arguments, by position and by name, the number of the batch's first example, the
            batch's own, and whether its examples surely lie along axis 0, predicts, and says in which way.
        lengths: What is told the ways, for they say the lengths that batches are padded to.
        progress: Whether to show a bar.

    Raises:
        ArgumentTypeError: If `loader` cannot be iterated over; while iterating, if the forward does not take a batch.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | str | Mapping):
        raise argument_type_error("MonteCarlo.batches", "loader", "a DataLoader, or another iterable", loader)
    return _results(model, _shown(loader) if progress else loader, predict, lengths, _are_stacked(loader))


def _results(
    model: Module, batches: Iterable[Any], predict: Predict, lengths: Lengths, has_rows: bool
) -> Iterator[Result]:
    first = 0
    for number, batch in enumerate(batches):
        args, kwargs = _given(model, batch)
        with _explained(model, number, batch, args, kwargs):
            result, way = predict(args, kwargs, first, number, has_rows)
        lengths.add(way)
        yield result
        first += 0 if way.examples is None else way.examples.size


def joined(results: Iterable[Result]) -> Result:
    """Return the results of all batches of a loader as one.

    Raises:
        ArgumentError: If there is no batch, or results cannot be joined.
    """
    every = list(results)
    if not every:
        raise ArgumentError("MonteCarlo.batches: `loader` has no batch. Give one that yields a batch or more.")
    return Result.concatenate(every)


def _given(model: Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model's forward takes of a batch, by position and by name.

    Args:
        model: The model.
        batch: A mapping of inputs by name, of which targets that the forward does not take are left out; of a tuple or
            a list the first entry, which may be such a mapping, or several inputs if the forward takes no single one;
            or the only input.
    """
    if isinstance(batch, Mapping):
        left_out = {name for name in _TARGETS if name in batch and _why_not(model, (), {name: None}, is_partial=True)}
        return (), {name: value for name, value in batch.items() if name not in left_out}
    if not _is_sequence(batch) or not batch:
        return (batch,), {}
    first = batch[0]
    if isinstance(first, Mapping):
        return _given(model, first)
    is_several = _is_sequence(first) and _why_not(model, (first,), {}) and not _why_not(model, tuple(first), {})
    return (tuple(first) if is_several else (first,)), {}


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list) and not hasattr(value, "_fields")


def _why_not(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any], is_partial: bool = False) -> str:
    """Return why a model's forward does not take arguments; empty if it does, or nobody knows."""
    try:
        signature = inspect.signature(unwrapped(model).forward)
    except (TypeError, ValueError):
        return ""
    try:
        (signature.bind_partial if is_partial else signature.bind)(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


def _are_stacked(loader: Any) -> bool:
    """Tell whether a loader surely has the examples of its batches along axis 0, as PyTorch's own stack them."""
    return isinstance(loader, DataLoader) and loader.collate_fn is default_collate


@contextmanager
def _explained(model: Module, number: int, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Let what is raised tell the number of the batch, and what its forward was given where it does not take it.

    Raises:
        ArgumentTypeError: If the model's forward does not take what it is given.
    """
    try:
        yield
    except Exception as error:
        why = _why_not(model, args, kwargs) if isinstance(error, TypeError) else ""
        if why:
            raise ArgumentTypeError(_message(model, number, batch, kwargs, why)) from error
        if isinstance(error, TypeError | AttributeError) and _may_be_several(model, args):
            raise ArgumentTypeError(_message_of_one(model, number, args[0], error)) from error
        error.add_note(f"MonteCarlo.batches: this was batch {number} of the loader, counted from 0.")
        raise


def _may_be_several(model: Module, args: tuple[Any, ...]) -> bool:
    """Tell whether the only input is several tensors that the forward would take one by one as well."""
    if len(args) != 1 or not _is_sequence(args[0]) or len(args[0]) < 2:
        return False
    return all(isinstance(each, Tensor) for each in args[0]) and not _why_not(model, tuple(args[0]), {})


def _message_of_one(model: Module, number: int, value: Any, error: Exception) -> str:
    inner, kind = unwrapped(model), type(value).__name__
    named = _named(_names(inner)[: len(value)])
    return (
        f"MonteCarlo.batches: the forward of {type(inner).__name__} was given batch {number} as one input, a {kind} of "
        f"{len(value)} tensors, for it needs no second, and raised {type(error).__name__}: {error}. If they are "
        f"several inputs, let the loader yield them by name: {named}."
    )


def _names(inner: Module) -> list[str]:
    """Return the names of what a forward takes, as far as it can be given by name."""
    return [name for name, each in inspect.signature(inner.forward).parameters.items() if each.kind not in _NO_NAME]


def _named(names: list[str]) -> str:
    return "{" + ", ".join(f'"{name}": ...' for name in names) + "}"


def _message(model: Module, number: int, batch: Any, kwargs: dict[str, Any], why: str) -> str:
    inner = unwrapped(model)
    names = _names(inner)
    text = f"MonteCarlo.batches: the forward of {type(inner).__name__} does not take batch {number}: {why}."
    if kwargs:
        return (
            f"{text} A mapping gives all its entries by name, but for targets such as `labels`. Let batches have those "
            f"that the forward takes: {', '.join(names)}."
        )
    shown = f"Of a {type(batch).__name__} the first entry alone is given to it. " if _is_sequence(batch) else ""
    return f"{text} {shown}Let the loader yield inputs by name: {_named(names)}."


def _shown(loader: Iterable[Any]) -> Iterable[Any]:
    """Return the batches of a loader with a progress bar."""
    require("rich", "uncertainty", "A progress bar")
    from rich.progress import track

    return track(loader, description="Monte Carlo passes", total=len(loader) if isinstance(loader, Sized) else None)
