"""Gradients of dropout that moves units: nothing but the address and the scale is kept for the backward pass."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import apply_linear
from dropkit.kernels import operators
from dropkit.kernels.affine import affine_dropout, batch_affine
from dropkit.kernels.portable import move

__all__ = ["apply_affine"]


def apply_affine(
    input: Tensor,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    scale: Tensor,
    shift: Tensor,
    dropped: Tensor,
    *place: Any,
) -> Tensor:
    """Map what a mask at an address keeps, and put a constant in the place of the rest, differentiably.

    Args:
        input: Tensor of a real floating type.
        key: Int64 tensor with one axis for each leading axis of slices.
        stream: Int64 tensor with the same axes.
        threshold: Int64 tensor over leading axes of the input.
        scale: Float64 tensor of factors, with the same axes as `threshold`.
        shift: Float64 tensor of what is then added.
        dropped: Float64 tensor of the constants.
        *place: The fields of the mask's layout.
    """
    values = threshold, scale, shift, dropped
    return apply_linear(_Affine, _ForwardModeAffine, _by_moving, input, key, stream, *values, *place)


def _by_moving(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    scale, shift, dropped, *place = rest
    keep = operators.keep_mask(key, stream, threshold, *place, input.device)
    return move(input, keep, scale, shift, dropped, in_place=False)


class _Affine(torch.autograd.Function):
    """Its derivative is the same without what is added: dropout to 0 with another scale."""

    @staticmethod
    def forward(
        input: Tensor,
        key: Tensor,
        stream: Tensor,
        threshold: Tensor,
        scale: Tensor,
        shift: Tensor,
        dropped: Tensor,
        shape: tuple[int, ...],
        row_strides: tuple[int, ...],
        first_row: int,
        first_column: int,
    ) -> Tensor:
        place = shape, row_strides, first_row, first_column
        return affine_dropout(input, key, stream, threshold, scale, shift, dropped, *place)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:5])
        ctx.place = inputs[7:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _derivative(ctx, grad), *(None,) * 10


class _ForwardModeAffine(_Affine):
    """The same with a forward-mode derivative and a batching rule."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Affine.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:5])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: object) -> Tensor:
        return _derivative(ctx, tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return apply_affine(*batch_affine(info, in_dims, *arguments)), 0


def _derivative(ctx: Any, change: Tensor) -> Tensor:
    key, stream, threshold, scale = ctx.saved_tensors
    zero = torch.zeros_like(scale)
    return apply_affine(change, key, stream, threshold, scale, zero, zero, *ctx.place)
