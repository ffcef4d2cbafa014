"""Orders of examples that a forward computes from their values, though no mask is in them, such as that of lengths.

Where passes run together, such an order is one of the examples of all passes, and puts them among one another. Where
values are equal, as lengths often are, it may look as if it did not: the order of equal values is that which they had,
or another one from some number of them on.

PyTorch's functions are followed. What Python makes of values that it reads, in lists or by NumPy, is not: an index that
it gives after it has read any counts as such an order.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Orders", "caller", "joint_order"]


@dataclass
class Order:
    """A call that orders values, or picks some of them by their order.

    Args:
        shown: The call, in messages.
        length: How many values it orders.
        is_late: Whether a mask was drawn before it.
        is_used: Whether anything that depends on masks depends on the order, or Python reads it.
    """

    shown: str
    length: int
    is_late: bool
    is_used: bool = False


class Orders:
    """The orders that a pass computes, and what depends on them."""

    def __init__(self) -> None:
        self.found: list[Order] = []
        self._marks = WeakTensorKeyDictionary()  # the numbers of the orders that tensors depend on
        self._moved = WeakTensorKeyDictionary()  # the order in which tensors have their examples, if that is all
        self._orders = WeakTensorKeyDictionary()  # indices that have each example once
        self._undoing = WeakTensorKeyDictionary()  # the order that an index undoes
        self._given = WeakTensorKeyDictionary()  # whole numbers that Python has given after it read values
        self._picked = WeakTensorKeyDictionary()  # places where something holds
        self._has_read = False

    def add(
        self,
        name: str,
        shown: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        results: Sequence[Tensor],
        *,
        is_late: bool,
        meets_masks: bool,
    ) -> None:
        """Note a call that has run.

        Args:
            name: The name of what was called.
            shown: The same, in messages.
            args: By position.
            kwargs: By name.
            results: The tensors that it returned or wrote.
            is_late: Whether a mask was drawn before.
            meets_masks: Whether it takes, or draws, what depends on masks.
        """
        leaves = _pytree.tree_leaves((args, kwargs))
        marks = self._of(leaves)
        if marks and (meets_masks or (name in _READS and not _is_packing())):
            self._use(marks)
        length = self._length(name, args, kwargs)
        if length is not None and not _is_packing():
            number = len(self.found)
            shown += ", with an index that Python computes" if name.strip("_") in _INDEXED else ""
            self.found.append(Order(shown, length, is_late, is_used=meets_masks))
            marks |= {number}
        if marks and not meets_masks:
            marks = self._followed(name, args, kwargs, results, marks)
        for each in results if marks else ():
            self._marks[each] = self._of([each]) | marks
        self._has_read |= name in _READS and any(isinstance(each, Tensor) and each.numel() > 1 for each in leaves)
        whole = [each for each in results if _is_whole(each)]
        if self._has_read and (name in _GIVES or any(map(self._is_given, leaves))):
            self._given.update((each, True) for each in whole)
        is_picking = name in _PICKS or (name == "where" and len(args) + len(kwargs) == 1)
        if is_picking or any(self._is_picked(each) for each in leaves):
            self._picked.update((each, True) for each in whole)

    def end(self, leaves: Sequence[Any]) -> None:
        """Note what the model has returned."""
        self._use(self._of(leaves))

    def _of(self, values: Sequence[Any]) -> frozenset[int]:
        """Return the numbers of the orders that values depend on."""
        tensors = [each for each in values if isinstance(each, Tensor)]
        tensors += [each._base for each in tensors if each._base is not None]
        return frozenset().union(*(self._marks.get(each, ()) for each in tensors))

    def _followed(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        results: Sequence[Tensor],
        marks: frozenset[int],
    ) -> frozenset[int]:
        """Note in which order results have their examples, and return the orders that they depend on: not those undone.

        What undoes an order has to be made as such, for of equal values any order looks like that.
        """
        name = name.strip("_")
        if name in ("sort", "argsort"):
            is_up = len(args) < 3 and not kwargs.get("descending")
            if is_up and args and args[0] in self._orders:
                self._undoing[results[-1]] = args[0]
            if results[-1].dim() == 1:
                self._orders[results[-1]] = True
            if name == "sort":
                self._moved[results[0]] = results[1]
            return marks
        source, index = (args[0] if args else None), (_index(name, args, kwargs) if name in _SELECTING else None)
        if isinstance(index, Tensor):
            if isinstance(source, Tensor) and self._moved.get(source) is not None:
                return marks if self._undoing.get(index) is not self._moved[source] else frozenset()
            if index in self._orders and not self._of([source]):
                self._moved.update((each, index) for each in results)
            return marks
        orders = [self._moved.get(each) for each in _pytree.tree_leaves((args, kwargs)) if self._of([each])]
        if orders and orders[0] is not None and all(each is orders[0] for each in orders):
            self._moved.update((each, orders[0]) for each in results)
        return marks

    def _length(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
        """Return how many values a call orders; None if it orders none."""
        name = name.strip("_")
        if name in _AXES:
            return _sorted_length(name, args, kwargs)
        if name in _JOINS:  # those of one kind, and then those of another
            picked = [each for each in _pytree.tree_leaves(args) if self._is_picked(each)]
            return sum(map(len, picked)) if len(picked) > 1 else None
        if not self._has_read or name not in _INDEXED:
            return None
        index = _index(name, args, kwargs)
        if not self._is_given(index):
            return None
        return index.numel() if isinstance(index, Tensor) else len(index)

    def _is_given(self, value: Any) -> bool:
        """Tell whether whole numbers come from Python, which has read values before."""
        if isinstance(value, list):
            return bool(value) and all(isinstance(each, int | np.integer) for each in value)
        if isinstance(value, np.ndarray):
            return bool(value.ndim) and value.dtype.kind in "iu"
        if not isinstance(value, Tensor):
            return False
        return value in self._given or _is_of_array(value)

    def _is_picked(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._picked

    def _use(self, marks: frozenset[int]) -> None:
        for number in marks:
            self.found[number].is_used = True


def joint_order(few: Orders, many: Orders, *, is_late: bool) -> str:
    """Return why passes that run together would order examples of one another; empty if they would not.

    Args:
        few: The orders of two passes that ran together.
        many: Those of three, that ran alike.
        is_late: Whether those alone matter that are computed after the first mask is drawn, as where passes share what
            comes before it.
    """
    for one, other in zip(few.found, many.found, strict=False):
        if one.is_used and one.length != other.length and one.is_late >= is_late:
            return f"examples depend on others by their order, by {one.shown}"
    return ""


def caller() -> "FrameType | None":
    """Return the frame of the code that has called the function which is being followed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("dropkit.", "torch.overrides")):
        frame = frame.f_back
    return frame


