"""Linear maps of random tensors: they keep second moments exact, but where a rank is reached."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.propagation.variables import Sources, Variable, columns, widened

__all__ = [
    "adaptively_averaged",
    "added",
    "averaged",
    "batch_normalised",
    "biased_projection",
    "broadcast",
    "check_batch",
    "chosen",
    "chosen_else",
    "concatenated",
    "converted",
    "divided",
    "filled",
    "for_each_axis",
    "inner",
    "multiplied",
    "negated",
    "projected",
    "rearranged",
    "reduced",
    "stacked",
    "subtracted",
    "subtracted_from",
    "turned",
    "weighted",
]

_Function = Callable[..., Any]
_NO_EXAMPLES = "without an axis of examples (give a single example x as x[None])"


def weighted(function: _Function) -> _Function:
    """Return the rule of a linear layer or a convolution."""

    def rule(
        sources: Sources, input: Variable, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
    ) -> Variable:
        if not isinstance(input, Variable) or isinstance(weight, Variable) or isinstance(bias, Variable):
            raise UnsupportedError("with random weights")
        if input.mean.dim() < (2 if function is F.linear else weight.dim()):
            raise UnsupportedError(_NO_EXAMPLES)
        mean = function(input.mean, weight, bias, *rest, **named)
        return sources.mapped(
            input,
            mean,
            lambda x: function(x, weight, None, *rest, **named),
            lambda x: function(x, weight.square(), None, *rest, **named),
        )

    return rule


def projected(sources: Sources, input: Any, other: Any) -> Variable:
    """Return the product of a variable and a constant matrix or vector."""
    is_constant = isinstance(other, Tensor) and other.dim() in (1, 2)
    if not is_constant or not isinstance(input, Variable) or input.mean.dim() < 2:
        raise UnsupportedError("of anything but a random tensor and a constant matrix or vector")
    if other.dim() == 2:
        return weighted(F.linear)(sources, input, other.T)
    column = weighted(F.linear)(sources, input, other[None])
    return rearranged(Tensor.squeeze)(sources, column, -1)


def inner(sources: Sources, input: Any, other: Any) -> Variable:
    """Return the inner products of a variable's rows with constant vectors."""
    rows, vectors = (other, input) if isinstance(input, Tensor) and input.dim() == 1 else (input, other)
    return projected(sources, rows, vectors.T if isinstance(vectors, Tensor) and vectors.dim() == 2 else vectors)


def biased_projection(sources: Sources, bias: Any, input: Any, other: Any) -> Variable:
    """Return `projected` with a constant added."""
    return added(sources, projected(sources, input, other), bias)


def added(sources: Sources, input: Any, other: Any, *, alpha: float = 1) -> Variable:
    """Return the sum of two random tensors, or of one and a constant."""
    mean = torch.add(_mean(input), _mean(other), alpha=alpha)
    parts = [(each, scale) for each, scale in ((input, 1), (other, alpha)) if isinstance(each, Variable)]
    factors, private = mean.new_zeros((sources.count, *mean.shape)), None
    for each, scale in parts:
        _check_kept(each, mean)
        if len(each.factors):
            factors[: len(each.factors)] += scale * _aligned(each.factors, mean)
        if each.private is not None:
            private = scale**2 * each.private + (0 if private is None else private)
    return sources.variable(mean, factors[: max(len(each.factors) for each, _ in parts)], private)


def subtracted(sources: Sources, input: Any, other: Any, *, alpha: float = 1) -> Variable:
    """Return a difference."""
    return added(sources, input, other, alpha=-alpha)


def subtracted_from(sources: Sources, input: Any, other: Any) -> Variable:
    """Return the difference the other way round."""
    return subtracted(sources, other, input)


def multiplied(sources: Sources, input: Any, other: Any) -> Variable:
    """Return the product of a random tensor and a constant."""
    variable, constant = (input, other) if isinstance(input, Variable) else (other, input)
    if isinstance(constant, Variable):
        raise UnsupportedError("of two random tensors")
    mean = variable.mean * constant
    _check_kept(variable, mean)
    if isinstance(constant, Tensor) and constant.dim():
        constant = constant.expand(mean.shape)
    private = None if variable.private is None else constant**2 * variable.private
    return sources.variable(mean, constant * _aligned(variable.factors, mean), private)


def divided(sources: Sources, input: Any, other: Any) -> Variable:
    """Return a random tensor divided by a constant."""
    if isinstance(other, Variable):
        raise UnsupportedError("by a random tensor")
    return multiplied(sources, input, 1 / other)


def negated(sources: Sources, input: Variable) -> Variable:
    """Return a random tensor with the other sign."""
    return multiplied(sources, input, -1)


