"""What the operations that fuse dropout with its neighbours share: checks, and which way serves a call.

There are three: the kernels at once for a plain call, a fused operator for real numbers on a CPU or a GPU, and
PyTorch's operations one after another for the rest.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from dropkit._checks import argument_error, argument_type_error
from dropkit.functional.autograd import apply_dropout
from dropkit.functional.examples import runs_of
from dropkit.kernels.native.operations import TYPES, takes
from dropkit.kernels.portable import computing_type
from dropkit.random.layout import layout

__all__ = [
    "check_activated",
    "check_columns",
    "check_residual",
    "gated",
    "is_alike",
    "takes_operator",
]


def check_activated(where: str, activation: str, input: Tensor) -> None:
    """Raise unless PyTorch has the activation for the input's type."""
    if input.is_complex() and activation != "silu":
        remedy = "Pass its parts: torch.view_as_real(input)."
        raise argument_type_error(where, "input", f"real for {activation!r}", input.dtype, remedy)


def check_columns(where: str, name: str, value: Any, input: Tensor, is_mixed: bool = False) -> None:
    """Raise unless a tensor has a number for every column of the input; `is_mixed` as for `check_residual`."""
    _check_like(where, name, value, input, is_mixed)
    if value.is_nested:
        raise argument_type_error(where, name, "a dense tensor", value.layout)
    if input.is_nested and input.layout != torch.jagged:
        raise argument_error(where, name, "None where the input is nested without the jagged layout", value.dtype)
    if value.shape != input.shape[-1:]:
        raise argument_error(where, name, f"of shape {tuple(input.shape[-1:])}", tuple(value.shape))


def check_residual(where: str, residual: Any, input: Tensor, is_mixed: bool = False) -> None:
    """Raise unless the residual has a number for every element of the input.

    Args:
        where: The function on whose behalf to check.
        residual: What was given.
        input: The checked input.
        is_mixed: Whether it may also be of the type in which the input is computed.
    """
    _check_like(where, "residual", residual, input, is_mixed)
    if (residual.is_nested, residual.layout) != (input.is_nested, input.layout):
        rule = "nested as the input is" if input.is_nested else "a dense tensor like the input"
        raise argument_type_error(where, "residual", rule, residual.layout)
    wanted, found = _shape(input), _shape(residual)
    if found != wanted:
        remedy = "Its offsets must be those of the input, not equal ones." if input.layout == torch.jagged else ""
        raise argument_error(where, "residual", f"of shape {wanted}", found, remedy)


def _check_like(where: str, name: str, value: object, input: Tensor, is_mixed: bool = False) -> None:
    if not isinstance(value, Tensor):
        raise argument_type_error(where, name, "a torch.Tensor", value)
    if value.layout not in (torch.strided, torch.jagged):
        raise argument_type_error(where, name, "a dense or nested tensor", value.layout, "Call to_dense() first.")
    types = dict.fromkeys((input.dtype, computing_type(input)) if is_mixed else (input.dtype,))
    if value.dtype not in types:
        raise argument_type_error(where, name, f"of the input's type {' or '.join(map(str, types))}", value.dtype)
    if value.device != input.device:
        raise argument_error(where, name, f"on the input's device {input.device}", value.device)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    """Return a tensor's shape, or those of its constituents where it has none."""
    if tensor.is_nested and tensor.layout != torch.jagged:
        return tuple(tuple(part.shape) for part in tensor.unbind())
    return tuple(tensor.shape)


def is_alike(other: Any, input: Tensor, shape: Any) -> bool:
    """Tell whether a second tensor, of a given shape, is as plain as the first."""
    return (
        (type(other) is Tensor or type(other) is Parameter)
        and other.dtype == input.dtype
        and takes(other)
        and other.shape == shape
    )


def takes_operator(input: Tensor, p: float | Tensor, training: bool, key: object) -> bool:
    """Tell whether a fused operator serves a call whose tensors are checked; wrong rates are left to `dropout`.

    Such an operator draws for examples in order from 0.
    """
    drops = training and (isinstance(p, Tensor) or (isinstance(p, float) and 0.0 < p <= 1.0))
    is_served = (input.is_cpu or input.is_cuda) and input.dtype in TYPES and not input.is_nested and not runs_of(key)
    return drops and is_served and not _is_transformed()


def gated(grad: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    """Apply dropout at an address of a fused operator, differentiably."""
    place = layout("dropout", grad.shape, slices=max(key.dim(), stream.dim()))
    return apply_dropout(grad, key, stream, threshold, *place, scaled=True)


def _is_transformed() -> bool:
    """Tell whether a derivative or a batch is being traced that a function without rules for them would lose."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0
