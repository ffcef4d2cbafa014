"""Masks that a backward pass of the model's own may use as well: those of functions and of hooks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["GRADIENT_HOOKS", "has_own_gradient", "held"]

GRADIENT_HOOKS: tuple[Callable[..., Any], ...] = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)
"""What hooks a function to a gradient, by its second argument."""

_CALL_OF_MODULE = torch.nn.Module._call_impl.__code__
_CALL_OF_FUNCTION = vars(torch.autograd.Function)["apply"].__func__.__code__


def has_own_gradient() -> bool:
    """Tell whether a mask is applied inside of an `autograd.Function`, whose backward pass may use it as well."""
    frame: FrameType | None = None if torch.is_grad_enabled() else sys._getframe(1)
    while frame is not None and frame.f_code is not _CALL_OF_MODULE:
        function = frame.f_locals.get("cls") if frame.f_code is _CALL_OF_FUNCTION else None
        if function is not None and function.__module__.partition(".")[0] != "torch":  # such as that of checkpoints
            return True
        frame = frame.f_back
    return False


def held(function: Any) -> Iterator[Any]:
    """Yield what a function that is called later, such as a hook, holds on to."""
    if isinstance(function, partial):
        yield from (*function.args, *function.keywords.values(), *held(function.func))
    yield from getattr(function, "__defaults__", None) or ()
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # it is empty yet
            yield cell.cell_contents