def _is_packing() -> bool:
    """Tell whether it is PyTorch that orders sequences to pack them, which it undoes, or reads how many they are."""
    frame = caller()
    return frame is not None and frame.f_globals.get("__name__") in ("torch.nn.utils.rnn", "torch.nn.modules.rnn")


def _sorted_length(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Return how many values a call sorts."""
    value = args[0] if args else kwargs.get("input")
    if not isinstance(value, Tensor) or value.is_nested:
        return None
    position, axis = _AXES[name]
    axis = args[position] if len(args) > position else kwargs.get("dim", kwargs.get("axis", axis))
    is_axis = type(axis) is int and -value.dim() <= axis < value.dim()
    return value.shape[axis] if is_axis else value.numel()


def _index(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the index by which a call goes along an axis; of several that stand beside one another, the first."""
    if name in ("getitem", "setitem"):
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        return next((each for each in parts if isinstance(each, Tensor | list | np.ndarray)), None)
    dim, index = (*args[1:3], None, None)[:2]
    is_along = name.startswith("index") or kwargs.get("dim", dim) == 0
    return kwargs.get("index", index) if is_along else None


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _is_of_array(tensor: Tensor) -> bool:
    """Tell whether a tensor has the whole numbers of one of NumPy's arrays, whose memory is not its own."""
    if type(tensor) is not Tensor or not _is_whole(tensor):
        return False
    try:
        return not tensor.untyped_storage().resizable()
    except (NotImplementedError, RuntimeError):  # of tensors of other kinds, which have no memory of any array
        return False


_AXES: Mapping[str, tuple[int, int | None]] = {
    **dict.fromkeys(("sort", "argsort"), (1, -1)),
    "msort": (1, 0),
    **dict.fromkeys(("topk", "kthvalue"), (2, -1)),
    "unique": (4, None),
    "unique_consecutive": (3, None),
    **dict.fromkeys(("cummax", "cummin", "cumprod"), (1, None)),
}  # where calls say along which axis they order, and along which they do unless they are told
_INDEXED = frozenset(
    ("getitem", "setitem", "gather", "scatter", "scatter_add", "index_select", "index_add", "index_copy", "index_fill")
)
_SELECTING = frozenset(("getitem", "index_select"))
_JOINS = frozenset(("cat", "concat", "concatenate", "hstack"))
_PICKS = frozenset(("nonzero", "argwhere"))
_GIVES = frozenset(("tensor", "as_tensor", "asarray", "new_tensor"))
_READS = frozenset(
    ("item", "tolist", "numpy", "__array__", "__index__", "__int__", "__float__", "__iter__", "__dlpack__")
)
