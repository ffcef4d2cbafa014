"""Dropout and the residual it is added to, in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.address import check_source, find_address, plain_rate
from dropkit.functional.autograd import Constants, apply_function
from dropkit.functional.dropout import dropout
from dropkit.functional.eager import is_one_key, one_key
from dropkit.functional.fused import check_residual, gated, is_alike, takes_operator
from dropkit.functional.inputs import autocast_dtype, check_input
from dropkit.functional.overrides import overridable
from dropkit.kernels import fused
from dropkit.kernels.native import operations as native

__all__ = ["dropout_add"]

_WHERE = "dropout_add"


@overridable
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

    On a CPU for one key, and on a GPU with Triton, it is one pass over memory, in eager and in compiled code, computed
    in float32 or wider and rounded once; under `torch.func`, and for what kernels do not take, it is
    ``residual + dropout(input)``. The mask is the same.

    Args:
        input: Tensor of any shape, of a floating or complex type, or nested.
        residual: Tensor of the same shape, type and device; where the input is jagged, with its very offsets.
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
    if is_one_key(input, p, training, generator, key, stream) and is_alike(residual, input, input.shape):
        address = one_key(_WHERE, input, p, key)
        if torch.is_grad_enabled() and (input.requires_grad or residual.requires_grad):
            return _apply_plain(input, residual, Constants(*address))
        return native.add_plain(input, residual, *address)
    check_input(_WHERE, input, training=training)
    p = plain_rate(p)
    is_real = isinstance(residual, Tensor) and residual.is_floating_point()
    if is_real and residual.dtype != input.dtype and autocast_dtype(input) is not None:
        dtype = torch.promote_types(input.dtype, residual.dtype)  # autocast mixes types; sums have the wider one
        input_and_residual = input.to(dtype), residual.to(dtype)
        return dropout_add(*input_and_residual, p, training, generator=generator, key=key, stream=stream)
    check_residual(_WHERE, residual, input)
    if takes_operator(input, p, training, key) and residual is not input:  # which the compiler does not take twice
        return apply_function(_DropoutAdd, input, residual, *find_address(_WHERE, input, p, key, generator, stream))
    check_source(_WHERE, input, p, key, generator, stream)
    return residual + dropout(input, p, training, generator=generator, key=key, stream=stream)


class _PlainDropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, residual: Tensor, constants: Constants) -> Tensor:
        ctx.address = constants.values
        return native.add_plain(input, residual, *constants.values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        key, threshold = ctx.address
        return dropout(grad, threshold / 2.0**32, key=key), grad, None


# Past what `Function.apply` does for transforms, which a plain call has none of.
_apply_plain = super(torch.autograd.Function, _PlainDropoutAdd).apply


class _DropoutAdd(torch.autograd.Function):
    """The same by the operator, for compiled code and addresses in tensors."""

    @staticmethod
    def forward(input: Tensor, residual: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
        return fused.dropout_add(input, residual, key, stream, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return gated(grad, *ctx.saved_tensors), grad, None, None, None