def chosen(sources: Sources, condition: Tensor, input: Any, other: Any) -> Variable:
    """Return the elements of one tensor where a condition holds, which no random one can be, and else of another."""
    dtype = next(each.mean.dtype for each in (input, other) if isinstance(each, Variable))

    def part(value: Any, where: Tensor) -> Any:
        if isinstance(value, Variable):
            return multiplied(sources, value, where.to(dtype))
        value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device=where.device)
        return torch.where(where, value, torch.zeros_like(value))

    return added(sources, part(input, condition), part(other, condition.logical_not()))


def chosen_else(sources: Sources, input: Any, condition: Any, other: Any) -> Variable:
    """Return `chosen`, as the method of a tensor has its arguments."""
    return chosen(sources, condition, input, other)


def filled(sources: Sources, input: Any, mask: Any, value: Any) -> Variable:
    """Return a random tensor with a constant in the place of some elements."""
    return chosen(sources, mask, value, input)


def reduced(function: _Function) -> _Function:
    """Return the rule of a sum or a mean over axes of an example."""

    def rule(sources: Sources, input: Variable, dim: Any = None, keepdim: bool = False) -> Variable:
        rank = input.mean.dim()
        axes = tuple(axis % rank for axis in ((dim,) if isinstance(dim, int) else dim or (0,)))
        if 0 in axes:
            raise UnsupportedError("over the axis of examples")
        mean = function(input.mean, axes, keepdim)
        factors = columns(lambda x: function(x, axes, keepdim), input.factors, mean)
        private = None if input.private is None else input.private.sum(axes, keepdim)
        if private is not None and function is torch.mean:
            private = private / math.prod(input.mean.shape[axis] for axis in axes) ** 2
        return sources.variable(mean, factors, private)

    return rule


