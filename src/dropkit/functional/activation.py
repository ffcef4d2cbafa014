"""Dropout of an activation, in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from dropkit._checks import Choice
from dropkit.functional.address import check_source, find_address, plain_rate
from dropkit.functional.autograd import Constants, apply_function
from dropkit.functional.dropout import dropout
from dropkit.functional.eager import is_one_key, is_plain_gradient, one_key
from dropkit.functional.fused import check_activated, check_columns, gated, is_alike, takes_operator
from dropkit.functional.inputs import autocast_dtype, check_input
from dropkit.functional.overrides import overridable
from dropkit.kernels import fused
from dropkit.kernels.activations import activate, activate_backward
from dropkit.kernels.native import operations as native
from dropkit.kernels.portable import select, survivor_scale

__all__ = ["activation_dropout"]

_WHERE = "activation_dropout"
_ACTIVATION = Choice(native.ACTIVATIONS)


@overridable
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

    On a CPU with vector instructions for one key, and on a GPU with Triton, it is one pass over memory, in eager and in
    compiled code, computed in float32 or wider and rounded once; under `torch.func`, and for what kernels do not take,
    it is ``dropout(activation(input + bias))``. The mask is the same. For the backward pass it keeps the result of
    ReLU, which the next layer mostly keeps too, and the input of other activations. So the result for ReLU must not be
    changed in place before the backward pass, which would raise: change a clone.

    In a model for `torch.compile`, prefer it to ReLU and dropout apart: between those, PyTorch's compiler stores a mask
    of ReLU for the backward pass, and is slow at that.

    Args:
        input: Tensor of any shape, of a floating type; complex for ``"silu"`` alone; nested tensors too.
        activation: ``"relu"``, ``"gelu"`` (by the normal distribution function), ``"gelu_tanh"`` or ``"silu"``.
            Default: ``"relu"``.
        p: Probability of dropping an element, as for `dropout`. Default: 0.5.
        training: Whether to drop. Default: True.
        bias: Dense tensor of shape (columns,), the length of the input's last axis, of the same type and device.
            Default: none.
        generator: Where to draw the key. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type.

    Raises:
        ArgumentError: If the activation is unknown or the bias has another shape, or as `dropout` does.
        ArgumentTypeError: If the types differ, or PyTorch has no such activation of complex numbers, or as `dropout`
            does.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.activation_dropout(torch.tensor([-1.0, 1.0, 2.0, -2.0]), "relu", p=0.5, key=7)
        tensor([0., 2., 4., 0.])

    References:
        Hendrycks and Gimpel (2016), "Gaussian error linear units", section 2, for GELU; Srivastava et al. (2014).
    """
    if (
        is_one_key(input, p, training, generator, key, stream)
        and (bias is None or is_alike(bias, input, input.shape[-1:]))
        and activation in native.ACTIVATIONS
        and native.activates()
    ):
        address = one_key(_WHERE, input, p, key)
        number = native.ACTIVATIONS.index(activation)
        if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
            return _apply_plain(input, bias, Constants(number, *address))
        return native.activate_plain(input, bias, number, *address)
    check_input(_WHERE, input, training=training)
    p = plain_rate(p)
    check_activated(_WHERE, _ACTIVATION.check(_WHERE, "activation", activation), input)
    if isinstance(bias, Tensor) and bias.is_floating_point() and autocast_dtype(input) is not None:
        bias = bias.to(input.dtype)
    if bias is not None:
        check_columns(_WHERE, "bias", bias, input)
    if takes_operator(input, p, training, key):
        found = find_address(_WHERE, input, p, key, generator, stream)
        return apply_function(_ActivationDropout, input, bias, activation, *found)
    check_source(_WHERE, input, p, key, generator, stream)
    return dropout(activate(activation, input, bias), p, training, generator=generator, key=key, stream=stream)


def _kept(activation: str, input: Tensor, bias: Tensor | None, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what the gradient is computed from: for ReLU the result, which whatever comes next mostly keeps too.

    Its gradient is not 0 where an element is kept and the sum of input and bias is above 0: where the result is.
    """
    return (output, None) if activation == "relu" else (input, bias)


class _PlainActivationDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, constants: Constants) -> Tensor:
        ctx.address = number, key, threshold = constants.values
        output = native.activate_plain(input, bias, number, key, threshold)
        ctx.save_for_backward(*_kept(native.ACTIVATIONS[number], input, bias, output))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        number, key, threshold = ctx.address
        if not is_plain_gradient(grad):  # a second derivative, or a batch of gradients
            of_activated = activate_backward(native.ACTIVATIONS[number], grad, x, bias)
            of_input = dropout(of_activated, threshold / 2.0**32, key=key)
        else:
            of_input = native.activate_gradient_plain(grad, x, bias, number, key, threshold)
        return of_input, _of_bias(ctx, of_input), None


# Past what `Function.apply` does for transforms, which a plain call has none of.
_apply_plain = super(torch.autograd.Function, _PlainActivationDropout).apply


class _ActivationDropout(torch.autograd.Function):
    """The same by operators, for compiled code and addresses in tensors."""

    @staticmethod
    def forward(
        input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
    ) -> Tensor:
        return fused.activation_dropout(input, bias, activation, key, stream, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, bias, ctx.activation, *address = inputs
        ctx.save_for_backward(*_kept(ctx.activation, x, bias, output), *address)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, *address = ctx.saved_tensors
        if ctx.activation == "relu" and torch.compiler.is_compiling():
            of_input = _relu_gradient(grad, x, address[-1])
        elif torch.is_grad_enabled():  # a second derivative
            of_input = gated(activate_backward(ctx.activation, grad, x, bias), *address)
        else:
            of_input = fused.activation_dropout_backward(grad, x, bias, ctx.activation, *address)
        return of_input, _of_bias(ctx, of_input), None, None, None, None


def _relu_gradient(grad: Tensor, result: Tensor, threshold: Tensor) -> Tensor:
    """Return the gradient for ReLU in operations that the compiler fuses with those around them.

    The gate is the result, but the gradient where that is 0: so the compiler cannot make a mask of it in the forward
    pass and keep that, whose bytes its vector code stores forty times as slowly as it applies ReLU.
    """
    gate = torch.where(grad == 0, grad, result)
    return select(grad, ~(gate <= 0), survivor_scale(threshold), in_place=False)


def _of_bias(ctx: Any, of_input: Tensor) -> Tensor | None:
    return of_input.sum_to_size(of_input.shape[-1:]) if ctx.needs_input_grad[1] else None
