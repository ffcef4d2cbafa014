"""Functions that random tensors are followed through: what each does to their elements, and calls of them."""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Operation", "Rule", "find_rule", "is_homogeneous", "is_odd"]


class Rule(Enum):
    """What a function does to the elements of a tensor."""

    SAME = auto()  # moves or repeats them
    CAST = auto()
    ROUND = auto()
    COMPARE = auto()
    LOGIC = auto()
    PLAIN = auto()  # any other function of each
    SUBTRACT = auto()
    SIGN = auto()  # a step at 0
    MULTIPLY = auto()
    DIVIDE = auto()
    FILL = auto()
    CHOOSE = auto()
    COPY = auto()
    POOL = auto()
    COUNT = auto()
    SUMMARISE = auto()
    INDEX = auto()
    ASSIGN = auto()
    JOIN = auto()  # tensors
    THROUGH = auto()  # any other function that random numbers are not followed through, but scales are
    MIX = auto()  # with those of other tensors, in a way that is not followed


_NAMES: Mapping[Rule, str] = {
    Rule.SAME: """alias broadcast_to chunk clone contiguous cpu cuda detach expand expand_as flatten flip index_select
        movedim narrow permute pin_memory repeat repeat_interleave requires_grad_ reshape reshape_as roll select split
        squeeze swapaxes t tile transpose unbind unflatten unsqueeze view view_as""",
    Rule.CAST: "bfloat16 bool byte char double float half int long short to type type_as",
    Rule.ROUND: "ceil fix floor round trunc",
    Rule.COMPARE: "eq ge greater greater_equal gt le less less_equal lt ne not_equal",
    Rule.LOGIC: "and bitwise_and bitwise_not bitwise_or bitwise_xor invert logical_and logical_not logical_or or xor",
    Rule.PLAIN: """abs add clamp clamp_max clamp_min exp leaky_relu log neg negative pow reciprocal relu sigmoid sqrt
        square""",
    Rule.SUBTRACT: "rsub sub subtract",
    Rule.SIGN: "heaviside sign",
    Rule.MULTIPLY: "mul multiply",
    Rule.DIVIDE: "div divide true_divide truediv",
    Rule.FILL: "masked_fill",
    Rule.CHOOSE: "where",
    Rule.COPY: "copy_",
    Rule.POOL: "max_pool1d max_pool2d max_pool3d",
    Rule.COUNT: "count_nonzero mean sum",
    Rule.SUMMARISE: """amax amin aminmax cummax cummin kthvalue max median min msort nanmedian nanquantile norm quantile
        sort std topk var""",
    Rule.INDEX: "getitem",
    Rule.ASSIGN: "setitem",
    Rule.JOIN: "cat column_stack concat concatenate hstack stack vstack",
    Rule.THROUGH: """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d bmm
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cumsum elu gelu hardswish hardtanh
        interpolate layer_norm linear log_softmax matmul mm mv pad rms_norm selu silu softmax softplus tanh""",
    Rule.MIX: "addcmul einsum lerp",
}


_ODD = ("clamp", "clamp_max", "clamp_min", "neg", "negative")
_HOMOGENEOUS = ("abs", "leaky_relu", "neg", "negative", "relu")


def _spellings(name: str) -> Iterable[Callable[..., Any]]:
    for owner in (torch, Tensor, F):
        for spelled in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
            function = getattr(owner, spelled, None)
            if callable(function):
                yield function


_RULES: Mapping[Callable[..., Any], Rule] = MappingProxyType(
    {function: rule for rule, names in _NAMES.items() for name in names.split() for function in _spellings(name)}
    | {getattr(Tensor, name).__get__: Rule.SAME for name in ("T", "mT", "data")}
    | {getattr(Tensor, name): Rule.PLAIN for name in ("__rdiv__", "__rtruediv__")}  # a number by the tensor
)


def find_rule(function: Callable[..., Any]) -> Rule | None:
    """Return what any function of PyTorch does to elements, or None where that is not followed."""
    try:
        return _RULES.get(function)
    except TypeError:  # it has no hash
        return None


def is_odd(operation: "Operation") -> bool:
    """Tell whether a function leaves noise around 0 there; of clamping it is assumed."""
    return getattr(operation.function, "__name__", "").strip("_") in _ODD


def is_homogeneous(operation: "Operation") -> bool:
    """Tell whether a function of each element makes of the multiple of a tensor the multiple of its result."""
    return getattr(operation.function, "__name__", "").strip("_") in _HOMOGENEOUS


class Operation:
    """A call of a function that random tensors are followed through.

    Args:
        function: The function.
        rule: What it does to elements.
        args: Its positional arguments.
        kwargs: Its arguments by name.
    """

    __slots__ = ("args", "function", "kwargs", "operands", "rule")

    def __init__(
        self, function: Callable[..., Any], rule: Rule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.function, self.rule, self.args, self.kwargs = function, rule, args, kwargs
        given = (*args, *kwargs.values()) if kwargs else args
        self.operands = [one for value in given for one in (value if isinstance(value, tuple | list) else (value,))]

    @property
    def target(self) -> Tensor | None:
        """The tensor that the function changes in place; None where it makes a new one."""
        name = getattr(self.function, "__name__", "")
        in_place = name in ("__setitem__", "__iand__", "__ior__") or (name.endswith("_") and not name.endswith("__"))
        return self.args[0] if in_place else None

    def operand(self, position: int, *names: str) -> Any:
        """Return an argument by its position or one of its names."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def substituted(self, others: Mapping[int, Any]) -> "Operation":
        """Return the same call with other operands, given by the ids of what they stand for."""

        def other(value: Any) -> Any:
            if type(value) in (tuple, list):
                return type(value)(map(other, value))
            return others.get(id(value), value)

        args = tuple(map(other, self.args))
        return Operation(self.function, self.rule, args, {name: other(value) for name, value in self.kwargs.items()})

    def run(self) -> Any:
        """Call the function."""
        return self.function(*self.args, **self.kwargs)
