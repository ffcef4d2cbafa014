"""Dropout, the residual it is added to, and the normalisation of the sum, in one pass over memory on a GPU."""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropkit._checks import Number, argument_error
from dropkit.functional.address import check_source, find_address, plain_rate
from dropkit.functional.autograd import apply_function, is_batched
from dropkit.functional.dropout import dropout
from dropkit.functional.fused import check_columns, check_residual, gated, takes_operator
from dropkit.functional.inputs import autocast_dtype, check_dense, check_input, without_autocast
from dropkit.functional.overrides import overridable
from dropkit.kernels import norms
from dropkit.kernels.portable import computing_type

__all__ = ["dropout_add_layer_norm", "dropout_add_rms_norm"]

_EPS = Number(0.0, math.inf, open_high=True)


class _Norm(NamedTuple):
    """A normalisation along the last axis, on whose behalf arguments are checked."""

    where: str
    is_centred: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float | None


@overridable
def dropout_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    eps: float = 1e-5,
    prenorm: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Any:
    """Add dropout of one tensor to another, and apply LayerNorm to the last axis of the sum.

    On a GPU with Triton it is one pass over memory forward and one backward; elsewhere it is
    ``layer_norm(dropout_add(input, residual))``. The mask is the same. For the backward pass it keeps the sum and two
    numbers a row, and draws the mask again.

    Args:
        input: Dense tensor of shape (..., columns), of a real floating type.
        residual: Tensor of the same shape, type and device; or float32 where the input is of a half type.
        weight: Factors of shape (columns,), of the input's type or float32. Default: none.
        bias: What is added, of the same shape and types. Default: none.
        p: Probability of dropping an element of `input`, as for `dropout`. Default: 0.5.
        training: Whether to drop. Default: True.
        eps: What is added to the variance, 0 or more. Default: 1e-5.
        prenorm: Whether to return ``(result, sum)``, as layers need that normalise before each branch: the sum is the
            residual of the next. Default: False.
        generator: Where to draw the key. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type, under autocast of the wider of the input's and the residual's; with
        `prenorm` also the sum, of the residual's type. The sum is rounded to its type before it is normalised.

    Raises:
        ArgumentError: If shapes differ or the input has no axis, or as `dropout` does.
        ArgumentTypeError: If types do not fit, or as `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.dropout_add_layer_norm(torch.ones(4), torch.arange(4.0), p=0.5, key=7)
        tensor([-1.6036,  0.0000,  0.5345,  1.0690])

    References:
        Ba, Kiros and Hinton (2016), "Layer normalization", section 3; Vaswani et al. (2017), "Attention is all you
        need", section 5.4, for dropout before the sum; Xiong et al. (2020), "On layer normalization in the transformer
        architecture", section 3, for normalising before or after.
    """
    norm = _Norm("dropout_add_layer_norm", True, weight, bias, eps)
    return _added(norm, input, residual, p, training, prenorm, generator, key, stream)


@overridable
def dropout_add_rms_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    eps: float | None = None,
    prenorm: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Any:
    """Add dropout of one tensor to another, and apply RMSNorm to the last axis of the sum.

    It is `dropout_add_layer_norm` without the mean: a row is divided by the root of the mean of its squares.

    Args:
        input: Dense tensor of shape (..., columns), of a real floating type.
        residual: Tensor of the same shape, type and device; or float32 where the input is of a half type.
        weight: Factors of shape (columns,), of the input's type or float32. Default: none.
        p: Probability of dropping an element of `input`, as for `dropout`. Default: 0.5.
        training: Whether to drop. Default: True.
        eps: What is added to the mean of squares, 0 or more. Default: as PyTorch's, the distance of 1 to the next
            number of the type it is computed in, float32 or wider.
        prenorm: Whether to return ``(result, sum)``, as for `dropout_add_layer_norm`. Default: False.
        generator: Where to draw the key. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        What `dropout_add_layer_norm` returns.

    Raises:
        ArgumentError: If shapes differ or the input has no axis, or as `dropout` does.
        ArgumentTypeError: If types do not fit, or as `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.dropout_add_rms_norm(torch.ones(4), torch.arange(4.0), p=0.5, key=7)
        tensor([0.0000, 0.8485, 1.1314, 1.4142])

    References:
        Zhang and Sennrich (2019), "Root mean square layer normalization", equation 4.
    """
    norm = _Norm("dropout_add_rms_norm", False, weight, None, eps)
    return _added(norm, input, residual, p, training, prenorm, generator, key, stream)


