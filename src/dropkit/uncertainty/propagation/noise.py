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
from dropkit.uncertainty.propagation.origins import Draws, Masked
from dropkit.uncertainty.propagation.rules import RULES
from dropkit.uncertainty.propagation.variables import Sources, Variable

__all__ = ["COMPOSED", "NOISE", "Masking", "dropped"]


@dataclass(frozen=True)
class Masking:
    """A mask that makes of x ``scale * x + shift``, or a constant where it drops.

    Args:
        rate: The probability of dropping.
        scale: What an element is multiplied with if it is kept.
        shift: What is then added.
        dropped: What an element becomes if it is dropped.
    """

    rate: float
    scale: float = 1.0
    shift: float = 0.0
    dropped: float = 0.0


def realised_rate(call: Call) -> float:
    """Return the rate that is really drawn, a multiple of 2**-32."""
    rate = call.p
    if isinstance(rate, Tensor):
        if rate.numel() != 1:
            raise UnsupportedError(f"{call.function.kind} with several rates has no rule")
        rate = rate.item()
    return threshold(float(rate)) / 2**32


def _dropout(call: Call, is_scaled: bool) -> Masking:
    rate = realised_rate(call)
    return Masking(rate, 1 / (1 - rate) if is_scaled and rate < 1 else 1.0)


def _plain(call: Call) -> Masking:
    return _dropout(call, call.arguments.get("scale_at", "train") == "train")


def _path(call: Call) -> Masking:
    return _dropout(call, bool(call.arguments["scale_by_keep"]))


def _alpha(call: Call) -> Masking:
    rate = realised_rate(call)
    if rate == 1:
        return Masking(1.0)
    mean, variance = call.arguments.get("mean", 0.0), call.arguments.get("variance", 1.0)
    kept = 1 - rate
    scale = math.sqrt(variance / (kept * (rate * (SATURATION - mean) ** 2 + variance)))
    shift = mean - scale * (kept * mean + rate * SATURATION)
    return Masking(rate, scale, shift, scale * SATURATION + shift)


def dropped(sources: Sources, variable: Variable, mask: Masking, shared: tuple[int, ...]) -> Variable:
    """Return a variable with a mask, one draw for all elements along the shared axes of an example."""
    constant = torch.full_like(variable.mean, mask.dropped)
    if mask.rate == 1:
        return sources.variable(constant)
    kept = variable
    if mask.scale != 1 or mask.shift or not variable.is_random:  # whose tensor other code may overwrite
        kept = sources.variable(mask.scale * variable.mean + mask.shift, *variable.scaled(mask.scale))
    if mask.rate == 0:
        return kept
    keep = 1 - mask.rate
    draws = Draws.of(sources, kept, keep, math.sqrt(mask.rate * keep), shared, mask.rate)
    return Masked(draws, kept, constant, draws.copied(sources, kept)).combined(sources)


def _gaussian(sources: Sources, call: Call) -> Variable:
    """Return a variable whose elements are multiplied with Gaussian numbers of mean 1."""
    variable, rate = call.arguments["input"], realised_rate(call)
    draws = Draws.of(sources, variable, 1.0, math.sqrt(rate / (1 - rate)), _shared(call))
    return draws.times(sources, variable, draws.copied(sources, variable), torch.zeros_like(variable.mean))


Rule = Callable[[Sources, Call], Variable]
_Kind = Callable[[Call], Masking]


def _rule(kind: _Kind) -> Rule:
    def rule(sources: Sources, call: Call) -> Variable:
        return dropped(sources, call.arguments["input"], kind(call), _shared(call))

    return rule


def _shared(call: Call) -> tuple[int, ...]:
    """Return the shared axes of a call whose input is a random tensor."""
    return call.changed(input=call.arguments["input"].mean).shared


def _added(sources: Sources, call: Call) -> Variable:
    """Return a residual connection whose branch has dropout."""
    branch = dropped(sources, call.arguments["input"], _plain(call), ())
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
    return dropped(sources, found, _plain(call), ())


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
    "gaussian_dropout": _gaussian,
    "activation_dropout": _activated,
    "drop_connect": _connections,
    "dropout_add": _added,
}
"""The rule of each kind of site."""

COMPOSED = frozenset(("activation_dropout", "drop_connect", "dropout_add"))
"""Those that do more than drop, and so do something where they do not drop."""
