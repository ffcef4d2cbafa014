"""Fractional max pooling, which draws inside of a function of PyTorch where nobody sees it: its draw, made before."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["with_samples"]

# Number of axes of an element, by the function.
_AXES: Mapping[Callable[..., Any], int] = {
    F.fractional_max_pool2d: 2,
    F.fractional_max_pool2d_with_indices: 2,
    F.fractional_max_pool3d: 3,
    F.fractional_max_pool3d_with_indices: 3,
}
_POSITION = 5  # of the samples among the arguments


def with_samples(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seen: AbstractContextManager[Any],
) -> Mapping[str, Any]:
    """Return the arguments by name of a call of any function; of a fractional pooling with its draw among them.

    Args:
        function: The function.
        args: Its positional arguments.
        kwargs: Its arguments by name.
        seen: Within what the draw is seen: the same draw as the function's own, by `torch.rand`.
    """
    try:
        axes = _AXES.get(function)
    except TypeError:  # it has no hash
        return kwargs
    if axes is None or len(args) > _POSITION or kwargs.get("_random_samples") is not None:
        return kwargs
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or x.dim() <= axes:  # the function says best what is wrong
        return kwargs
    shape = x.size(0) if x.dim() > axes + 1 else 1, x.size(-axes - 1), axes
    with seen:
        samples = torch.rand(shape, dtype=x.dtype, device=x.device)
    return {**kwargs, "_random_samples": samples}