def _added(
    norm: _Norm,
    input: Tensor,
    residual: Tensor,
    p: Any,
    training: bool,
    prenorm: bool,
    generator: torch.Generator | None,
    key: int | Tensor | None,
    stream: int | Tensor,
) -> Any:
    where = norm.where
    check_input(where, input, training=training, prenorm=prenorm)
    check_dense(where, input, is_real=True)
    if not input.dim():
        raise argument_error(where, "input", "of one axis or more", tuple(input.shape))
    p, dtype, residual = plain_rate(p), input.dtype, _under_autocast(residual, input)
    check_residual(where, residual, input, is_mixed=True)
    for name, value in (("weight", norm.weight), ("bias", norm.bias)):
        if value is not None:
            check_columns(where, name, value, input, is_mixed=True)
    wide = computing_type(input)
    eps = torch.finfo(wide).eps if norm.eps is None and not norm.is_centred else _EPS.check(where, "eps", norm.eps)
    if autocast_dtype(input) is not None:
        dtype = residual.dtype
    if takes_operator(input, p, training, key) and _are_taken(input, residual, norm.weight, norm.bias):
        address = find_address(where, input, p, key, generator, stream)
        options = norm.weight, norm.bias, norm.is_centred, eps, dtype
        output, total, *_ = apply_function(_DropoutAddNorm, input, residual, *options, *address)
        return (output, total) if prenorm else output
    check_source(where, input, p, key, generator, stream)
    dropped = dropout(input.to(wide), p, training, generator=generator, key=key, stream=stream)
    total = (residual.to(wide) + dropped).to(residual.dtype)
    with without_autocast(input.device):
        output = norms.normalise(total, norm.weight, norm.bias, norm.is_centred, eps, dtype)
    return (output, total) if prenorm else output


def _under_autocast(residual: Any, input: Tensor) -> Any:
    """Return a residual of the wider of two types where autocast mixes them."""
    if isinstance(residual, Tensor) and residual.is_floating_point() and autocast_dtype(input) is not None:
        return residual.to(torch.promote_types(input.dtype, residual.dtype))
    return residual


def _are_taken(*tensors: Tensor | None) -> bool:
    """Tell whether a function may have these tensors; the compiler takes none twice."""
    pairs = itertools.combinations([tensor for tensor in tensors if tensor is not None], 2)
    return not torch.compiler.is_compiling() or all(one is not other for one, other in pairs)


class _DropoutAddNorm(torch.autograd.Function):
    """By the operator: for the backward pass it keeps the sum and its moments, and of the mask the address."""

    @staticmethod
    def forward(  # the compiler counts these: of fewer it would think that the first is a context
        input: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        is_centred: bool,
        eps: float,
        dtype: torch.dtype,
        key: Tensor,
        stream: Tensor,
        threshold: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor, Tensor] = norms.dropout_add_norm(
            input, residual, weight, bias, is_centred, eps, dtype, key, stream, threshold
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        dropped, _, weight, bias, ctx.is_centred, ctx.eps, _, *address = inputs
        _, total, mean, scale = output
        ctx.types = dropped.dtype, *(None if each is None else each.dtype for each in (weight, bias))
        ctx.mark_non_differentiable(mean, scale)
        ctx.set_materialize_grads(False)  # of a sum that nobody asks for there is no gradient to read
        ctx.save_for_backward(total, weight, mean, scale, *address)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        total, weight, mean, scale, *address = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(total)
        needed = ctx.needs_input_grad[2:4]
        if _is_plain(grad, grad_total):
            tensors = grad, grad_total, total, weight, mean, scale
            found = norms.dropout_add_norm_backward(*tensors, ctx.is_centred, needed, ctx.types[0], *address)
        else:
            found = _gradients(ctx, grad, grad_total, total, weight, address)
        sums = zip(found[2:], ctx.types[1:], needed, strict=True)
        return *found[:2], *(each.to(dtype) if is_needed else None for each, dtype, is_needed in sums), *(None,) * 6


def _is_plain(*grads: Tensor | None) -> bool:
    """Tell whether neither a second derivative nor a batch of gradients is asked for."""
    if torch.compiler.is_compiling():
        return True
    return not (torch.is_grad_enabled() or is_batched(*(grad for grad in grads if grad is not None)))


def _gradients(
    ctx: Any, grad: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor | None, address: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by operations that are differentiable, of the moments too."""
    mean, scale = norms.moments(total, ctx.is_centred, ctx.eps)
    found, normal = norms.gradient(grad, total, weight, mean, scale, ctx.is_centred)
    found = found if grad_total is None else found + grad_total
    wide, columns = grad.to(found.dtype), total.shape[-1:]
    sums = (wide * normal).sum_to_size(columns), wide.sum_to_size(columns)
    return gated(found, *address).to(ctx.types[0]), found.to(total.dtype), *sums
