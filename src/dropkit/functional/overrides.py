"""Public functions that tensor subclasses and modes may take over, as they may PyTorch's own."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["is_overridden", "overridable"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def is_overridden(arguments: tuple[Any, ...]) -> bool:
    """Tell whether a tensor among the arguments, or a mode, is to answer a call; compiled code asks no mode else."""
    is_seen = torch.compiler.is_dynamo_compiling() and torch._C._is_torch_function_mode_enabled()
    return is_seen or has_torch_function(arguments)


def overridable(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a tensor among the arguments, or a mode, answer the call by its ``__torch_function__``, if it has one."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = (*args, *kwargs.values())
        if is_overridden(arguments):
            return handle_torch_function(call, arguments, *args, **kwargs)
        return function(*args, **kwargs)

    return call
