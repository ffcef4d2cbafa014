"""Checks of what a layer with parameters passes on when it makes them, before any is drawn."""

from typing import Any

import torch

from dropkit._checks import argument_error, argument_type_error

__all__ = ["check_factory"]


def check_factory(where: str, device: Any, dtype: Any, generator: Any) -> None:
    """Raise unless parameters can be made of a type, on a device, and keys be drawn from a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise argument_type_error(where, "generator", "a torch.Generator", generator)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)):
        raise argument_type_error(where, "dtype", "a floating or complex torch.dtype, or None", dtype)
    if device is None or isinstance(device, torch.device):
        return
    if isinstance(device, bool) or not isinstance(device, str | int):
        raise argument_type_error(where, "device", "a torch.device, its name, or None", device)
    try:
        torch.device(device)
    except RuntimeError:
        raise argument_error(where, "device", "a torch.device, its name, or None", device) from None
