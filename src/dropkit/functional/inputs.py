"""Checks of the tensors that dropout works on: raised before anything is drawn or written.

Messages tell of types and shapes, not of a tensor's values, which compiled code cannot show.
"""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import argument_error, argument_type_error
from dropkit.functional.autograd import traced
from dropkit.kernels.portable import over_leading

__all__ = [
    "autocast_dtype",
    "check_dense",
    "check_flags",
    "check_input",
    "check_mask",
    "check_masks",
    "check_noise",
    "check_writable",
    "is_identity",
    "kept_by",
    "leading",
    "without_autocast",
]

_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128,
)  # fmt: skip


def leading(value: Tensor, input: Tensor) -> Tensor:
    """Shape one value, or one a slice of axis 0, so that it broadcasts to the input."""
    return over_leading(value, input.dim(), input.device)


def is_identity(p: float | Tensor, training: bool, given: Tensor | None = None) -> bool:
    """Tell whether a pass changes nothing: evaluation, or a rate known to be 0 where no mask or noise is given."""
    return not training or (given is None and not isinstance(p, Tensor) and p == 0)


def kept_by(mask: Tensor, threshold: Tensor) -> Tensor:
    """Return what a given mask keeps at a rate: at p = 1 nothing, whatever the mask."""
    return mask & (leading(threshold, mask) < 2**32)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the type that autocast computes in of a tensor, or None where it is off or leaves the tensor alone."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return None
    device = tensor.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None


def check_input(where: str, input: Tensor, name: str = "input", **flags: object) -> None:
    """Raise unless an input is a dense or nested tensor of a floating or complex type, and every flag a bool."""
    if not isinstance(input, Tensor):
        raise argument_type_error(where, name, "a torch.Tensor", input)
    if input.dtype not in _DTYPES:
        raise argument_type_error(where, name, "of a floating or complex type", input.dtype, "Convert it first.")
    if input.layout not in (torch.strided, torch.jagged):
        raise argument_type_error(where, name, "a dense or nested tensor", input.layout, "Call to_dense() first.")
    check_flags(where, **flags)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a region in which autocast is off, wherever there is autocast."""
    is_available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if is_available else contextlib.nullcontext()


def check_flags(where: str, **flags: object) -> None:
    """Raise unless every flag is a bool."""
    for option, flag in flags.items():
        if not isinstance(flag, bool):
            raise argument_type_error(where, option, "True or False", flag)


def check_dense(where: str, input: Tensor, is_real: bool = False) -> None:
    """Raise where a checked input is nested, or complex and should not be."""
    if input.is_nested:
        raise argument_type_error(where, "input", "a dense tensor", input.layout, "Pass its parts: input.unbind().")
    if is_real and input.is_complex():
        raise argument_type_error(
            where, "input", "of a real floating type", input.dtype, "Pass torch.view_as_real(input)."
        )


def check_writable(where: str, input: Tensor) -> None:
    """Raise unless PyTorch would let the input be overwritten."""
    if traced() or input.is_nested:
        return
    base = input._base if input._base is not None else input
    if torch.is_grad_enabled() and base.is_leaf and base.requires_grad:
        rule, remedy = "False for a leaf that requires grad, or a view of one", "Call clone() first."
        raise argument_error(where, "inplace", rule, True, remedy)
    if any(stride == 0 and length > 1 for stride, length in zip(input.stride(), input.shape, strict=True)):
        raise argument_error(where, "inplace", "False for an expanded tensor", True, "Call clone() first.")


def check_mask(
    where: str,
    mask: Tensor | None,
    input: Tensor,
    sources: Mapping[str, Any],
    address: Mapping[str, Any],
    label: str = "mask",
) -> None:
    """Raise unless the mask, if there is one, fits the input and stands alone.

    Args:
        where: The function on whose behalf to check.
        mask: What was given as a mask.
        input: The checked input.
        sources: Other sources of noise, by name; each must be None.
        address: What says where a mask is drawn, by name; each must have its default.
        label: What the mask is called.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else mask
        raise argument_type_error(where, label, "a bool tensor", found, "True is kept.")
    for name, value in sources.items():
        if value is not None:
            rule = f"left out where `{name}` is given"
            raise argument_error(where, label, rule, mask.dtype, f"`{name}` draws a mask: leave one of them out.")
    for name, value in address.items():
        default = value is None or (type(value) is int and value == 0 and name.endswith("stream"))
        if not default and not (isinstance(value, list | tuple) and not value):
            found = value.dtype if isinstance(value, Tensor) else value
            raise argument_error(where, name, "left out where a mask is given", found, "A mask has no address.")
    _check_fits(where, label, mask, input)


def check_masks(where: str, masks: Any, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
    """Raise unless masks are bool tensors by name that fit.

    Args:
        where: The module on whose behalf to check.
        masks: What was given.
        shapes: The shape of every mask that the module may draw, by name.
        device: Where the module computes.
    """
    if not isinstance(masks, Mapping):
        raise argument_type_error(where, "masks", "a dict of masks by name", masks)
    for name, mask in masks.items():
        if name not in shapes:
            rule = "a dict with names of this module's masks"
            raise argument_error(where, "masks", rule, name, f"They are {list(shapes)}.")
        label, shape = f"masks[{name!r}]", shapes[name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else mask
            raise argument_type_error(where, label, "a bool tensor", found, "True is kept.")
        if mask.dim() != len(shape) or any(m not in (1, n) for m, n in zip(mask.shape, shape, strict=True)):
            rule = f"of shape {shape}, or with length 1 on axes that share"
            raise argument_error(where, label, rule, tuple(mask.shape))
        if mask.device != device:
            raise argument_error(where, label, f"on the input's device {device}", mask.device)


def check_noise(where: str, noise: Tensor | None, input: Tensor, sources: Mapping[str, Any]) -> None:
    """Raise unless the noise to multiply a dense input by, if there is any, is real, fits, and stands alone.

    Args:
        where: The function on whose behalf to check.
        noise: What was given as noise.
        input: The checked input.
        sources: Other sources of noise, by name; each must be None, or 0 for the stream.
    """
    if noise is None:
        return
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        found = noise.dtype if isinstance(noise, Tensor) else noise
        raise argument_type_error(where, "noise", "a tensor of a real floating type", found)
    for name, value in sources.items():
        if not (value is None or (name == "stream" and type(value) is int and value == 0)):
            rule = f"left out where `{name}` is given"
            raise argument_error(where, "noise", rule, noise.dtype, f"`{name}` draws noise: leave one of them out.")
    _check_fits(where, "noise", noise, input)


def _check_fits(where: str, name: str, mask: Tensor, input: Tensor) -> None:
    if mask.device != input.device:
        raise argument_error(where, name, f"on the input's device {input.device}", mask.device)
    if input.is_nested:
        if not mask.is_nested:
            raise argument_type_error(where, name, "nested like the input", mask.layout)
        if mask.size(0) != input.size(0):
            raise argument_error(where, name, f"of {input.size(0)} constituents like the input", mask.size(0))
    elif mask.dim() != input.dim() or any(m not in (1, n) for m, n in zip(mask.shape, input.shape, strict=True)):
        rule = f"of shape {tuple(input.shape)}, or with length 1 on axes that share"
        raise argument_error(where, name, rule, tuple(mask.shape))
