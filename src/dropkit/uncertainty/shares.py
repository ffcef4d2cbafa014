"""Which tensors of a forward are computed from what a sigmoid or a softmax has returned, whatever their values."""

from collections.abc import Callable, Mapping, Sequence
from math import inf, prod
from typing import Any

from torch import Tensor
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from dropkit.sites.interception.values import version_of
from dropkit.uncertainty.bounded import ARITHMETIC, FUNCTIONS, Bounded, joined
from dropkit.uncertainty.engine.tape import writes

__all__ = ["Shares"]

Function = Callable[..., Any]


class Shares:
    """The tensors of a forward that a sigmoid or a softmax has returned, or that are computed from such alone."""

    def __init__(self) -> None:
        self._noted = WeakTensorKeyDictionary()  # what is known of a tensor, and its version, which writing changes

    def of(self, value: Any) -> Bounded | None:
        """Return what is known of a tensor; nothing of one that was written into since."""
        if not isinstance(value, Tensor):
            return None
        found, version = self._noted.get(value, (None, 0))
        return found if version == version_of(value) else None

    def maker(self, value: Any) -> str:
        """Return what has made the probabilities that a tensor holds; nothing of other tensors."""
        found = self.of(value)
        return found.maker if found is not None and found.is_probability else ""

    def made(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bounded | None:
        """Return what is known of a call's result; to be asked before it runs, as it may write into what it takes.

        Args:
            function: What is called.
            args: By position.
            kwargs: By name.
        """
        made = self._made(_name(function), args, {name: each for name, each in kwargs.items() if name != "out"})
        if writes(function, kwargs):
            for target in (*args[:1], *_pytree.tree_leaves(kwargs.get("out"))):
                self._forget(target)
        return made

    def _forget(self, target: Any) -> None:
        """Drop the notes of all views of a tensor that is written into, of which inference mode keeps no version."""
        if isinstance(target, Tensor) and target.is_inference():
            place = target.untyped_storage().data_ptr()
            for each in [one for one in self._noted if one.is_inference()]:
                if each.untyped_storage().data_ptr() == place:
                    del self._noted[each]

    def _made(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bounded | None:
        if name in _MAKERS:
            return _MAKERS[name]
        taken = [*args, *kwargs.values()]
        if name in ARITHMETIC:
            return self._computed(name, args, kwargs)
        if name in ("where", "masked_fill", "maximum", "minimum", "fmax", "fmin"):
            condition = {"where": 0, "masked_fill": 1}.get(name)
            return joined(self._operand(each) for place, each in enumerate(taken) if place != condition)
        if not taken:
            return None
        if name in _JOINS:
            return joined(map(self.of, _pytree.tree_leaves(taken[0])))
        if name == "copy":
            return self.of(taken[1]) if len(taken) > 1 else None
        if name == "sum":
            one, axes = self.of(taken[0]), args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
            return None if one is None else one.times(_count(taken[0], axes))
        return self._kept(name, taken)

    def _computed(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bounded | None:
        """Return what is known of the result of arithmetic on two tensors, or on one and a number."""
        operands = [*args, *(kwargs[each] for each in ("input", "other") if each in kwargs)]
        if len(operands) != 2 or kwargs.keys() - {"input", "other"}:
            return None
        one, other = map(self._operand, operands)
        return ARITHMETIC[name](one, other) if one is not None and other is not None else None

    def _operand(self, value: Any) -> Bounded | None:
        """Return what is known of a tensor or a number."""
        return Bounded("", float(value), float(value)) if isinstance(value, int | float) else self.of(value)

    def _kept(self, name: str, taken: Sequence[Any]) -> Bounded | None:
        """Return what is known of the result of a function of one tensor."""
        one, other = self.of(taken[0]), taken[1] if len(taken) > 1 else None
        if one is None or (name in _EXTREMES and isinstance(other, Tensor)):
            return None
        if name in FUNCTIONS:
            return FUNCTIONS[name](one)
        return one if name in _KEEPS or name in _EXTREMES else None

    def add(self, made: Bounded | None, result: Any) -> None:
        """Note what a call has returned, which may be what it has written into.

        Args:
            made: What is known of that, as `made` tells.
            result: It.
        """
        for each in _pytree.tree_leaves(result):
            if isinstance(each, Tensor) and made is not None and each.is_floating_point():
                self._noted[each] = made, version_of(each)
            elif isinstance(each, Tensor):  # of inference mode no version tells that it was written into
                self._noted.pop(each, None)


def _count(tensor: Tensor, axes: Any) -> int:
    """Return how many numbers a sum along axes is of."""
    if tensor.is_nested:
        return 0
    each = range(tensor.dim()) if axes is None else [axes] if isinstance(axes, int) else axes
    return prod(tensor.shape[axis] for axis in each) if tensor.dim() else 1


def _name(function: Function) -> str:
    """Return the name of a function, whether or not it works in place, or of the attribute that it reads."""
    name: str = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", "")
    return name if name.endswith("__") else name.removesuffix("_")


_SIGMOID, _SOFTMAX = Bounded("sigmoid", 0, 1), Bounded("softmax", 0, 1)
_MAKERS = {
    **dict.fromkeys(("sigmoid", "special_expit", "expit", "hardsigmoid"), _SIGMOID),
    **dict.fromkeys(("softmax", "special_softmax", "softmin", "gumbel_softmax"), _SOFTMAX),
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), Bounded("sigmoid", -inf, 0)),
    **dict.fromkeys(("log_softmax", "special_log_softmax"), Bounded("softmax", -inf, 0)),
    "tanh": Bounded("tanh", -1, 1),
}
_EXTREMES = frozenset(("max", "min", "amax", "amin", "median", "sort", "msort", "topk", "kthvalue"))
_JOINS = frozenset(
    ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack")
)  # fmt: skip
_KEEPS = frozenset(
    ("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "transpose",
     "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "adjoint", "T", "mT", "H", "mH", "real", "data",
     "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "flip", "roll", "rot90", "diagonal",
     "__getitem__", "select", "narrow", "index_select", "gather", "take_along_dim", "masked_select", "chunk", "split",
     "split_with_sizes", "tensor_split", "hsplit", "vsplit", "unbind", "unfold", "clone", "detach", "contiguous",
     "alias", "requires_grad", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda",
     "pin_memory", "positive", "clamp", "clip", "clamp_min", "clamp_max", "nan_to_num", "mean", "round")
)  # fmt: skip  # what gives numbers of its first argument alone, or leaves them between the same
