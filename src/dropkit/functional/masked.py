"""Dropout by a mask that is there already: one pass over memory where the compiled kernels serve."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import traced
from dropkit.functional.eager import is_plain, is_plain_gradient
from dropkit.kernels.native.masked import apply_mask_plain
from dropkit.kernels.portable import select

__all__ = ["apply_mask"]


def apply_mask(input: Tensor, keep: Tensor, scale: Tensor | float) -> Tensor:
    """Scale what is kept, in float32 or wider and rounded once; what is dropped, NaN too, becomes +0.

    Args:
        input: Tensor of any floating or complex type.
        keep: Bool tensor with as many axes, of the same length or of 1, True = kept.
        scale: Factor, or factors in float64 over the leading axes of the input.
    """
    is_one = not isinstance(scale, Tensor) or scale.dim() == 0
    if not is_plain(input) or not is_one or not input.numel() or type(keep) is not Tensor:
        return select(input, keep, scale if isinstance(scale, Tensor) else _factor(scale), in_place=not traced())
    if input.requires_grad and torch.is_grad_enabled():
        return _apply(input, keep, float(scale))
    return apply_mask_plain(input, keep, float(scale))


def _factor(scale: float) -> Tensor:
    return torch.tensor(scale, dtype=torch.float64, device="cpu")


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return apply_mask_plain(input, keep, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        if is_plain_gradient(grad):
            return apply_mask_plain(grad, keep, ctx.scale), None, None
        return select(grad, keep, _factor(ctx.scale), in_place=not traced()), None, None


_apply = super(torch.autograd.Function, _Masked).apply  # as in `dropkit.functional.eager`
