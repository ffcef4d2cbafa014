"""Moments of functions of one or two Gaussian variables.

Each function of one variable takes the mean and the variance of x ~ N(m, v), elementwise, and returns of y = f(x) the
mean, the gain E[f'(x)] = Cov(y, x) / v (Stein's lemma), and the variance. The gain is the slope of the best linear
approximation; what that leaves, of variance Var(y) - gain**2 v, is uncorrelated with every variable that is jointly
Gaussian with x.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Response", "exponential", "maximum", "piecewise_linear", "quadrature", "rectified"]

Response = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of means and variances: the means, the gains and the variances of what a function makes of them."""

_SPACING, _REACH = 0.2, 35  # of the nodes of a quadrature, and how many there are on either side of the mean
_NUMBERS_AT_ONCE = 2**18
_FAR = 40.0  # standard deviations, beyond which a density is 0 even in float64


def rectified(slope: float | Tensor) -> Response:
    """Return the exact moments of ``max(0, x) + slope * min(0, x)``, with one slope or one for each element.

    References:
        Frey and Hinton (1999), "Variational learning in nonlinear Gaussian belief networks", for the slope 0.
    """

    def response(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviation = variance.sqrt()
        distance = (mean.abs() / _positive(deviation)).clamp_max(_FAR)
        beyond, density = _ndtr(-distance), _density(distance)
        # Of what lies beyond 0, seen from the mean: small numbers, whatever the mean is.
        excess = deviation * (density - distance * beyond)
        spread = (variance * ((1 + distance**2) * beyond - distance * density) - excess**2).clamp_min(0)
        is_open = mean > 0
        first = torch.where(is_open, mean, 0.0) + excess
        gain = torch.where(is_open, 1 - beyond, beyond)
        second = torch.where(is_open, variance * (1 - 2 * beyond), 0.0) + spread
        if isinstance(slope, float) and slope == 0:
            return first, gain, second
        rest = 1 - slope
        second = slope**2 * variance + rest**2 * second + 2 * slope * rest * variance * gain
        return slope * mean + rest * first, slope + rest * gain, second.clamp_min(0)

    return response


def piecewise_linear(knots: Sequence[float], slopes: Sequence[float], at_first: float) -> Response:
    """Return the exact moments of a continuous function that is linear between its knots.

    Args:
        knots: Where the slope changes, in increasing order.
        slopes: One more than there are knots.
        at_first: The function's value at the first knot.

    References:
        Frey and Hinton (1999), "Variational learning in nonlinear Gaussian belief networks", for the rectified
        Gaussian, of which this is a sum.
    """
    values = [at_first]
    for left, right, slope in zip(knots, knots[1:], slopes[1:], strict=False):
        values.append(values[-1] + slope * (right - left))
    # Each piece as slope * x + offset.
    anchors = [(knots[0], values[0]), *zip(knots, values, strict=True)]
    pieces = [(slope, value - slope * knot) for slope, (knot, value) in zip(slopes, anchors, strict=True)]
    edges = [-math.inf, *knots, math.inf]

    def response(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviation = _positive(variance.sqrt())
        first, second, slope_mean = (torch.zeros_like(mean) for _ in range(3))
        center = sum(
            torch.where((mean >= low) & (mean < high), slope * mean + offset, 0.0)
            for (slope, offset), low, high in zip(pieces, edges[:-1], edges[1:], strict=True)
        )
        at_edges = [_below(edge, mean, deviation) for edge in edges]
        for (slope, offset), low, high in zip(pieces, at_edges, at_edges[1:], strict=False):
            mass, one, two = (above - below for above, below in zip(high, low, strict=True))
            level, scale = slope * mean + offset - center, slope * deviation
            first = first + level * mass + scale * one
            second = second + level**2 * mass + 2 * level * scale * one + scale**2 * two
            slope_mean = slope_mean + slope * mass
        return center + first, slope_mean, (second - first**2).clamp_min(0)

    return response


def exponential(alpha: float, scale: float, rate: float) -> Response:
    """Return the exact moments of ``scale * (max(0, x) + min(0, alpha * (exp(rate * x) - 1)))``, the ELU family."""

    def response(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviation = _positive(variance.sqrt())
        a = (-mean / deviation).clamp(-_FAR, _FAR)
        below, density = _ndtr(a), _density(a)
        above = 1 - below

        def tilted(power: float) -> Tensor:  # E[exp(power * rate * x); x < 0]
            shift = power * rate * variance
            argument = (-(mean + shift) / deviation).clamp(min=-1e8)
            return torch.exp(power * rate * (mean + shift / 2) + torch.special.log_ndtr(argument))

        once, twice = tilted(1), tilted(2)
        first = mean * above + deviation * density + alpha * (once - below)
        upper = (mean**2 + variance) * above + mean * deviation * density
        second = upper + alpha**2 * (twice - 2 * once + below)
        gain = above + alpha * rate * once
        return scale * first, scale * gain, scale**2 * (second - first**2).clamp_min(0)

    return response


def quadrature(function: Callable[[Tensor], Tensor]) -> Response:
    """Return the moments of any elementwise function, by the trapezoidal rule over seven standard deviations.

    For smooth functions its error falls exponentially with the spacing, a fifth of a deviation, also for those that are
    steep beside it: that of tanh is below 1e-4 up to deviations of 4.
    """

    def response(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deviation, center = variance.sqrt(), function(mean)
        first, second, cross = (torch.zeros_like(mean) for _ in range(3))
        nodes = torch.arange(-_REACH, _REACH + 1, dtype=mean.dtype, device=mean.device) * _SPACING
        weights = _SPACING * _density(nodes)
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, mean.numel()))
        for t, weight in zip(nodes.split(at_once), weights.split(at_once), strict=True):
            value = function(mean + t.reshape(-1, *(1,) * mean.dim()) * deviation) - center
            first += torch.tensordot(weight, value, 1)
            second += torch.tensordot(weight, value**2, 1)
            cross += torch.tensordot(weight * t, value, 1)
        gain = torch.where(deviation > 0, cross / deviation, 0.0)
        return center + first, gain, (second - first**2).clamp_min(0)

    return response


def maximum(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, gain and variance of the larger of two jointly Gaussian variables.

    The gain is that of `a`; the one of `b` is 1 minus it.

    Args:
        a: Mean and variance of one.
        b: Those of the other.
        covariance: Their covariance.

    References:
        Clark (1961), "The greatest of a finite set of random variables".
    """
    (mean_a, variance_a), (mean_b, variance_b) = a, b
    difference = mean_a - mean_b
    spread = (variance_a + variance_b - 2 * covariance).clamp_min(0).sqrt()
    # Where nothing is random in the difference the larger mean wins, and of two equal ones either.
    ratio = (difference / _positive(spread)).clamp(-_FAR, _FAR)
    gain = _ndtr(ratio)
    far, near = ratio.abs(), difference.abs()
    excess = spread * (_density(far) - far * _ndtr(-far))  # of the mean, above the larger of both
    is_a = difference >= 0
    larger, smaller = torch.where(is_a, variance_a, variance_b), torch.where(is_a, variance_b, variance_a)
    second = larger * _ndtr(far) + (near**2 + smaller) * _ndtr(-far) - near * spread * _density(far)
    return torch.maximum(mean_a, mean_b) + excess, gain, (second - excess**2).clamp_min(0)


def _below(edge: float, mean: Tensor, deviation: Tensor) -> tuple[Any, Any, Any]:
    """Return the integrals of 1, t and t**2 times the standard normal density, up to an edge."""
    if math.isinf(edge):
        return (0.0, 0.0, 0.0) if edge < 0 else (1.0, 0.0, 1.0)
    t = ((edge - mean) / deviation).clamp(-_FAR, _FAR)
    mass, density = _ndtr(t), _density(t)
    return mass, -density, mass - t * density


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _ndtr(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _density(x: Tensor) -> Tensor:
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
