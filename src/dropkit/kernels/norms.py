"""The operators that fuse dropout, a residual connection and normalisation, and what they stand for.

They are LayerNorm or RMSNorm over the last axis of ``residual + dropout(input)``, which is rounded to its type first:
so what they normalise is the very sum that they return. The backward pass draws the mask again.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.kernels import fused, gpu, operators
from dropkit.kernels.portable import computing_type
from dropkit.random.layout import layout

__all__ = [
    "backward",
    "dropout_add_norm",
    "dropout_add_norm_backward",
    "forward",
    "gradient",
    "moments",
    "normalise",
]

_aten = torch.ops.aten
_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_ADDRESS = "Tensor key, Tensor stream, Tensor threshold"

_SUMMED = "Tensor input, Tensor residual, Tensor? weight, Tensor? bias, bool is_centred, float eps"
_SAVED = "Tensor? grad_total, Tensor total, Tensor? weight, Tensor mean, Tensor scale, bool is_centred"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"

for _schema in (
    f"dropout_add_norm({_SUMMED}, ScalarType dtype, {_ADDRESS}) -> {_FOUR}",
    f"dropout_add_norm_backward(Tensor grad, {_SAVED}, bool[2] needed, ScalarType dtype, {_ADDRESS}) -> {_FOUR}",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

dropout_add_norm = torch.ops.dropkit.dropout_add_norm.default
dropout_add_norm_backward = torch.ops.dropkit.dropout_add_norm_backward.default

_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def normalise(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, is_centred: bool, eps: float, dtype: torch.dtype
) -> Tensor:
    """Normalise along the last axis, in float32 or wider and rounded once, differentiably.

    Args:
        total: Tensor of shape (..., columns).
        weight: Factors of shape (columns,), or None.
        bias: What is then added, of shape (columns,), or None.
        is_centred: Whether the mean is subtracted, as by LayerNorm, or not, as by RMSNorm.
        eps: What is added to the variance, or to the mean of squares.
        dtype: Of the result.
    """
    values, weight, bias = _widened(total, weight, bias)
    if is_centred:
        return F.layer_norm(values, values.shape[-1:], weight, bias, eps).to(dtype)
    normal = F.rms_norm(values, values.shape[-1:], weight, eps)
    return (normal if bias is None else normal + bias).to(dtype)


def moments(total: Tensor, is_centred: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean of every row, none if it is not subtracted, and what the row is then multiplied by."""
    values = total.to(computing_type(total))
    if not is_centred:
        return values.new_empty(0), torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + eps)


def gradient(
    grad: Tensor, total: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, is_centred: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradient with respect to the sum, in float32 or wider, and the normalised sum, differentiably.

    Args:
        grad: That of the result.
        total: What was normalised.
        weight: As `normalise` takes it.
        mean: As `moments` returns it.
        scale: The same.
        is_centred: As `normalise` takes it.
    """
    values, grad = total.to(scale.dtype), grad.to(scale.dtype)
    normal = (values - mean if is_centred else values) * scale
    weighted = grad if weight is None else grad * weight.to(scale.dtype)
    found = weighted - normal * (weighted * normal).mean(-1, keepdim=True)
    if is_centred:
        found = found - weighted.mean(-1, keepdim=True)
    return found * scale, normal


def _widened(total: Tensor, *others: Tensor | None) -> list[Any]:
    """Return tensors in the type in which the first is computed."""
    wide = computing_type(total)
    return [None if tensor is None else tensor.to(wide) for tensor in (total, *others)]


def forward(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    is_centred: bool,
    eps: float,
    dtype: torch.dtype,
    *address: Tensor,
) -> _Four:
    """Do what `dropout_add_norm` does, by operations of PyTorch."""
    total = fused.dropout_add(input.to(residual.dtype).contiguous(), residual.contiguous(), *address)
    if not is_centred:
        mean, scale = moments(total, is_centred, eps)
        return normalise(total, weight, bias, is_centred, eps, dtype), total, mean, scale
    values, weight, bias = _widened(total, weight, bias)
    output, mean, scale = torch.native_layer_norm(values, values.shape[-1:], weight, bias, eps)
    return output.to(dtype), total, mean, scale


def backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    is_centred: bool,
    needed: list[bool],
    dtype: torch.dtype,
    *address: Tensor,
) -> _Four:
    """Do what `dropout_add_norm_backward` does, by operations of PyTorch."""
    columns, grad = total.shape[-1:], grad.to(scale.dtype).contiguous()
    if is_centred:
        values, weight = _widened(total.contiguous(), weight)
        bias = grad.new_empty(columns) if needed[1] else None  # whose numbers are not read
        tensors = grad, values, columns, mean, scale, weight, bias
        found, *sums = _aten.native_layer_norm_backward(*tensors, [True, *needed])
    else:
        found, normal = gradient(grad, total, weight, mean, scale, is_centred)
        sums = [each.sum_to_size(columns) for each in (grad * normal, grad)]
    found = found if grad_total is None else found + grad_total
    place = layout("dropout", found.shape, slices=max(value.dim() for value in address[:2]))
    of_input = operators.dropout(found, *address, *place, True).to(dtype)
    of_weight, of_bias = (
        each if is_needed else grad.new_empty(0) for each, is_needed in zip(sums, needed, strict=True)
    )
    # No alias of what dropout has returned, nor of a gradient that was given.
    return of_input.contiguous(), found.to(total.dtype).contiguous(), of_weight, of_bias


def _fake_forward(
    input: Tensor, residual: Tensor, weight: Any, bias: Any, is_centred: bool, eps: float, dtype: torch.dtype, *_: Any
) -> _Four:
    stats = residual.new_empty((*input.shape[:-1], 1), dtype=computing_type(residual))
    mean = torch.empty_like(stats) if is_centred else stats.new_empty(0)
    return input.new_empty(input.shape, dtype=dtype), residual.new_empty(input.shape), mean, stats


def _fake_backward(
    grad: Tensor,
    grad_total: Any,
    total: Tensor,
    weight: Any,
    mean: Tensor,
    scale: Tensor,
    is_centred: bool,
    needed: list[bool],
    dtype: torch.dtype,
    *_: Any,
) -> _Four:
    of_weight, of_bias = (scale.new_empty(total.shape[-1:] if is_needed else 0) for is_needed in needed)
    return total.new_empty(total.shape, dtype=dtype), total.new_empty(total.shape), of_weight, of_bias


def _slice_by_slice(operator: Callable[..., _Four]) -> Callable[..., tuple[tuple[Tensor, ...], tuple[int, ...]]]:
    """Return a batching rule that runs slices one after another: sums over rows are those of every slice."""

    def batch(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        def of(index: int) -> _Four:
            pairs = zip(arguments, in_dims, strict=True)
            return operator(*(value.select(dim, index) if isinstance(dim, int) else value for value, dim in pairs))

        slices = [of(index) for index in range(info.batch_size)]
        return tuple(torch.stack(each) for each in zip(*slices, strict=True)), (0,) * 4

    return batch


for _name, _portable, _fake in (
    ("dropout_add_norm", forward, _fake_forward),
    ("dropout_add_norm_backward", backward, _fake_backward),
):
    _LIBRARY.impl(_name, _portable, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, gpu.served("triton_norm", _name, _portable), "CUDA")
    torch.library.register_fake(f"dropkit::{_name}", _fake, lib=_LIBRARY)
    _batch = _slice_by_slice(getattr(torch.ops.dropkit, _name).default)
    torch.library.register_vmap(f"dropkit::{_name}", _batch, lib=_LIBRARY)
