"""The fused operators' work on CPU tensors: one pass by the compiled kernels, or one operation after another."""

import torch
from torch import Tensor

from dropkit.kernels.activations import activate, activate_backward
from dropkit.kernels.native import operations as native
from dropkit.kernels.native.division import Division, divide, remembered
from dropkit.random.layout import Layout, layout

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
    is_direct, number = _activates(input, bias), native.ACTIVATIONS.index(activation)
    if is_direct and _is_one(key, stream, threshold):  # most common, and spared the rest
        return native.activate_plain(input, bias, number, *_numbers(key, threshold))
    place = _place(input.shape, max(key.dim(), stream.dim()))
    division = divide(key, stream, threshold, place)
    if not (is_direct and _is_whole(input, division)):
        return native.dropout(activate(activation, input, bias), key, stream, threshold, place, scaled=True)
    output = torch.empty_like(input)
    for call in division.calls(key, stream, threshold, scaled=True):
        size = call.offset * input.element_size()
        places = input.data_ptr() + size, _pointer(bias), output.data_ptr() + size
        native.serving().activate_slices(native.TYPES[input.dtype], number, *places, call.packed)
    return output


def activation_dropout_backward(
    grad: Tensor, input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Tensor:
    """Return the gradient of `activation_dropout` with respect to its input; for ReLU `input` is its result."""
    number = native.ACTIVATIONS.index(activation)
    is_direct = _activates(input, bias) and _is_like(grad, input, input.shape)
    if is_direct and _is_one(key, stream, threshold):
        return native.activate_gradient_plain(grad, input, bias, number, *_numbers(key, threshold))
    place = _place(input.shape, max(key.dim(), stream.dim()))
    division = divide(key, stream, threshold, place)
    if not (is_direct and _is_whole(input, division)):
        # In this order: 0 times the derivative would be NaN where that is, as it is of infinity.
        gradient = activate_backward(activation, grad, input, bias)
        return native.dropout(gradient, key, stream, threshold, place, scaled=True)
    output = torch.empty_like(input)
    for call in division.calls(key, stream, threshold, scaled=True):
        size = call.offset * input.element_size()
        places = grad.data_ptr() + size, input.data_ptr() + size, _pointer(bias), output.data_ptr() + size
        native.serving().activate_gradient_slices(native.TYPES[input.dtype], number, *places, call.packed)
    return output


def _is_whole(input: Tensor, division: Division) -> bool:
    """Tell whether every element has a place of its own in the mask, and every row one rate."""
    return division.mask_shape == input.shape and not division.is_too_fine


def _pointer(bias: Tensor | None) -> int | None:
    return None if bias is None else bias.data_ptr()


@remembered
def _place(shape: torch.Size, slices: int) -> Layout:
    return layout("dropout", shape, slices=slices)


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
    return native.dropout(input, key, stream, threshold, _place(input.shape, max(key.dim(), stream.dim())), scaled=True)
