"""What a pass computes from its masks: whether Python looks at it, and whether examples depend on one another by it.

Passes run together as if they were one batch. Whatever is computed from masks, and is as large for two passes as for
three, is one value for all of them: what uses it makes a pass depend on the others. And what Python reads of them, it
reads once for all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from dropkit.functional.examples import NumberedKey
from dropkit.uncertainty.engine.orders import Orders, caller, joint_order
from dropkit.uncertainty.engine.tape import writes

__all__ = ["Trace", "joint"]

Function = Callable[..., Any]
_KEY = -1  # the number of a tensor that is a key, and tells what to draw


@dataclass(frozen=True)
class Traced:
    """A call that takes or returns what depends on masks.

    Args:
        function: The name of what was called.
        place: The name of the module that called it.
        sources: Numbers of the tensors that it takes and that depend on masks.
        results: Numbers of those that it returns or writes.
        shapes: Their shapes.
        is_read: Whether Python reads values by it.
        along: The axis along which it makes values depend on one another, if it gives as many as it takes.
    """

    function: str
    place: str
    sources: tuple[int, ...]
    results: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    is_read: bool
    along: int | None = None

    @property
    def kind(self) -> Any:
        """What is the same in another pass that runs alike."""
        return self.function, self.sources, self.results

    @property
    def shown(self) -> str:
        """The call, in messages."""
        return _shown(self.function, self.place)


class Trace:
    """The calls of a pass that take or return what depends on masks, in order."""

    def __init__(self) -> None:
        self.calls: list[Traced] = []
        self.returned: dict[int, str] = {}  # what the model has returned, by number
        self.orders = Orders()  # whatever they are of
        self._numbers = WeakTensorKeyDictionary()  # of tensors that depend on masks
        self._count = 0
        self._has_drawn = False

    def number(self, value: Any) -> int | None:
        """Return the number of a tensor that depends on masks, or that is a view of one; None of others."""
        if not isinstance(value, Tensor):
            return None
        found: int | None = self._numbers.get(value)
        if found is None and value._base is not None:
            found = self._numbers.get(value._base)
        return found

    def sources(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the numbers of what a call takes; to be asked before it runs, as it may write into that."""
        name = getattr(function, "__name__", "")
        if name in _OF_SHAPES:
            return ()
        taken: Any = args[:1] if name in _LIKE_OTHERS else (args, kwargs)
        if name in _FILLED:
            taken = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
        numbers = map(self.number, _pytree.tree_leaves(taken))
        return tuple(number for number in numbers if number is not None and number != _KEY)

    def add(
        self,
        function: Function,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sources: tuple[int, ...],
        result: Any,
        *,
        draws: bool,
        place: str,
    ) -> None:
        """Note a call that has run.

        Args:
            function: What was called.
            args: By position.
            kwargs: By name.
            sources: What it took, as `sources` tells.
            result: What it returned.
            draws: Whether it has drawn a mask.
            place: The name of the module that called it.
        """
        has_key = self._has_key(args, kwargs)
        is_traced = bool(sources) or draws or has_key
        name = getattr(function, "__name__", str(function))
        found = [each for each in _pytree.tree_leaves(result) if isinstance(each, Tensor)]
        if writes(function, kwargs):
            written = [*args[:1], *_pytree.tree_leaves(kwargs.get("out"))]
            found += [each for each in written if isinstance(each, Tensor) and not any(each is one for one in found)]
            found += [each._base for each in found if each._base is not None]
        self.orders.add(name, _shown(name, place), args, kwargs, found, is_late=self._has_drawn, meets_masks=is_traced)
        self._has_drawn |= draws
        if not is_traced:
            return
        if has_key and not sources and all(each.dtype == torch.int64 for each in found):
            for each in found:  # keys are made of keys
                self._numbers[each] = _KEY
            return
        numbers = tuple(range(self._count, self._count + len(found)))
        self._count += len(found)
        for each, number in zip(found, numbers, strict=True):
            self._numbers[each] = number
        shapes = tuple(() if each.is_nested else tuple(each.shape) for each in found)
        is_read = bool(sources) and self._is_read(function, args, kwargs)
        along = _along(name, args, kwargs) if sources else None
        self.calls.append(Traced(name, place, sources, numbers, shapes, is_read, along))

    def _has_key(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a call is told what to draw."""
        leaves = _pytree.tree_leaves((args, kwargs))
        return kwargs.get("key") is not None or any(
            type(each) is NumberedKey or self.number(each) == _KEY for each in leaves
        )

    def end(self, names: Sequence[str], leaves: Sequence[Any]) -> None:
        """Note what the model has returned, and what that is called."""
        for name, leaf in zip(names, leaves, strict=True):
            number = self.number(leaf)
            if number is not None:
                self.returned.setdefault(number, name)
        self.orders.end(leaves)

    def _is_read(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a call gives Python values, or as many numbers as values tell."""
        name = getattr(function, "__name__", "")
        if name == "__getitem__":
            parts = _pytree.tree_leaves(args[1:])
            return any(isinstance(each, Tensor) and _is_mask(each) and self.number(each) is not None for each in parts)
        if name == "where":
            return len(args) + len(kwargs) == 1
        if name == "repeat_interleave":
            return any(self.number(each) is not None for each in (*args[1:2], kwargs.get("repeats")))
        return name in _READS and not (name == "__bool__" and _is_validated())


def _is_validated() -> bool:
    """Tell whether it is `torch.distributions` that reads, to check what it is given: that raises, or does nothing."""
    frame = caller()
    return frame is not None and frame.f_code in _VALIDATIONS


_VALIDATIONS = frozenset(each.__code__ for each in (Distribution.__init__, Distribution._validate_sample))


def _shown(function: str, place: str) -> str:
    """Return a call as messages show it."""
    return f"{function.strip('_')}()" + (f" in {place!r}" if place else "")


def joint(few: Trace, many: Trace) -> str:
    """Return why passes that run together depend on one another, or run by values of all; empty if they do not.

    Args:
        few: The trace of two passes that ran together.
        many: That of three.
    """
    why = _joint(few, many)
    packs = (one for one in few.calls if one.sources and "pack_padded_sequence" in one.function)
    if why and (pack := next(packs, None)) is not None:  # whose sizes only look as if they came of masks
        return f"sequences are packed after dropout, by {pack.shown}, and examples have no axis of their own in them"
    return why or joint_order(few.orders, many.orders, is_late=True)


def _joint(few: Trace, many: Trace) -> str:
    makers: dict[int, Traced] = {}  # of tensors that all examples share, by number
    for one in few.calls:
        if one.is_read:
            return f"Python reads values that depend on masks, by {one.shown}"
    if [each.kind for each in few.calls] != [each.kind for each in many.calls]:
        return "more passes together call other functions"
    for one, other in zip(few.calls, many.calls, strict=True):
        used = [makers[number] for number in one.sources if number in makers]
        for number, shape, longer in zip(one.results, one.shapes, other.shapes, strict=True):
            if shape != longer:
                why = _of_all(used[0]) if used else _of_others(one, shape, longer)
                if why:
                    return why
            elif 0 not in shape:
                makers[number] = used[0] if used else one
    shared = ((name, makers[number]) for number, name in few.returned.items() if number in makers)
    return next((f"{name} is one value of all examples, by {call.shown}" for name, call in shared), "")


def _of_all(call: Traced) -> str:
    return f"examples depend on one value of all of them, by {call.shown}"


def _of_others(call: Traced, shape: tuple[int, ...], longer: tuple[int, ...]) -> str:
    """Return why a call lets examples depend on others, by what it gives for two passes and for three; or nothing."""
    if call.sources and 4 * prod(longer) >= 9 * prod(shape):  # as many as there are pairs
        return f"examples meet one another, by {call.shown}"
    if call.along is not None and shape[call.along] != longer[call.along]:
        return f"examples depend on others by their order, by {call.shown}"
    return ""


def _along(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return the axis along which a call makes values depend on others there, while it gives as many as it takes."""
    name = name.removesuffix("_")
    if name not in _ALONG:
        return None
    given = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    return given if type(given) is int else _ALONG[name]


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


_READS = frozenset(
    ("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__", "__contains__", "__dlpack__", "item",
     "tolist", "numpy", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "allclose",
     "is_nonzero", "bincount", "one_hot")
)  # fmt: skip
_OF_SHAPES = frozenset(
    ("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros", "new_ones",
     "new_empty", "new_empty_strided")
)  # fmt: skip  # what they return has no values of what they take
_FILLED = frozenset(("full_like", "new_full", "new_tensor"))  # it has those of all but the first
_ALONG = {
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), None),
    **dict.fromkeys(("sort", "argsort"), -1),
    "msort": 0,
}  # what gives as many values as it takes, each of others along an axis; and that, unless it is told
_LIKE_OTHERS = frozenset(("expand_as", "view_as", "reshape_as", "type_as", "to"))  # of the first alone
