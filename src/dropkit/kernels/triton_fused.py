"""Dropout with what stands before or after it, in one pass over the memory of a GPU."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels.activations import activate, activate_backward
from dropkit.kernels.native.division import Division, divide
from dropkit.kernels.operators import dropout
from dropkit.kernels.triton_address import launch
from dropkit.kernels.triton_bits import NOT_SPECIALIZED, keep, near, places, scaled
from dropkit.kernels.triton_dropout import TYPES
from dropkit.random.layout import Layout, layout

__all__ = ["activation_dropout", "activation_dropout_backward", "dropout_add"]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _dropout_add(
    input, residual, output,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    key, stream, rate, row, block, offset, is_inside = places(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
        skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS, IS_ALIGNED,
    )  # fmt: skip
    values, other = tl.load(input + offset, mask=is_inside), tl.load(residual + offset, mask=is_inside)
    kept = keep(key, stream, rate, row, block, near(values))
    values = scaled(values, rate)
    found = tl.where(kept, values, 0.0) + other
    tl.store(output + offset, found.to(output.dtype.element_ty), mask=is_inside)


@triton.jit
def _logistic(values):
    return 1.0 / (1.0 + tl.exp(-values))


@triton.jit
def _normal_distribution(values):
    return 0.5 * (1.0 + tl.erf(values * 0.7071067811865476))


@triton.jit
def _argument(values):
    """Return u such that GELU is near ``values * logistic(u)``, by the hyperbolic tangent of half of it."""
    return 1.5957691216057308 * (values + 0.044715 * values * values * values)


@triton.jit
def _activated(values, ACTIVATION: tl.constexpr):
    """Return an activation of numbers in float32 or wider."""
    if ACTIVATION == "relu":
        return tl.where(values <= 0.0, 0.0, values)  # NaN stays
    elif ACTIVATION == "gelu":
        return values * _normal_distribution(values)
    elif ACTIVATION == "gelu_tanh":
        return values * _logistic(_argument(values))
    else:
        return values * _logistic(values)


@triton.jit
def _gradient(upper, values, ACTIVATION: tl.constexpr):
    """Return the gradient with respect to the argument of an activation, from that of its value."""
    if ACTIVATION == "relu":
        return tl.where(values <= 0.0, 0.0, upper)  # as PyTorch's, which NaN passes
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * values * values)
        return upper * (_normal_distribution(values) + values * density)
    elif ACTIVATION == "gelu_tanh":
        logistic = _logistic(_argument(values))
        slope = 1.5957691216057308 * (1.0 + 0.134145 * values * values)
        return upper * (logistic + values * logistic * (1.0 - logistic) * slope)
    else:
        logistic = _logistic(values)
        return upper * (logistic + values * logistic * (1.0 - logistic))


@triton.jit
def _widened(values):
    return values if values.dtype == tl.float64 else values.to(tl.float32)


@triton.jit
def _shifted(values, bias, block, is_inside):
    """Return values in float32 or wider, plus a number a column, if any."""
    values = _widened(values)
    if bias is not None:
        values += tl.load(bias + block * 8 + tl.arange(0, 8)[None, :], mask=is_inside)
    return values


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _activation_dropout(
    input, bias, output,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    key, stream, rate, row, block, offset, is_inside = places(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
        skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS, IS_ALIGNED,
    )  # fmt: skip
    values = tl.load(input + offset, mask=is_inside)
    kept = keep(key, stream, rate, row, block, near(values))
    found = tl.where(kept, _activated(_shifted(values, bias, block, is_inside), ACTIVATION), 0.0)
    tl.store(output + offset, scaled(found, rate).to(output.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _activation_dropout_backward(
    grad, input, bias, output,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    key, stream, rate, row, block, offset, is_inside = places(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
        skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS, IS_ALIGNED,
    )  # fmt: skip
    upper, values = tl.load(grad + offset, mask=is_inside), tl.load(input + offset, mask=is_inside)
    found = _gradient(_widened(upper), _shifted(values, bias, block, is_inside), ACTIVATION)
    if ACTIVATION != "relu":  # of which the result is given, that is 0 where an element is dropped: no mask is drawn
        found = tl.where(keep(key, stream, rate, row, block, near(upper)), found, 0.0)
    tl.store(output + offset, scaled(found, rate).to(output.dtype.element_ty), mask=is_inside)


def dropout_add(input: Tensor, residual: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    """Do what `dropkit.kernels.fused.dropout_add` does."""
    place, division = _divided(input, key, stream, threshold)
    if _serves(division, input, residual):
        return _run(_dropout_add, (input, residual), division, (key, stream, threshold))
    return residual + dropout(input, key, stream, threshold, *place, True)


def activation_dropout(
    input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Tensor:
    """Do what `dropkit.kernels.fused.activation_dropout` does."""
    place, division = _divided(input, key, stream, threshold)
    if _serves(division, input) and _fits(bias, input):
        tensors = input, None if bias is None else bias.contiguous()
        return _run(_activation_dropout, tensors, division, (key, stream, threshold), ACTIVATION=activation)
    return dropout(activate(activation, input, bias), key, stream, threshold, *place, True)


def activation_dropout_backward(
    grad: Tensor, input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Tensor:
    """Do what `dropkit.kernels.fused.activation_dropout_backward` does."""
    place, division = _divided(input, key, stream, threshold)
    if _serves(division, input, grad.contiguous()) and _fits(bias, input):
        tensors = grad.contiguous(), input, None if bias is None else bias.contiguous()
        address = key, stream, threshold
        return _run(_activation_dropout_backward, tensors, division, address, ACTIVATION=activation)
    return dropout(activate_backward(activation, grad, input, bias), key, stream, threshold, *place, True)


def _divided(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> tuple[Layout, Division]:
    place = layout("dropout", input.shape, slices=max(key.dim(), stream.dim()))
    return place, divide(key, stream, threshold, place)


def _serves(division: Division, input: Tensor, other: Tensor | None = None) -> bool:
    """Tell whether the kernels take a tensor, and another that goes with it element by element."""
    if division.is_too_fine or input.dtype not in TYPES or not input.is_contiguous() or not input.numel():
        return False
    is_like = other is None or (other.is_contiguous() and other.dtype == input.dtype and other.shape == input.shape)
    return is_like and input.shape == division.mask_shape


def _fits(bias: Tensor | None, input: Tensor) -> bool:
    return bias is None or (bias.dtype == input.dtype and bias.shape == input.shape[-1:])


def _run(
    kernel: Any, tensors: tuple[Any, ...], division: Division, address: tuple[Tensor, Tensor, Tensor], **options: Any
) -> Tensor:
    """Return what a kernel makes of tensors."""
    output = torch.empty_like(tensors[0])
    launch(division, *address, output.device).run(kernel, *tensors, output, **options)
    return output