def averaged(function: _Function, axes: int) -> _Function:
    """Return the rule of average pooling."""

    def rule(
        sources: Sources,
        input: Variable,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Variable:
        check_batch(input, axes + 2)
        kernel = for_each_axis(kernel_size, axes)
        steps = for_each_axis(stride, axes) if stride not in (None, (), []) else kernel
        divisor = (divisor_override,) if axes > 1 else ()

        def pooled(x: Tensor) -> Tensor:
            return function(x, kernel, steps, padding, ceil_mode, count_include_pad, *divisor)

        mean = pooled(input.mean)
        if input.private is None:
            return sources.variable(mean, columns(pooled, input.factors, mean))
        rest = [(n - k) % s for n, k, s in zip(input.mean.shape[2:], kernel, steps, strict=True)]
        if any(for_each_axis(padding, axes)) or (ceil_mode and any(rest)):
            raise UnsupportedError("with padding or ceil_mode, of noise beyond the rank,")
        size = divisor_override or math.prod(kernel)
        return _pooled(sources, input, mean, pooled, size, all(map(int.__ge__, steps, kernel)))

    return rule


def adaptively_averaged(function: _Function, axes: int) -> _Function:
    """Return the rule of average pooling to a given size."""

    def rule(sources: Sources, input: Variable, output_size: Any) -> Variable:
        check_batch(input, axes + 2)

        def pooled(x: Tensor) -> Tensor:
            return function(x, output_size)

        mean = pooled(input.mean)
        if input.private is None:
            return sources.variable(mean, columns(pooled, input.factors, mean))
        lengths = list(zip(input.mean.shape[2:], mean.shape[2:], strict=True))
        if any(before % after for before, after in lengths):
            raise UnsupportedError("to a size that does not divide the input's, of noise beyond the rank,")
        return _pooled(sources, input, mean, pooled, math.prod(before // after for before, after in lengths), True)

    return rule


def _pooled(
    sources: Sources, input: Variable, mean: Tensor, pooled: _Function, size: int, is_disjoint: bool
) -> Variable:
    """Return averages over windows of one size: of private noise they stay uncorrelated where no two overlap."""
    if not is_disjoint or input.private is None:
        return sources.mapped(input, mean, pooled, lambda x: pooled(x) / size)
    return sources.variable(mean, columns(pooled, input.factors, mean), pooled(input.private) / size)


def batch_normalised(
    sources: Sources,
    input: Variable,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Variable:
    """Return batch normalisation with the running statistics: a scale and a shift of each channel."""
    if training or running_mean is None or running_var is None:
        raise UnsupportedError("with the statistics of the batch")
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    shape = (-1, *(1,) * (input.mean.dim() - 2))
    scale = scale.reshape(shape).expand(input.mean.shape)
    return sources.variable(scale * input.mean + shift.reshape(shape), *input.scaled(scale))


def rearranged(function: _Function) -> _Function:
    """Return the rule of a function that moves or picks elements, each within its example."""

    def rule(sources: Sources, input: Variable, *rest: Any, **named: Any) -> Any:
        if function.__name__ == "squeeze" and not (rest or named) and len(input.mean) == 1:
            raise UnsupportedError("of the axis of a single example, too (name the axis, as in squeeze(-1)),")
        size = math.prod(input.event)
        places = torch.arange(input.mean.numel(), device=input.mean.device).reshape(input.mean.shape)
        results = function(input.mean, *rest, **named)
        is_one = isinstance(results, Tensor)
        for moved in [function(places, *rest, **named)] if is_one else function(places, *rest, **named):
            _check_places(moved, input, size)

        def pick(x: Tensor) -> tuple[Tensor, ...]:
            return (function(x, *rest, **named),) if is_one else tuple(function(x, *rest, **named))

        means = pick(input.mean)
        factors = torch.func.vmap(pick)(input.factors) if len(input.factors) else (None,) * len(means)
        private = (None,) * len(means) if input.private is None else pick(input.private)
        made = [sources.variable(*parts) for parts in zip(means, factors, private, strict=True)]
        return made[0] if is_one else tuple(made)

    return rule


def turned(name: str) -> _Function:
    """Return the rule of an attribute that swaps axes of a tensor."""

    def turn(x: Tensor) -> Tensor:
        return getattr(x, name)

    return rearranged(turn)


def broadcast(sources: Sources, *tensors: Any) -> tuple[Any, ...]:
    """Return random tensors and constants expanded to one shape."""
    shape = torch.broadcast_shapes(*(_mean(each).shape for each in tensors))
    expanded = rearranged(Tensor.expand)
    return tuple(
        expanded(sources, each, shape) if isinstance(each, Variable) else each.expand(shape) for each in tensors
    )


def _check_places(moved: Tensor, input: Variable, size: int) -> None:
    """Raise where elements leave their example, or private noise is to be in several places."""
    examples = torch.arange(len(input.mean), device=moved.device).reshape(-1, *(1,) * (moved.dim() - 1))
    is_kept = moved.dim() > 0 and len(moved) == len(examples)
    if not is_kept or not bool((moved // max(size, 1) == examples).all()):
        raise UnsupportedError("across the examples of a batch")
    if input.private is not None and len(moved) and moved[0].unique().numel() < moved[0].numel():
        raise UnsupportedError("that copies elements, of noise beyond the rank,")


def converted(function: _Function) -> _Function:
    """Return the rule of a function that changes the type or the place of a tensor's values, and nothing else."""

    def rule(sources: Sources, input: Variable, *rest: Any, **named: Any) -> Variable:
        mean = widened(function(input.mean, *rest, **named))
        if not mean.is_floating_point():
            raise UnsupportedError(f"to {mean.dtype}")
        private = None if input.private is None else input.private.to(mean)
        return sources.variable(mean, input.factors.to(mean), private)

    return rule


def concatenated(sources: Sources, tensors: Any, dim: int = 0) -> Variable:
    """Return random tensors and constants joined along an axis of the examples."""
    return _joined(sources, torch.cat, tensors, dim)


def stacked(sources: Sources, tensors: Any, dim: int = 0) -> Variable:
    """Return random tensors and constants stacked along a new axis of the examples."""
    return _joined(sources, torch.stack, tensors, dim)


def _joined(sources: Sources, function: _Function, tensors: Any, dim: int) -> Variable:
    means = [_mean(each) for each in tensors]
    mean = function(means, dim)
    axis = dim % mean.dim()
    if axis == 0:
        raise UnsupportedError("along the axis of examples")
    variables = [
        each if isinstance(each, Variable) else Variable(each.expand(len(mean), *each.shape[1:])) for each in tensors
    ]
    factors = function([each.padded(sources.count) for each in variables], axis + 1)
    is_private = any(each.private is not None for each in variables)
    private = [torch.zeros_like(each.mean) if each.private is None else each.private for each in variables]
    return sources.variable(mean, factors, function(private, axis) if is_private else None)


def _mean(value: Any) -> Any:
    return value.mean if isinstance(value, Variable) else torch.as_tensor(value)


def check_batch(input: Variable, rank: int) -> None:
    """Raise where an input has no axis of examples, as single ones need not have."""
    if input.mean.dim() != rank:
        raise UnsupportedError(_NO_EXAMPLES)


def _check_kept(variable: Variable, mean: Tensor) -> None:
    """Raise where an element would be copied by broadcasting that has private noise, or along the examples."""
    if variable.mean.dim() and (mean.dim() != variable.mean.dim() or len(mean) != len(variable.mean)):
        raise UnsupportedError("that broadcasts the axis of examples")
    if variable.private is not None and mean.shape != variable.mean.shape:
        raise UnsupportedError("that copies elements, of noise beyond the rank,")


def _aligned(factors: Tensor, mean: Tensor) -> Tensor:
    return factors.expand(len(factors), *mean.shape)


def for_each_axis(value: Any, axes: int) -> tuple[int, ...]:
    """Return an option of a pooling function as a number for each axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))
