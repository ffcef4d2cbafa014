"""How variables were made, for functions that are nearer to the truth, or exact, if they look behind them.

A mask commutes with every elementwise function: what f makes of a masked tensor is f of what is kept, or f of the
constant that stands where it is dropped. So nothing need be taken for Gaussian because of a mask before linear maps mix
its elements. It commutes with max pooling, too, where a window shares one draw, as in dropped channels. And the largest
of what an increasing function makes is that function of the largest, so max pooling comes first, which is nearer to the
truth: the largest of Gaussian variables is closer to a Gaussian one than that of rectified ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.propagation.gaussian import Response
from dropkit.uncertainty.propagation.variables import Noise, Sources, Variable

__all__ = ["Applied", "Draws", "Masked", "through_masks"]

_FEW = 64  # draws: of more, their two values are not followed from where linear maps mix them
_Rule = Callable[..., Any]


@dataclass(frozen=True)
class Applied:
    """An increasing elementwise function of a variable.

    Args:
        response: The function.
        input: The variable.
    """

    response: Response
    input: Variable

    def result(self, sources: Sources) -> Variable:
        """Return what the function makes of the variable."""
        made = sources.transformed(self.input, self.response)
        made.origin = self
        return made


@dataclass(frozen=True)
class Draws:
    """Independent numbers that multiply the elements of an example.

    Args:
        mean: Their mean.
        deviation: Their standard deviation.
        axes: The axes along which a number is shared.
        noise: The numbers, less their mean and over their deviation, where each element has one of its own.
        first: The number of their first source, where they are shared.
    """

    mean: float
    deviation: float
    axes: tuple[int, ...]
    noise: Noise
    first: int = 0

    @staticmethod
    def of(
        sources: Sources, variable: Variable, mean: float, deviation: float, shared: tuple[int, ...], rate: float = 0.0
    ) -> "Draws":
        """Return new draws for a variable; a rate is the probability of the lower of two values."""
        axes = tuple(axis for axis in shared if axis > 0 and variable.mean.shape[axis] > 1)
        is_followed = len(variable.event) == 1 and variable.event[0] <= _FEW and not variable.is_random
        if not axes:
            return Draws(mean, deviation, axes, Noise(rate if is_followed else 0.0))
        sources.settle(variable)
        first, sources.count = sources.count, sources.count + len(_blocks(variable.mean, axes))
        if is_followed and rate:
            sources.rates |= dict.fromkeys(range(first, sources.count), rate)
        return Draws(mean, deviation, axes, Noise(), first)

    def copied(self, sources: Sources, variable: Variable) -> Variable:
        """Return what is distributed as a variable, but independent of it, and where draws are not shared.

        A draw of mean 0 times a variable has the covariances of this, with anything that is linear in the variable.
        """
        copy = sources.variable(variable.mean)
        if not variable.is_random:
            return copy
        if not self.axes:
            sources.add_uncorrelated(copy, variable.variance)
            return copy
        blocks = _blocks(variable.mean, self.axes)
        if len(blocks) * len(variable.factors) <= sources.limit(variable.event):
            copy.private = variable.private
            sources.add(copy, (variable.factors.unsqueeze(1) * blocks).flatten(0, 1))
        else:
            copy.private = variable.variance
            part = self.deviation**2 * variable.factors.square().sum(0)
            whole = (self.mean**2 + self.deviation**2) * variable.variance + (self.deviation * variable.mean) ** 2
            sources.neglect(part, whole)
        return copy

    def times(self, sources: Sources, variable: Variable, copy: Variable, rest: Tensor) -> Variable:
        """Return ``rest + draw * (variable - rest)``, with what `copied` makes of the variable."""
        whole = variable.variance
        # After a function the copy has not quite the variable's variance, where that had covariances or followed masks.
        share = (whole / copy.variance.clamp_min(torch.finfo(whole.dtype).tiny)).clamp_max(1).sqrt()
        mean = self.mean * variable.mean + (1 - self.mean) * rest
        parts = _sum(variable.scaled(self.mean), copy.scaled(self.deviation * share))
        made = sources.variable(mean, *parts)
        if copy.is_random:
            missing = (whole - share**2 * copy.variance).clamp_min(0)
            sources.add_uncorrelated(made, self.deviation**2 * missing)
        spread = self.deviation * (variable.mean - rest)
        if self.axes:
            blocks = _blocks(mean, self.axes)
            made.factors = made.padded(max(len(made.factors), self.first + len(blocks))).clone()
            made.factors[self.first : self.first + len(blocks)] += spread * blocks
        elif math.prod(made.event) > sources.limit(made.event):
            sources.add_uncorrelated(made, spread.square())
        else:
            sources.add_fresh(made, self.noise, spread)
        return made


@dataclass(frozen=True)
class Masked:
    """A tensor whose elements are those of a variable, or where its mask drops them, constants.

    Args:
        mask: Draws of 1 and 0.
        kept: The variable.
        dropped: The constants.
        copy: What `Draws.copied` makes of the variable.
    """

    mask: Draws
    kept: Variable
    dropped: Tensor
    copy: Variable

    def mapped(self, sources: Sources, function: Callable[[Variable], Variable]) -> Variable:
        """Return a function of it that commutes with the mask."""
        kept = function(self.kept)
        copy = function(self.copy) if self.kept.is_random else sources.variable(kept.mean)
        return Masked(self.mask, kept, function(Variable(self.dropped)).mean, copy).combined(sources)

    def combined(self, sources: Sources) -> Variable:
        """Return it as one variable, whose means and variances are as exact as those of what is kept."""
        made = self.mask.times(sources, self.kept, self.copy, self.dropped)
        made.origin = self
        return made


def through_masks(rule: _Rule) -> _Rule:
    """Return the rule of a function that commutes with every mask, which is given what a mask keeps, and what not."""

    def outer(sources: Sources, input: Variable, *rest: Any, **named: Any) -> Variable:
        if not isinstance(input, Variable):
            raise UnsupportedError("of other arguments than the first that are random")
        if isinstance(input.origin, Masked):
            return input.origin.mapped(sources, lambda each: rule(sources, each, *rest, **named))
        made: Variable = rule(sources, input, *rest, **named)
        return made

    return outer


def _sum(
    a: tuple[Tensor, Tensor | None, dict[Noise, Tensor]], b: tuple[Tensor, Tensor | None, dict[Noise, Tensor]]
) -> tuple[Tensor, Tensor | None, dict[Noise, Tensor]]:
    """Return the sum of the factors, private variances and fresh noise of two variables with no noise in common."""
    (one, private, fresh), (other, other_private, other_fresh) = a, b
    long, short = (one, other) if len(one) >= len(other) else (other, one)
    factors = long if not len(short) else torch.cat([long[: len(short)] + short, long[len(short) :]])
    if private is None or other_private is None:
        private = other_private if private is None else private
    else:
        private = private + other_private
    return factors, private, {**fresh, **other_fresh}


def _blocks(like: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return an indicator of each block of elements that share a draw, of shape (blocks, 1, ...)."""
    lengths = [1 if axis + 1 in axes else length for axis, length in enumerate(like.shape[1:])]
    count = math.prod(lengths)
    return (
        torch.eye(count, dtype=like.dtype, device=like.device)
        .reshape(count, 1, *lengths)
        .expand(count, 1, *like.shape[1:])
    )
