"""What a model takes and returns, one pass or many at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from dropkit.errors import UnsupportedError
from dropkit.sites.interception.restoring import cloned
from dropkit.uncertainty.bounded import Bounded
from dropkit.uncertainty.engine.examples import Examples, Said, candidates
from dropkit.uncertainty.engine.pending import Pending, repeated
from dropkit.uncertainty.engine.tape import MismatchError, Player, Recorder
from dropkit.uncertainty.results.axes import NO_AXIS, Axis
from dropkit.uncertainty.results.outputs import flatten

__all__ = ["Inputs", "Output", "signature"]


_CONSTANTS = str | bytes | int | float | complex | None


class Inputs:
    """What a model's forward takes.

    Args:
        args: By position.
        kwargs: By name.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._values = args, kwargs
        self.leaves, _ = flatten(_listed(self._values))
        self.tensors = [leaf for leaf in self.leaves if _is_plain(leaf)]

    def candidates(self, said: Said) -> list[Examples]:
        """Return where examples may lie, in the order of likelihood, as far as nobody has said it."""
        return candidates([(number, leaf) for number, leaf in enumerate(self.leaves) if _is_plain(leaf)], said)

    def along(self, axis: int) -> Examples | None:
        """Return the examples along an axis, as many as the first tensor has that has it; None if there is none."""
        sizes = [leaf.shape[axis] for leaf in self.tensors if leaf.dim() > axis]
        return next((each for each in self.candidates(axis) if each.size == sizes[0]), None)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the tensors."""
        return [tuple(tensor.shape) for tensor in self.tensors]

    @property
    def is_empty(self) -> bool:
        """Whether there are examples, though none of them, so that nothing can be told of them."""
        first = next((leaf for leaf in self.tensors if leaf.dim()), None)
        return first is not None and not first.shape[0]

    @property
    def rows(self) -> int | None:
        """The length of axis 0 that all tensors have; None where they have several, or there is none."""
        lengths = {leaf.shape[0] for leaf in self.tensors if leaf.dim()}
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def is_vector(self) -> bool:
        """Whether there is a single vector, and numbers besides at most: one example."""
        is_dense = all(_is_plain(leaf) for leaf in self.leaves if isinstance(leaf, Tensor))
        return is_dense and sorted(leaf.dim() for leaf in self.tensors if leaf.dim()) == [1]

    def plain(self) -> Any:
        """Return what one pass takes: copies, so that no pass writes into what the others take."""
        return cloned(self._values)

    def repeated(self, examples: Examples | None, copies: int) -> Any:
        """Return what passes that run together take."""
        return self._with(lambda _, leaf, along: _several(leaf, along, copies), examples)

    def doubled(self, examples: Examples | None) -> Any:
        """Return what one pass takes of twice as many examples, each beside itself, as sorted lengths stay so."""

        def double(_: int, leaf: Tensor, along: int | None) -> Tensor:
            return leaf if along is None else leaf.repeat_interleave(2, along)

        return self._with(double, examples)

    def reordered(self, examples: Examples, order: Sequence[int]) -> Any:
        """Return what one pass takes of the examples in another order, some of them twice or not at all."""

        def reorder(_: int, leaf: Tensor, along: int | None) -> Tensor:
            return leaf if along is None else leaf.index_select(along, torch.tensor(order, device=leaf.device))

        return self._with(reorder, examples)

    def recorded(self, recorder: Recorder, examples: Examples | None = None, copies: int = 1) -> Any:
        """Return what a pass takes that is recorded, or passes that run together."""
        return self._with(lambda number, leaf, along: recorder.input(number, _several(leaf, along, copies)), examples)

    def played(self, player: Player, examples: Examples | None) -> Any:
        """Return what passes take that run together, of which the tape of one is played."""
        is_plain = all(_is_plain(leaf) or isinstance(leaf, _CONSTANTS) for leaf in self.leaves)
        return self._with(lambda number, _, along: player.input(number, along), examples, is_copied=not is_plain)

    def _with(
        self,
        change: Callable[[int, Tensor, int | None], Any],
        examples: Examples | None,
        is_copied: bool = True,
    ) -> Any:
        """Return the same with something else in the place of each tensor, and copies of what else a pass may change.

        Args:
            change: Takes the number of a tensor among the leaves, a copy of it, and the axis of its examples, if any.
            examples: Where examples lie.
            is_copied: Whether there is anything to copy, with `change` taking copies too.
        """
        leaves, rebuild = flatten(_listed(cloned(self._values) if is_copied else self._values))
        changed: dict[int, Any] = {}  # what is one tensor stays one
        for number, leaf in enumerate(leaves):
            if _is_plain(leaf) and id(leaf) not in changed:
                changed[id(leaf)] = change(number, leaf, None if examples is None else examples.along(number))
        args, kwargs = rebuild([changed.get(id(leaf), leaf) for leaf in leaves])
        return tuple(args), kwargs


def _listed(values: Any) -> Any:
    args, kwargs = values
    return list(args), kwargs


def _several(leaf: Tensor, along: int | None, copies: int) -> Tensor:
    return leaf if along is None or copies == 1 else repeated(leaf, along, copies)


def signature(inputs: Inputs) -> Any:
    """Return what decides how passes can be run: shapes and types of inputs, and values that are no tensors."""
    return tuple(map(_name, inputs.leaves))


def _name(leaf: Any, depth: int = 3) -> Any:
    """Return a constant, or the type of an object and what it holds, as far as that can be told."""
    if isinstance(leaf, _CONSTANTS):
        return type(leaf), leaf
    if isinstance(leaf, np.generic):
        return type(leaf), leaf.tobytes()
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.dtype.str
    if not depth or isinstance(leaf, Module | type):
        return type(leaf)
    if isinstance(leaf, Mapping):
        parts: Any = leaf.items()
    else:
        parts = enumerate(leaf) if isinstance(leaf, list | tuple) else _attributes(leaf)
    return type(leaf), *((str(name), _name(part, depth - 1)) for name, part in parts)


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, whether or not its class has a dictionary for that."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                hidden = f"_{kind.__name__.lstrip('_')}{name}"
                yield name, getattr(value, hidden if name.startswith("__") and not name.endswith("__") else name, None)


def _is_plain(leaf: Any) -> bool:
    is_strided = isinstance(leaf, Tensor) and type(leaf) is not Pending and leaf.layout is torch.strided
    return is_strided and not leaf.is_nested


@dataclass
class Output:
    """What a model returned.

    Args:
        value: It.
        leaves: What is in it; a tensor of which all passes share the value may be pending.
        names: What the leaves are called.
        path: What the model has called, and what it was told of by yes or no, in order.
        shares: For each leaf what is known of one that is made of probabilities; if anybody asked.
        precision: The relative precision of what it was computed with, which may be coarser than that of its type.
    """

    value: Any
    leaves: list[Any]
    names: list[str]
    path: tuple[Any, ...] = ()
    shares: tuple[Bounded | None, ...] = ()
    precision: float = 0.0

    @classmethod
    def of(cls, value: Any) -> "Output":
        """Look into what a model returned.

        Raises:
            UnsupportedError: If there is a tensor in it that is not dense.
        """
        leaves, rebuild = flatten(value)
        for name, leaf in zip(rebuild.names, leaves, strict=True):
            if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.layout is not torch.strided):
                kind = "nested" if leaf.is_nested else "sparse"
                remedy = (
                    "torch.nested.to_padded_tensor makes one" if leaf.is_nested else "its method `to_dense` makes one"
                )
                raise UnsupportedError(
                    f"mc: {name} is a {kind} tensor, which has no mean over passes. Let the model return a dense "
                    f"one: {remedy}."
                )
        if any(type(leaf) is Pending for leaf in leaves):
            value = rebuild([leaf.base if type(leaf) is Pending else leaf for leaf in leaves])
        return cls(value, leaves, rebuild.names)

    def filled(self) -> "Output":
        """Return the same where pending tensors stand for those of passes that really ran together."""
        leaves = [leaf.base if type(leaf) is Pending else leaf for leaf in self.leaves]
        return replace(self, leaves=leaves)

    def axes(self, one: "Output", copies: int) -> tuple[Axis, ...]:
        """Return the axis of each leaf along which examples lie: that along which passes do that ran together.

        Args:
            one: What a single pass returned.
            copies: How many ran together, two or more.
        """
        if len(self.leaves) != len(one.leaves):
            return (None,) * len(one.leaves)
        return tuple(_axis(wide, single, copies) for wide, single in zip(self.leaves, one.leaves, strict=True))

    def passes(self, one: "Output", copies: int) -> list[Tensor | None]:
        """Return every tensor with the passes that ran together along axis 0; None for what they share.

        Args:
            one: What a single pass returned.
            copies: How many ran together.

        Raises:
            MismatchError: If the output is not that of so many passes.
        """
        if len(self.leaves) != len(one.leaves):
            raise MismatchError("another structure is returned where passes run together")
        named = zip(self.names, self.leaves, one.leaves, strict=True)
        return [_split(name, wide, single, copies) for name, wide, single in named]


def _axis(wide: Any, single: Any, copies: int) -> Axis:
    is_dense = all(isinstance(each, Tensor) and not each.is_nested for each in (wide, single))
    if not is_dense or wide.dim() != single.dim() or not wide.numel():
        return None
    longer = [axis for axis in range(wide.dim()) if wide.shape[axis] != single.shape[axis]]
    if not longer:
        return NO_AXIS
    [axis, *more] = longer
    return axis if not more and single.shape[axis] * copies == wide.shape[axis] else None


def _split(name: str, wide: Any, single: Any, copies: int) -> Tensor | None:
    if not isinstance(wide, Tensor) or not isinstance(single, Tensor) or type(wide) is Pending:
        return None
    if copies == 1:
        return wide.unsqueeze(0)
    if wide.shape == single.shape:
        return None
    if wide.dim() != single.dim():
        raise MismatchError(f"{name} has other axes where passes run together")
    longer = [axis for axis in range(wide.dim()) if wide.shape[axis] != single.shape[axis]]
    if len(longer) != 1 or single.shape[longer[0]] * copies != wide.shape[longer[0]]:
        raise MismatchError(f"{name} has other lengths where passes run together")
    [axis] = longer
    return wide.unflatten(axis, (copies, single.shape[axis])).movedim(axis, 0)
