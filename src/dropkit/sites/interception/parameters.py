"""What parameters hold and which they are, as before a forward that writes into them, such as by a moving average."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from dropkit.sites.interception.values import is_freed, is_writable, kept_values, version_of

__all__ = ["is_plain", "is_sharded", "kept_parameter", "seen_parameter"]

_SHARDING = ("torch.distributed.fsdp", "torch.distributed._composable")


def is_sharded(model: Module) -> bool:
    """Tell whether a part of a model gathers and frees its parameters itself, in every forward."""
    classes = {type(module) for module in model.modules()}
    return any(base.__module__.startswith(_SHARDING) for each in classes for base in each.__mro__)


def is_plain(value: Any) -> bool:
    """Tell whether a value is a parameter as models make them: neither lazy, nor sharded, nor of another class."""
    return type(value) is Parameter and value.layout is torch.strided and not (value.is_nested or value.is_meta)


def kept_parameter(parameter: Tensor) -> Callable[[], None]:
    """Note what a parameter holds, and where, and return what gives it that again."""
    if not is_writable(parameter) or is_freed(parameter):
        return _nothing
    data, put_back_values = parameter.data, kept_values(parameter)

    def put_back() -> None:
        if _is_alike(parameter, data) and not (is_freed(parameter) or is_freed(data)):
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            put_back_values()

    return put_back


def seen_parameter(parameter: Tensor, warn: Callable[[], None]) -> Callable[[], None]:
    """Note where a parameter is and how often it was written, and return what warns if that is no more so."""
    like, pointer, version = parameter.data, parameter.data_ptr(), version_of(parameter)

    def tell() -> None:
        is_moved = parameter.data_ptr() != pointer and not is_freed(parameter)
        if _is_alike(parameter, like) and (is_moved or version_of(parameter) != version):
            warn()

    return tell


def _is_alike(parameter: Tensor, data: Tensor) -> bool:
    """Tell whether a parameter has the form that it had; one that has not is moved or gathered by somebody else."""
    return (parameter.shape, parameter.dtype, parameter.device) == (data.shape, data.dtype, data.device)


def _nothing() -> None:
    pass
