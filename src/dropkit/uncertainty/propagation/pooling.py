"""Max pooling of random tensors."""

import itertools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.propagation.gaussian import maximum
from dropkit.uncertainty.propagation.linear import check_batch, for_each_axis
from dropkit.uncertainty.propagation.origins import Applied, Masked
from dropkit.uncertainty.propagation.variables import Sources, Variable

__all__ = ["max_pooled"]

_LOWEST = -1e30  # stands for minus infinity, which has no moments


def max_pooled(axes: int) -> Callable[..., Variable]:
    """Return the rule of max pooling: the largest of a window as a tournament, each pair taken for Gaussian.

    References:
        Clark (1961), "The greatest of a finite set of random variables", for more than two in turn.
    """

    def rule(
        sources: Sources,
        input: Variable,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Variable:
        if ceil_mode or return_indices:
            raise UnsupportedError("with ceil_mode or return_indices")
        check_batch(input, axes + 2)
        if not input.is_random:
            function = getattr(F, f"max_pool{axes}d")
            return sources.variable(function(input.mean, kernel_size, stride or None, padding, dilation))

        def pooled(each: Variable) -> Variable:
            return rule(sources, each, kernel_size, stride, padding, dilation)

        origin = input.origin
        if isinstance(origin, Applied):
            return Applied(origin.response, pooled(origin.input)).result(sources)
        if isinstance(origin, Masked) and set(range(2, axes + 2)) <= set(origin.mask.axes):
            return origin.mapped(sources, pooled)
        sources.settle(input)
        kernel, pads, gaps = (
            for_each_axis(kernel_size, axes),
            for_each_axis(padding, axes),
            for_each_axis(dilation, axes),
        )
        steps = for_each_axis(stride, axes) if stride not in (None, (), []) else kernel
        private = input.private
        padded = sources.variable(
            _padded(input.mean, pads, _LOWEST),
            _padded(input.factors, pads, 0.0),
            None if private is None else _padded(private, pads, 0.0),
        )
        entrants = _windows(sources, padded, kernel, steps, gaps)
        while len(entrants) > 1:
            pairs = list(zip(entrants[::2], entrants[1::2], strict=False))
            entrants = [_larger(sources, *pair) for pair in pairs] + entrants[2 * len(pairs) :]
        [made] = entrants
        if private is not None and made.private is not None and not all(map(int.__ge__, steps, kernel)):
            sources.neglect(made.private, made.variance)  # windows that overlap share private noise
        return made

    return rule


def _padded(x: Tensor, pads: tuple[int, ...], value: float) -> Tensor:
    sides = [side for pad in reversed(pads) for side in (pad, pad)]
    return F.pad(x, sides, value=value) if any(pads) else x


def _windows(
    sources: Sources, input: Variable, kernel: tuple[int, ...], steps: tuple[int, ...], gaps: tuple[int, ...]
) -> list[Variable]:
    """Return a variable for each place in a window, with the elements that stand there in every window."""
    found = []
    lengths = input.mean.shape[2:]
    counts = [
        (length - gap * (size - 1) - 1) // step + 1
        for length, size, step, gap in zip(lengths, kernel, steps, gaps, strict=True)
    ]
    for place in itertools.product(*map(range, kernel)):
        spans = zip(place, counts, steps, gaps, strict=True)
        cut: Any = (..., *(slice(gap * at, gap * at + step * (many - 1) + 1, step) for at, many, step, gap in spans))
        private = None if input.private is None else input.private[cut]
        found.append(sources.variable(input.mean[cut], input.factors[cut], private))
    return found


def _larger(sources: Sources, a: Variable, b: Variable) -> Variable:
    """Return the elementwise maximum of two variables whose private noise is not the same."""
    dtype, count = a.mean.dtype, max(len(a.factors), len(b.factors))
    one, other = a.padded(count), b.padded(count)
    covariance = (one * other).sum(0).double()
    variances = a.variance.double(), b.variance.double()
    mean, gain, after = maximum((a.mean.double(), variances[0]), (b.mean.double(), variances[1]), covariance)
    left = 1 - gain
    linear = gain**2 * variances[0] + left**2 * variances[1] + 2 * gain * left * covariance
    rest = (after - linear).clamp_min(0).to(dtype)
    gain, left = gain.to(dtype), left.to(dtype)
    private = None
    for weight, part in ((gain, a.private), (left, b.private)):
        if part is not None:
            private = weight**2 * part + (0 if private is None else private)
    made = sources.variable(mean.to(dtype), gain * one + left * other, private)
    sources.add_uncorrelated(made, rest)
    return made
