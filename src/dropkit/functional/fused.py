"""Dropout together with what stands before or after it, in one pass over memory."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function

from dropkit._checks import PROBABILITY, Choice, argument_error, argument_type_error
from dropkit.functional.address import check_source, draw_key
from dropkit.functional.dropout import dropout
from dropkit.functional.eager import is_plain
from dropkit.functional.inputs import check_input
from dropkit.kernels.native import operations as native

__all__ = ["activation_dropout", "dropout_add"]

_ACTIVATION = Choice(native.ACTIVATIONS)
_UNFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def dropout_add(
    input: Tensor,
    residual: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Tensor:
    """Add dropout of one tensor to another, as a residual connection does.

    On a CPU, in eager code and for one key, it is one pass over memory, computed in float32 or wider and rounded once;
    elsewhere it is ``residual + dropout(input)``. The mask is the same.

    Args:
        input: Tensor of any shape, of a floating type.
        residual: Tensor of the same shape, type and device.
        p: Probability of dropping an element of `input`, as for `dropout`. Default: 0.5.
        training: Whether to drop. Default: True.
        generator: Where to draw the key. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type.

    Raises:
        ArgumentError: If the shapes differ, or as `dropout` does.
        ArgumentTypeError: If the types differ, or as `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.dropout_add(torch.ones(4), torch.arange(4.0), p=0.5, key=7)
        tensor([0., 3., 4., 5.])

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", section 4.
    """
    tensors = (input, residual, p, key, stream)
    if has_torch_function(tensors):
        return handle_torch_function(
            dropout_add, tensors, input, residual, p, training, generator=generator, key=key, stream=stream
        )
    if _is_fused(input, p, training, generator, key, stream) and _is_alike(residual, input, input.shape):
        address = _address(input, p, key)
        if torch.is_grad_enabled() and (input.requires_grad or residual.requires_grad):
            return _apply_dropout_add(input, residual, *address)
        return native.add_plain(input, residual, *address)
    check_input("dropout_add", input, training=training)
    _check_other("dropout_add", "residual", residual, input, input.shape)
    check_source("dropout_add", input, p, key, generator, stream)
    return residual + dropout(input, p, training, generator=generator, key=key, stream=stream)


def activation_dropout(
    input: Tensor,
    activation: str = "relu",
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    bias: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Tensor:
    """Apply dropout to an activation of a tensor, to which a bias may be added first.

    On a CPU with vector instructions, in eager code and for one key, it is one pass over memory, computed in float32 or
    wider and rounded once, and nothing but the input is kept for the backward pass; elsewhere it is
    ``dropout(activation(input + bias))``. The mask is the same.

    Args:
        input: Tensor of any shape, of a floating type.
        activation: ``"relu"``, ``"gelu"`` (by the normal distribution function), ``"gelu_tanh"`` or ``"silu"``.
            Default: ``"relu"``.
        p: Probability of dropping an element, as for `dropout`. Default: 0.5.
        training: Whether to drop. Default: True.
        bias: Tensor of shape (columns,), the length of the input's last axis, of the same type and device. Default:
            none.
        generator: Where to draw the key. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type.

    Raises:
        ArgumentError: If the activation is unknown or the bias has another shape, or as `dropout` does.
        ArgumentTypeError: If the types differ, or as `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.activation_dropout(torch.tensor([-1.0, 1.0, 2.0, -2.0]), "relu", p=0.5, key=7)
        tensor([0., 2., 4., 0.])

    References:
        Hendrycks and Gimpel (2016), "Gaussian error linear units", section 2, for GELU; Srivastava et al. (2014).
    """
    tensors = (input, p, bias, key, stream)
    if has_torch_function(tensors):
        return handle_torch_function(
            activation_dropout, tensors, input, activation, p, training, bias=bias, generator=generator, key=key,
            stream=stream,
        )  # fmt: skip
    if (
        _is_fused(input, p, training, generator, key, stream)
        and (bias is None or _is_alike(bias, input, input.shape[-1:]))
        and activation in native.ACTIVATIONS
        and native.activates()
    ):
        place = native.ACTIVATIONS.index(activation)
        address = _address(input, p, key)
        if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
            return _apply_activation_dropout(input, bias, place, *address)
        return native.activate_plain(input, bias, place, *address)
    check_input("activation_dropout", input, training=training)
    _ACTIVATION.check("activation_dropout", "activation", activation)
    if bias is not None:
        _check_other("activation_dropout", "bias", bias, input, input.shape[-1:])
    check_source("activation_dropout", input, p, key, generator, stream)
    activated = _UNFUSED[activation](input if bias is None else input + bias)
    return dropout(activated, p, training, generator=generator, key=key, stream=stream)


def _check_other(where: str, name: str, value: object, input: Tensor, shape: Any) -> None:
    if not isinstance(value, Tensor):
        raise argument_type_error(where, name, "a torch.Tensor", value)
    if value.dtype != input.dtype:
        raise argument_type_error(where, name, f"of the input's type {input.dtype}", value.dtype)
    if value.shape != shape:
        raise argument_error(where, name, f"of shape {tuple(shape)}", tuple(value.shape))


def _is_fused(input: Tensor, p: object, training: bool, generator: object, key: object, stream: object) -> bool:
    """Tell whether one kernel can do it all; what cannot be done so, or is wrong, is left to `dropout`."""
    one_key = key is None or (type(key) is int and 0 <= key < 2**64)
    rate = type(p) is float and PROBABILITY.contains(p) and p > 0
    options = training is True and generator is None and type(stream) is int and stream == 0
    return one_key and rate and options and is_plain(input)


def _is_alike(other: Any, input: Tensor, shape: Any) -> bool:
    """Tell whether a second tensor, of a given shape, is as plain as the first."""
    return (
        (type(other) is Tensor or type(other) is Parameter)
        and other.dtype == input.dtype
        and other.shape == shape
        and native.takes(other)
    )


def _address(input: Tensor, p: Any, key: Any) -> tuple[int, int]:
    drawn = int(draw_key("dropout", None, input)) % 2**64 if key is None else key
    return drawn, math.floor(p * 2.0**32 + 0.5)


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, residual: Tensor, key: int, threshold: int) -> Tensor:
        ctx.address = key, threshold
        return native.add_plain(input, residual, key, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        key, threshold = ctx.address
        return dropout(grad, threshold / 2.0**32, key=key), grad, None, None


class _ActivationDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, activation: int, key: int, threshold: int) -> Tensor:
        ctx.save_for_backward(input, bias)
        ctx.address = activation, key, threshold
        return native.activate_plain(input, bias, activation, key, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        activation, key, threshold = ctx.address
        if torch.is_grad_enabled() or not is_plain(grad):  # a second derivative, or a batch of gradients
            gated = dropout(grad, threshold / 2.0**32, key=key)
            with torch.enable_grad():
                shifted = x if bias is None else x + bias
                found = _UNFUSED[native.ACTIVATIONS[activation]](shifted)
            (of_input,) = torch.autograd.grad(found, shifted, gated, create_graph=torch.is_grad_enabled())
        else:
            of_input = native.activate_gradient_plain(grad, x, bias, activation, key, threshold)
        of_bias = None if bias is None else of_input.sum_to_size(bias.shape)
        return of_input, of_bias, None, None, None


# Past what `Function.apply` does for transforms, which a plain call has none of.
_apply_dropout_add = super(torch.autograd.Function, _DropoutAdd).apply
_apply_activation_dropout = super(torch.autograd.Function, _ActivationDropout).apply
