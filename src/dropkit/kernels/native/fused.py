"""The fused operators' work on CPU tensors: one pass by the compiled kernels, or one operation after another."""

import torch
from torch import Tensor

from dropkit.kernels.activations import activate, activate_backward
from dropkit.kernels.native import operations as native
from dropkit.random.layout import layout

__all__ = ["activation_dropout", "activation_dropout_backward", "dropout_add"]


def dropout_add(input: Tensor, residual: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    """Add dropout of a tensor, scaled, to another of its shape and type."""
    if not (_is_one(key, stream, threshold) and native.takes(input) and _is_like(residual, input, input.shape)):
        return residual + _dropout(input, key, stream, threshold)
    return native.add_plain(input, residual, *_numbers(key, threshold))


def activation_dropout(
    input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Tensor:
    """Apply dropout, scaled, to an activation of a tensor plus a number a column."""
    if not (_is_one(key, stream, threshold) and _activates(input, bias)):
        return _dropout(activate(activation, input, bias), key, stream, threshold)
    return native.activate_plain(input, bias, native.ACTIVATIONS.index(activation), *_numbers(key, threshold))


def activation_dropout_backward(
    grad: Tensor, input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Tensor:
    """Return the gradient of `activation_dropout` with respect to its input."""
    direct = _is_one(key, stream, threshold) and _activates(input, bias) and _is_like(grad, input, input.shape)
    if not direct:
        return _dropout(activate_backward(activation, grad, input, bias), key, stream, threshold)
    return native.activate_gradient_plain(
        grad, input, bias, native.ACTIVATIONS.index(activation), *_numbers(key, threshold)
    )


def _is_one(key: Tensor, stream: Tensor, threshold: Tensor) -> bool:
    """Tell whether the kernels take an address: one key and one rate for all, in training."""
    return key.dim() == stream.dim() == threshold.dim() == 0 and int(stream) == 0


def _numbers(key: Tensor, threshold: Tensor) -> tuple[int, int]:
    return int(key) % 2**64, int(threshold)


def _activates(input: Tensor, bias: Tensor | None) -> bool:
    return native.takes(input) and native.activates() and (bias is None or _is_like(bias, input, input.shape[-1:]))


def _is_like(tensor: Tensor, input: Tensor, shape: torch.Size) -> bool:
    return tensor.dtype == input.dtype and tensor.shape == shape and native.takes(tensor)


def _dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    place = layout("dropout", input.shape, slices=max(key.dim(), stream.dim()))
    return native.dropout(input, key, stream, threshold, place, scaled=True)
