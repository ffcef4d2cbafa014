"""The tape of a pass: what it computes before its first site, to be played back in the other passes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree

from dropkit.uncertainty.engine.pending import Pending, replaced_pending

__all__ = ["MismatchError", "Player", "Recorder", "Reel", "Tape", "writes"]

Function = Callable[..., Any]


class MismatchError(Exception):
    """A pass does something else before its first site than the one that was recorded."""


@dataclass(frozen=True)
class Entry:
    """A call with tensors that all passes share.

    Args:
        function: What was called.
        results: The tensors in what it returned; None if every pass has to call it, as it tells numbers, or writes
            into a tensor that passes do not share.
        structure: Where they are in what it returned.
    """

    function: Function
    results: tuple[Any, ...] | None
    structure: Any = None


class Tape:
    """The calls of a pass before its first site, in order."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.inputs: dict[int, Tensor] = {}  # what the model was given, by its number among the leaves
        self.axes: list[tuple[int | None, ...]] | None = None  # of results, along which passes would lie

    @property
    def is_empty(self) -> bool:
        """Whether passes have nothing in common that takes any time."""
        return not any(map(_is_plain, (each for entry in self.entries for each in entry.results or ())))

    def compare(self, other: "Tape", copies: int) -> None:
        """Learn along which axes passes lie, from the tape of as many passes that ran at once.

        Raises:
            MismatchError: If they have not run alike.
        """
        if [each.function for each in self.entries] != [each.function for each in other.entries]:
            raise MismatchError("other functions are called where passes run together")
        pairs = zip(self.entries, other.entries, strict=True)
        self.axes = [tuple(_axes(one.results or (), many.results or (), copies)) for one, many in pairs]

    def versions(self) -> list[int]:
        """Return numbers of which one changes where somebody writes into what is recorded."""
        bases = (*self.inputs.values(), *(each for entry in self.entries for each in entry.results or ()))
        return [base._version for base in bases if isinstance(base, Tensor) and not base.is_inference()]


def _axes(one: tuple[Any, ...], many: tuple[Any, ...], copies: int) -> Iterator[int | None]:
    if len(one) != len(many):
        raise MismatchError("another structure is returned where passes run together")
    for base, wide in zip(one, many, strict=True):
        if not isinstance(base, Tensor) or not isinstance(wide, Tensor):
            yield None
            continue
        if base.dim() != wide.dim():
            raise MismatchError("tensors have other axes where passes run together")
        longer = [axis for axis in range(base.dim()) if base.shape[axis] != wide.shape[axis]]
        if len(longer) > 1 or any(base.shape[axis] * copies != wide.shape[axis] for axis in longer):
            raise MismatchError("tensors have other lengths where passes run together")
        yield longer[0] if longer else None


