"""The rule of every function that random tensors may be given to."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.propagation import linear
from dropkit.uncertainty.propagation.gaussian import Response, exponential, piecewise_linear, quadrature, rectified
from dropkit.uncertainty.propagation.interpolation import interpolated
from dropkit.uncertainty.propagation.origins import Applied, through_masks
from dropkit.uncertainty.propagation.pooling import max_pooled
from dropkit.uncertainty.propagation.variables import Sources, Variable

__all__ = ["CONVERSIONS", "FROM_SHAPE", "LEAVES_FRESH", "METADATA", "RULES"]

_Rule = Callable[..., Any]


def _named(*names: str) -> Iterator[Callable[..., Any]]:
    """Yield the functions and methods of these names, in place ones included."""
    for name in names:
        for place in (F, torch, Tensor):
            yield from (getattr(place, each) for each in (name, f"{name}_") if hasattr(place, each))


def _elementwise(name: str, response: Callable[..., Response]) -> _Rule:
    """Return the rule of an elementwise function, from what its options make of its moments."""

    def rule(sources: Sources, input: Variable, *rest: Any, inplace: bool = False, **named: Any) -> Variable:
        made = response(*rest, **named)
        is_falling = name in _FALLING_IF_NEGATIVE and any(option < 0 for option in (*rest, *named.values()))
        if name in _INCREASING and not is_falling:
            return Applied(made, input).result(sources)
        return sources.transformed(input, made)

    return through_masks(rule)


def _relu() -> Response:
    return rectified(0.0)


def _leaky_relu(negative_slope: float = 0.01) -> Response:
    return rectified(negative_slope)


def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Response:
    return rectified((lower + upper) / 2)  # in training it draws, and is refused before


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Response:
    return _clamp(min_val, max_val)


def _relu6() -> Response:
    return _hardtanh(0.0, 6.0)


def _clamp(min: float | None = None, max: float | None = None) -> Response:
    if isinstance(min, Tensor | Variable) or isinstance(max, Tensor | Variable):
        raise UnsupportedError("with bounds that are tensors")
    low = -math.inf if min is None else float(min)
    high = math.inf if max is None else float(max)
    if not (low < math.inf and high > -math.inf):  # nor is NaN
        raise UnsupportedError(f"to [{low}, {high}]")
    if low >= high:  # PyTorch takes the upper bound
        return piecewise_linear([high], [0.0, 0.0], high)
    knots = [bound for bound in (low, high) if math.isfinite(bound)]
    if not knots:
        return piecewise_linear([0.0], [1.0, 1.0], 0.0)
    slopes = [1.0 if low == -math.inf else 0.0, 1.0, 0.0 if high < math.inf else 1.0]
    return piecewise_linear(knots, slopes if len(knots) == 2 else [slopes[0], slopes[2]], knots[0])


def _clamp_max(max: float) -> Response:
    return _clamp(max=max)


def _softshrink(lambd: float = 0.5) -> Response:
    return piecewise_linear([-lambd, lambd], [1.0, 0.0, 1.0], 0.0)


def _threshold(threshold: float, value: float) -> Response:
    if threshold != value:
        raise UnsupportedError("that jumps")
    return _clamp(min=value)


def _absolute() -> Response:
    return rectified(-1.0)


def _hardsigmoid() -> Response:
    return piecewise_linear([-3.0, 3.0], [0.0, 1 / 6, 0.0], 0.0)


def _pow(exponent: Any) -> Response:
    if not isinstance(exponent, int | float) or exponent < 1 or exponent != int(exponent):
        raise UnsupportedError("with an exponent that is no positive integer")
    power = int(exponent)
    return quadrature(lambda x: x**power)


def _elu(alpha: float = 1.0) -> Response:
    return exponential(alpha, 1.0, 1.0)


def _celu(alpha: float = 1.0) -> Response:
    return exponential(alpha, 1.0, 1 / alpha)


def _selu() -> Response:
    return exponential(1.6732632423543772, 1.0507009873554805, 1.0)


_CLOSED: Mapping[str, Callable[..., Response]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "softshrink": _softshrink,
    "threshold": _threshold,
    "rrelu": _rrelu,
    "abs": _absolute,
    "hardsigmoid": _hardsigmoid,
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "pow": _pow,
    "__pow__": _pow,
    "__ipow__": _pow,
}
_INTEGRATED = (
    "gelu", "tanh", "sigmoid", "silu", "softplus", "mish", "hardswish", "logsigmoid", "softsign", "tanhshrink",
    "exp", "square", "sin", "cos",
)  # fmt: skip
_INCREASING = frozenset(
    ("relu", "leaky_relu", "hardtanh", "relu6", "clamp", "clip", "clamp_min", "clamp_max", "softshrink", "threshold",
     "hardsigmoid", "elu", "celu", "selu", "tanh", "sigmoid", "softplus", "logsigmoid", "softsign", "tanhshrink", "exp")
)  # fmt: skip
_FALLING_IF_NEGATIVE = frozenset(("leaky_relu", "elu"))  # where their option is
_MOVED = (
    "flatten", "unflatten", "reshape", "view", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze",
    "contiguous", "clone", "chunk", "split", "unbind", "select", "narrow", "flip", "expand", "repeat",
    "pixel_shuffle", "channel_shuffle", "__getitem__",
)  # fmt: skip
_WEIGHTED = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip
_CONVERTED = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "detach", "cpu", "cuda")


def _integrated(name: str) -> _Rule:
    """Return the rule of an elementwise function without a closed form; with the options of the call."""
    function = getattr(F, name, None) or getattr(torch, name)

    def response(*rest: Any, **named: Any) -> Response:
        return quadrature(lambda x: function(x, *rest, **named))

    return _elementwise(name, response)


def _prelu(sources: Sources, input: Variable, weight: Tensor) -> Variable:
    """Return a rectifier with a slope of each channel."""
    if isinstance(weight, Variable):
        raise UnsupportedError("with random weights")
    axes = max(input.mean.dim() - 2, 0) if weight.numel() > 1 else 0
    return sources.transformed(input, rectified(weight.double().reshape(-1, *(1,) * axes)))


def _table() -> Iterator[tuple[Callable[..., Any], _Rule]]:
    for name, response in _CLOSED.items():
        yield from ((function, _elementwise(name, response)) for function in _named(name))
    for name in _INTEGRATED:
        yield from ((function, _integrated(name)) for function in _named(name))
    for name in _MOVED:
        yield from ((function, linear.rearranged(function)) for function in _named(name))
    for name in _CONVERTED:
        yield from ((function, linear.converted(function)) for function in _named(name))
    for name in _WEIGHTED:
        yield getattr(F, name), linear.weighted(getattr(F, name))
    for names, rule in _ARITHMETIC.items():
        yield from ((function, rule) for function in _named(*names))
    for name, method in (("sum", torch.sum), ("mean", torch.mean)):
        yield from ((function, linear.reduced(method)) for function in _named(name))
    for axes in (1, 2, 3):
        yield from ((f, linear.averaged(f, axes)) for f in _named(f"avg_pool{axes}d"))
        yield from ((f, linear.adaptively_averaged(f, axes)) for f in _named(f"adaptive_avg_pool{axes}d"))
        yield from ((f, max_pooled(axes)) for f in _named(f"max_pool{axes}d"))
    yield from ((function, through_masks(_prelu)) for function in _named("prelu"))
    yield torch.broadcast_tensors, linear.broadcast
    yield from ((getattr(Tensor, name).__get__, linear.turned(name)) for name in ("T", "mT"))
    yield F.interpolate, interpolated
    yield torch.where, linear.chosen
    yield Tensor.where, linear.chosen_else
    yield F.batch_norm, through_masks(linear.batch_normalised)


_ARITHMETIC: Mapping[tuple[str, ...], _Rule] = {
    ("add", "__add__", "__radd__", "__iadd__"): linear.added,
    ("sub", "subtract", "__sub__", "__isub__"): linear.subtracted,
    ("rsub", "__rsub__"): linear.subtracted_from,
    ("mul", "multiply", "__mul__", "__rmul__", "__imul__"): linear.multiplied,
    ("div", "divide", "true_divide", "__truediv__", "__itruediv__"): linear.divided,
    ("neg", "negative", "__neg__"): linear.negated,
    ("matmul", "mm", "mv", "__matmul__"): linear.projected,
    ("inner",): linear.inner,
    ("addmm",): linear.biased_projection,
    ("cat", "concat", "concatenate"): linear.concatenated,
    ("stack",): linear.stacked,
    ("masked_fill",): linear.filled,
}

RULES: Mapping[Callable[..., Any], _Rule] = dict(_table())
"""Rules by function: they take the sources, and the call's arguments with variables for random tensors."""

LEAVES_FRESH = frozenset(
    [
        *_named(*_CLOSED, *_INTEGRATED, "prelu", *(f"max_pool{axes}d" for axes in (1, 2, 3))),
        *(getattr(F, name) for name in ("batch_norm", *_WEIGHTED)),
    ]
)
"""Those of the functions whose rules know what to do with fresh noise."""

CONVERSIONS = frozenset(_named(*_CONVERTED))
"""Those that make tensors of other types."""

FROM_SHAPE = frozenset(
    _named("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
           "new_tensor")
)  # fmt: skip
"""Functions that ask a tensor for its shape, type and place, and make another."""

_PROPERTIES = ("shape", "ndim", "dtype", "device", "layout", "is_nested", "requires_grad", "is_sparse", "is_cuda",
               "is_quantized", "is_mkldnn")  # fmt: skip
_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "__len__", "is_floating_point", "is_complex",
            "is_contiguous", "stride", "element_size", "get_device")  # fmt: skip
METADATA = frozenset(
    [getattr(Tensor, name).__get__ for name in _PROPERTIES]
    + [
        function
        for name in _METHODS
        for place in (Tensor, torch)
        for function in [getattr(place, name, None)]
        if function
    ]
)
"""Functions that ask for no value."""
