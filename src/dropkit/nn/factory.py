"""Checks of what a layer with parameters passes on when it makes them, before any is drawn."""

from typing import Any

import torch

from dropkit._checks import argument_error, argument_type_error
from dropkit.nn.layer import check_generator

__all__ = ["check_factory"]


def check_factory(where: str, device: Any, dtype: Any, generator: Any, *, is_real: bool = False) -> None:
    """Raise unless parameters can be made of a type, on a device, and keys be drawn from a generator.

    Args:
        where: The layer on whose behalf to check.
        device: What was given as the device.
        dtype: What was given as the type.
        generator: What was given as the generator.
        is_real: Whether the layer computes with real numbers alone. Default: False.
    """
    check_generator(where, generator)
    fits = isinstance(dtype, torch.dtype) and (dtype.is_floating_point or (dtype.is_complex and not is_real))
    if dtype is not None and not fits:
        kinds = "floating" if is_real else "floating or complex"
        raise argument_type_error(where, "dtype", f"a {kinds} torch.dtype, or None", dtype)
    if device is None or isinstance(device, torch.device):
        return
    if isinstance(device, bool) or not isinstance(device, str | int):
        raise argument_type_error(where, "device", "a torch.device, its name, or None", device)
    try:
        torch.device(device)
    except RuntimeError:
        raise argument_error(where, "device", "a torch.device, its name, or None", device) from None
