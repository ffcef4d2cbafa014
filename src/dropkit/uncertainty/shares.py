"""Which tensors of a forward are probabilities, as a sigmoid or a softmax has returned them, whatever their values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

from dropkit.sites.interception.values import version_of
from dropkit.uncertainty.engine.tape import writes

__all__ = ["Shares"]

Function = Callable[..., Any]


class Shares:
    """The tensors of a forward that a sigmoid or a softmax has returned, or that are made of such alone."""

    def __init__(self) -> None:
        self._noted = WeakTensorKeyDictionary()  # who has made a tensor, and its version, which writing changes

    def maker(self, value: Any) -> str:
        """Return which of them has returned a tensor; nothing of others, and of one that was written into since."""
        if not isinstance(value, Tensor):
            return ""
        maker, version = self._noted.get(value, ("", 0))
        return maker if version == version_of(value) else ""

    def made(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return which of them a call's result is of; to be asked before it runs, as it may write into what it takes.

        Args:
            function: What is called.
            args: By position.
            kwargs: By name.
        """
        maker = self._made(_name(function), args, kwargs)
        if writes(function, kwargs):
            for target in (*args[:1], *_pytree.tree_leaves(kwargs.get("out"))):
                self._forget(target)
        return maker

    def _forget(self, target: Any) -> None:
        """Drop the notes of all views of a tensor that is written into, of which inference mode keeps no version."""
        if isinstance(target, Tensor) and target.is_inference():
            place = target.untyped_storage().data_ptr()
            for each in [one for one in self._noted if one.is_inference()]:
                if each.untyped_storage().data_ptr() == place:
                    del self._noted[each]

    def _made(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        if name in _MAKERS:
            return _MAKERS[name]
        taken = [*args, *kwargs.values()]
        if name in _JOINS and taken:
            makers = [self.maker(each) for each in _pytree.tree_leaves(taken[0])]
            return makers[0] if makers and all(makers) else ""
        if name == "copy":
            return self.maker(taken[1]) if len(taken) > 1 else ""
        return self.maker(taken[0]) if name in _KEEPS and taken else ""

    def add(self, maker: str, result: Any) -> None:
        """Note what a call has returned, which may be what it has written into.

        Args:
            maker: Which of them that is of, as `made` tells.
            result: It.
        """
        for each in _pytree.tree_leaves(result):
            if isinstance(each, Tensor) and maker:
                self._noted[each] = maker, version_of(each)
            elif isinstance(each, Tensor):  # of inference mode no version tells that it was written into
                self._noted.pop(each, None)


def _name(function: Function) -> str:
    """Return the name of a function, whether or not it works in place, or of the attribute that it reads."""
    name: str = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", "")
    return name if name.endswith("__") else name.removesuffix("_")


_MAKERS = {
    **dict.fromkeys(("sigmoid", "special_expit", "expit", "hardsigmoid"), "sigmoid"),
    **dict.fromkeys(("softmax", "special_softmax", "softmin"), "softmax"),
}
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
     "pin_memory", "positive", "clamp", "clip", "clamp_min", "clamp_max", "nan_to_num")
)  # fmt: skip  # what gives numbers of its first argument alone, or leaves them in [0, 1]
