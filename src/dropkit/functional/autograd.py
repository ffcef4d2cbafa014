"""Gradients and batching of the operators: nothing but the address is kept for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import operators

__all__ = ["Dropout", "KeepMask"]


class Dropout(torch.autograd.Function):
    """Dropout of a tensor; linear, so its derivative is itself, under the same address."""

    @staticmethod
    def forward(
        input: Tensor,
        key: Tensor,
        stream: Tensor,
        threshold: Tensor,
        shape: tuple[int, ...],
        row_strides: tuple[int, ...],
        first_row: int,
        first_column: int,
        scaled: bool,
    ) -> Tensor:
        return operators.dropout(input, key, stream, threshold, shape, row_strides, first_row, first_column, scaled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, key, stream, threshold, *ctx.rest = inputs
        ctx.save_for_backward(key, stream, threshold)
        ctx.save_for_forward(key, stream, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return Dropout.apply(grad, *ctx.saved_tensors, *ctx.rest), *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: object) -> Tensor:
        return Dropout.apply(tangent, *ctx.saved_tensors, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], input: Tensor, *address: Any) -> tuple[Tensor, int]:
        input = input.expand(info.batch_size, *input.shape) if in_dims[0] is None else input.movedim(in_dims[0], 0)
        return Dropout.apply(input, *_batched(in_dims[1:4], address[:3]), *address[3:]), 0


class KeepMask(torch.autograd.Function):
    """The mask of an address; no gradient reaches it."""

    @staticmethod
    def forward(key: Tensor, stream: Tensor, threshold: Tensor, *place: Any) -> Tensor:
        return operators.keep_mask(key, stream, threshold, *place)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return KeepMask.apply(*_batched(in_dims[:3], inputs[:3]), *inputs[3:]), 0


def _batched(in_dims: tuple[int | None, ...], address: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Give key, stream and threshold a leading axis: a slice with an address of its own, or one shared by all."""
    move: Callable[[Tensor, int | None], Tensor] = lambda value, dim: (
        value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
    )
    return [move(value, dim) for value, dim in zip(address, in_dims, strict=True)]
