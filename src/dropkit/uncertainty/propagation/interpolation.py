"""Interpolation of random maps: each output is a sum of inputs, with weights that are products over the axes.

So a matrix along each axis maps factors, and one of its squared weights variances. PyTorch's functions do not serve for
this: `torch.func.vmap` has no rule for all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.propagation.variables import Sources, Variable

__all__ = ["interpolated"]

_COPIES = ("nearest", "nearest-exact")
_LINEAR = ("linear", "bilinear", "trilinear")


def interpolated(
    sources: Sources,
    input: Variable,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Variable:
    """Return interpolation that copies the nearest element, or is linear along each axis."""
    if mode not in (*_COPIES, *_LINEAR) or antialias:
        raise UnsupportedError(f"with mode={mode!r}" + (" and antialias=True" if antialias else ""))

    def of(x: Tensor, size: Any, scale_factor: Any, mode: str) -> Tensor:
        return F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor)

    mean, lengths = of(input.mean, size, scale_factor, mode), input.mean.shape[2:]
    sizes, factors = (
        each if isinstance(each, tuple | list) else (each,) * len(lengths) for each in (size, scale_factor)
    )
    kind = mode if mode in _COPIES else "linear"
    weights = [
        of(torch.eye(length).to(mean)[None], to, by, kind)[0]  # of inputs by outputs, along one axis
        for length, to, by in zip(lengths, sizes, factors, strict=True)
    ]
    return sources.mapped(input, mean, _along_axes(weights), _along_axes([each.square() for each in weights]))


def _along_axes(weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the map by a matrix along each axis from the third."""

    def apply(x: Tensor) -> Tensor:
        for axis, weight in enumerate(weights, 2):
            x = torch.tensordot(x.movedim(axis, -1), weight, 1).movedim(-1, axis)
        return x

    return apply
