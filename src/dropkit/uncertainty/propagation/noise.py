"""What each kind of dropout does to a random tensor."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.functional.alpha import SATURATION
from dropkit.random import threshold
from dropkit.sites.calls.functions import Call
from dropkit.uncertainty.propagation.linear import added
from dropkit.uncertainty.propagation.rules import RULES
from dropkit.uncertainty.propagation.variables import Sources, Variable

__all__ = ["COMPOSED", "NOISE", "Multiplication"]


@dataclass(frozen=True)
class Multiplication:
    """Noise that makes of x ``gain * x + offset + s * (x - fill)``, with s of mean 0 and of a variance.

    Every kind of dropout that draws one number for each unit is of this form.

    Args:
        gain: What an element is multiplied with in the mean.
        variance: The variance of s.
        fill: What an element becomes when it is dropped, before anything is scaled.
        offset: What is added in the mean.
        rate: The probability of the lower of two values that s has; 0 where it has more.
    """

    gain: float
    variance: float
    fill: float = 0.0
    offset: float = 0.0
    rate: float = 0.0


def realised_rate(call: Call) -> float:
    """Return the rate that is really drawn, a multiple of 2**-32."""
    rate = call.p
    if isinstance(rate, Tensor):
        if rate.numel() != 1:
            raise UnsupportedError(f"{call.function.kind} with several rates has no rule")
        rate = rate.item()
    return threshold(float(rate)) / 2**32


def _dropout(call: Call, scaled: bool) -> Multiplication:
    rate = realised_rate(call)
    if not scaled:
        return Multiplication(1 - rate, rate * (1 - rate), rate=rate)
    return Multiplication(1.0, rate / (1 - rate), rate=rate) if rate < 1 else Multiplication(0.0, 0.0)


def _plain(call: Call) -> Multiplication:
    return _dropout(call, call.arguments.get("scale_at", "train") == "train")


def _path(call: Call) -> Multiplication:
    return _dropout(call, bool(call.arguments["scale_by_keep"]))


def _gaussian(call: Call) -> Multiplication:
    rate = realised_rate(call)
    return Multiplication(1.0, rate / (1 - rate))


def _alpha(call: Call) -> Multiplication:
    rate = realised_rate(call)
    if rate == 1:
        return Multiplication(0.0, 0.0)
    mean, variance = call.arguments.get("mean", 0.0), call.arguments.get("variance", 1.0)
    kept = 1 - rate
    scale = math.sqrt(variance / (kept * (rate * (SATURATION - mean) ** 2 + variance)))
    shift = mean - scale * (kept * mean + rate * SATURATION)
    offset = scale * rate * SATURATION + shift
    return Multiplication(scale * kept, scale**2 * kept * rate, SATURATION, offset, rate)


def multiplied(sources: Sources, variable: Variable, noise: Multiplication, shared: tuple[int, ...]) -> Variable:
    """Return a variable with noise, one draw for all elements along the shared axes of an example."""
    axes = tuple(axis for axis in shared if axis > 0 and variable.mean.shape[axis] > 1)
    if axes:
        sources.settle(variable)
    made = sources.variable(noise.gain * variable.mean + noise.offset, *variable.scaled(noise.gain))
    if noise.variance == 0:
        return made
    deviation = variable.mean - noise.fill
    if not axes:
        if noise.rate and not variable.is_random:
            sources.add_masks(made, math.sqrt(noise.variance) * deviation, noise.rate)
        else:
            sources.add_uncorrelated(made, noise.variance * (variable.variance + deviation**2))
        return made
    blocks = _blocks(variable.mean, axes)
    root = math.sqrt(noise.variance)
    # One source a block for the mean; the product of a block's draw with each source of the input is a source, too.
    sources.add(made, root * deviation * blocks)
    rest = variable.private
    if len(blocks) * len(variable.factors) <= sources.limit(variable.event):
        sources.add(made, root * (variable.factors.unsqueeze(1) * blocks).flatten(0, 1))
    else:
        rest = variable.variance
        sources.neglect(noise.variance * variable.factors.square().sum(0), made.variance + noise.variance * rest)
    if rest is not None:
        made.private = noise.variance * rest + (0 if made.private is None else made.private)
    return made


def _blocks(like: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return an indicator of each block of elements that share a draw, of shape (blocks, 1, ...)."""
    lengths = [1 if axis + 1 in axes else length for axis, length in enumerate(like.shape[1:])]
    count = math.prod(lengths)
    return (
        torch.eye(count, dtype=like.dtype, device=like.device)
        .reshape(count, 1, *lengths)
        .expand(count, 1, *like.shape[1:])
    )


Rule = Callable[[Sources, Call], Variable]
_Kind = Callable[[Call], Multiplication]


def _rule(kind: _Kind) -> Rule:
    def rule(sources: Sources, call: Call) -> Variable:
        return multiplied(sources, call.arguments["input"], kind(call), _shared(call))

    return rule


def _shared(call: Call) -> tuple[int, ...]:
    """Return the shared axes of a call whose input is a random tensor."""
    return call.changed(input=call.arguments["input"].mean).shared


def _added(sources: Sources, call: Call) -> Variable:
    """Return a residual connection whose branch has dropout."""
    branch = multiplied(sources, call.arguments["input"], _plain(call), ())
    for each in (branch, call.arguments["residual"]):
        if isinstance(each, Variable):
            sources.settle(each)
    return added(sources, call.arguments["residual"], branch)


def _activated(sources: Sources, call: Call) -> Variable:
    """Return an activation with dropout after it."""
    name, _, approximate = call.arguments["activation"].partition("_")
    variable, bias = call.arguments["input"], call.arguments.get("bias")
    if bias is not None:
        sources.settle(variable)
        variable = added(sources, variable, bias)
    options = {"approximate": approximate} if approximate else {}
    found: Variable = RULES[getattr(F, name)](sources, variable, **options)
    return multiplied(sources, found, _plain(call), ())


def _connections(sources: Sources, call: Call) -> Variable:
    """Return a linear map whose every weight is dropped on its own."""
    given = call.arguments
    variable, weight, bias = given["input"], given["weight"], given.get("bias")
    sources.settle(variable)
    rate = realised_rate(call)
    mean = F.linear(variable.mean, weight, bias)
    if rate == 1:
        return sources.variable(torch.zeros_like(mean))
    made = sources.mapped(variable, mean, lambda x: F.linear(x, weight), lambda x: F.linear(x, weight**2))
    power = variable.variance + variable.mean**2
    spread = F.linear(power, weight**2, None if bias is None else bias**2)
    sources.add_uncorrelated(made, rate / (1 - rate) * spread)
    return made


NOISE: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "locked_dropout"), _rule(_plain)
    ),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), _rule(_alpha)),
    "drop_path": _rule(_path),
    "gaussian_dropout": _rule(_gaussian),
    "activation_dropout": _activated,
    "drop_connect": _connections,
    "dropout_add": _added,
}
"""The rule of each kind of site."""

COMPOSED = frozenset(("activation_dropout", "drop_connect", "dropout_add"))
"""Those that do more than drop, and so do something where they do not drop."""