class Reel(Protocol):
    """What answers the calls of a pass with tensors that all passes share."""

    is_over: bool

    def call(self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what a call returns."""

    def end(self) -> None:
        """Note that the first site is met: from now on every pass is another."""


class _Reel:
    def __init__(self, tape: Tape) -> None:
        self.tape, self.is_over = tape, False
        self._pending: dict[int, Pending] = {}  # by the ids of their bases, which the tape or they keep

    def call(self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what a call returns."""
        if not self.is_over:
            return self._common(function, args, dict(kwargs))
        return really(function, args, kwargs)

    def _common(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError  # a recorder runs the call, a player answers it

    def pending(self, base: Tensor, axis: int | None, copies: int) -> Pending:
        """Return the pending tensor of a base, always the same one."""
        known = self._pending.get(id(base))
        if known is None:
            known = self._pending[id(base)] = Pending(base, axis, copies)
        return known


class Recorder(_Reel):
    """Runs a pass, and records it."""

    def end(self) -> None:
        """Note that the first site is met."""
        self.is_over = True

    def input(self, number: int, base: Tensor) -> Pending:
        """Return what stands for an input of the model."""
        self.tape.inputs[number] = base
        return self.pending(base, None, 1)

    def _common(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        others = [value for value in _tensors((args, kwargs)) if not value.is_inference()]
        before = [value._version for value in others]
        real_args, real_kwargs = replaced_pending((args, kwargs), lambda pending: pending.base)
        result = function(*real_args, **real_kwargs)
        leaves, structure = _pytree.tree_flatten(result)
        is_written = [value._version for value in others] != before
        if is_written or not (result is None or any(map(_is_plain, leaves))):
            self.tape.entries.append(Entry(function, None))
            return result
        self.tape.entries.append(Entry(function, tuple(leaves), structure))
        wrapped = [self.pending(each, None, 1) if _is_plain(each) else each for each in leaves]
        return _pytree.tree_unflatten(wrapped, structure)


class Player(_Reel):
    """Answers the calls of passes that run together from the tape of one.

    Args:
        tape: The tape.
        copies: How many passes run together.
    """

    def __init__(self, tape: Tape, copies: int) -> None:
        super().__init__(tape)
        self.copies, self._position = copies, 0

    def end(self) -> None:
        """Note that the first site is met."""
        if not self.is_over and self._position != len(self.tape.entries):
            raise MismatchError("the first site is met earlier")
        self.is_over = True

    def input(self, number: int, axis: int | None) -> Pending:
        """Return what stands for an input of the model, as the recorded pass has left it."""
        return self.pending(self.tape.inputs[number], axis, self.copies)

    def _common(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        position, self._position = self._position, self._position + 1
        if position >= len(self.tape.entries) or self.tape.entries[position].function != function:
            raise MismatchError(f"{getattr(function, '__name__', function)} is called, which was not recorded")
        entry = self.tape.entries[position]
        if entry.results is None:
            is_of_shape = function in _OF_SHAPES
            return function(*args, **kwargs) if is_of_shape else really(function, args, kwargs)
        axes = self.tape.axes[position] if self.tape.axes is not None else (None,) * len(entry.results)
        results = [
            self.pending(each, axis, self.copies) if _is_plain(each) else each
            for each, axis in zip(entry.results, axes, strict=True)
        ]
        return _pytree.tree_unflatten(results, entry.structure)


def really(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a function with the values of pending tensors."""
    is_written = writes(function, kwargs)
    real_args, real_kwargs = replaced_pending((args, dict(kwargs)), lambda pending: pending.filled(is_written))
    return function(*real_args, **real_kwargs)


def writes(function: Function, kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a function may write into its arguments."""
    name = getattr(function, "__name__", "")
    is_operator = name.startswith("__i") and name not in ("__int__", "__index__", "__invert__", "__iter__")
    is_in_place = (name.endswith("_") and not name.endswith("__")) or is_operator or name == "__setitem__"
    return is_in_place or bool(kwargs.get("inplace")) or "out" in kwargs


def _is_plain(value: Any) -> bool:
    return type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided and not value.is_nested


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among a call's arguments that are not pending."""
    leaves = _pytree.tree_leaves(values)
    return [each for each in leaves if isinstance(each, Tensor) and type(each) is not Pending]


def _shape_functions() -> Iterator[Function]:
    for name in ("dim", "size", "numel", "nelement", "ndimension", "is_floating_point", "is_complex", "element_size",
                 "get_device", "__len__", "storage_offset", "is_contiguous", "stride", "type"):  # fmt: skip
        yield getattr(Tensor, name)
    for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_nested", "is_sparse", "is_quantized",
                 "is_meta", "is_mkldnn", "is_mps", "is_xpu", "itemsize", "nbytes", "requires_grad",
                 "is_leaf", "grad_fn", "grad"):  # fmt: skip
        yield getattr(Tensor, name).__get__
    yield from (torch.is_floating_point, torch.is_complex, torch.is_tensor, torch.numel)


_OF_SHAPES = frozenset(_shape_functions())  # which tell what holds of a tensor without values, too
