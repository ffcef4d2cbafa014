"""Gradients of the operators: nothing but the address is kept for the backward pass."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from dropkit.kernels import fields, operators
from dropkit.kernels.bits import fused_mask, has_few_words
from dropkit.kernels.portable import select, survivor_scale
from dropkit.random.layout import Layout

__all__ = ["Constants", "apply_dropout", "apply_function", "apply_linear", "draw_mask", "is_batched", "traced"]


class Constants:
    """Arguments of an autograd function that PyTorch's profiler does not look into.

    Where it records shapes it converts all numbers among the arguments, and fails at keys above 2**63.

    Args:
        *values: The arguments.
    """

    __slots__ = ("values",)

    def __init__(self, *values: Any) -> None:
        self.values = values


def traced() -> bool:
    """Tell whether code is being compiled or transformed, where in-place work and reading of values must be avoided."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def is_batched(*grads: Tensor) -> bool:
    """Tell whether autograd asks for several gradients at once, which neither in-place work nor views of bits take."""
    return any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Apply a function with all its arguments by position.

    In plain eager code it goes past what `Function.apply` does for arguments by name, most of a small call's time.
    """
    if traced():
        return function.apply(*arguments)
    above: Any = super(torch.autograd.Function, function)
    return above.apply(*unwrap_dead_wrappers(arguments))


def apply_linear(
    function: type[torch.autograd.Function],
    forward_mode: type[torch.autograd.Function],
    operations: Callable[..., Tensor],
    *arguments: Any,
) -> Tensor:
    """Apply a function whose derivative is a function like it, in whichever way is right here.

    Args:
        function: Without a forward-mode derivative and a batching rule: the compiler refuses a function with them.
        forward_mode: The same with both, for eager code.
        operations: The same by PyTorch's own operations, for compiled transforms, which would silently leave a
            function's derivative out.
        *arguments: All arguments, by position.
    """
    if not torch.compiler.is_compiling():
        return apply_function(forward_mode, *arguments)
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return operations(*arguments)


def apply_dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *place: Any, scaled: bool) -> Tensor:
    """Apply dropout at an address, differentiably.

    Args:
        input: Tensor of any shape.
        key: Int64 tensor with one axis for each leading axis of slices.
        stream: Int64 tensor with the same axes.
        threshold: Int64 tensor over leading axes of the input.
        *place: The fields of the mask's layout.
        scaled: Whether survivors are scaled.
    """
    arguments = input, key, stream, threshold, *place, scaled
    # Where rows are narrow, words are larger than the mask in bytes, which the compiler would keep; an operator keeps
    # nothing.
    if torch.compiler.is_compiling() and _is_fused(Layout(*place), input.numel(), input.device):
        return _by_bits(*arguments)
    return apply_linear(_Dropout, _ForwardModeDropout, _by_selection, *arguments)


def draw_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return what `dropkit.kernels.fields.keep_mask` returns; arguments are those of it."""
    if torch.compiler.is_compiling() and _is_fused(place, 8 * math.prod(place.shape), device):  # else it keeps bytes
        return fused_mask(key, stream, threshold, place, device)
    return fields.keep_mask(key, stream, threshold, place, device)


def _is_fused(place: Layout, most_bits: int, device: torch.device) -> bool:
    """Tell whether the compiler is given a mask in bits: on GPUs, in words that have no more than so many."""
    if torch._C._are_functorch_transforms_active() or not _fuses(device):
        return False
    return has_few_words(place.shape, place.first_column, most_bits)


def _fuses(device: torch.device) -> bool:
    """Tell whether the compiler is given a mask and an operation that it fuses with its neighbours, not an operator.

    On GPUs, for there memory is what costs: an operator alone reads and writes a tensor once more, 16 to 32 times its
    mask. That is reckoned; `benchmarks/gpu.py fusion` measures it. On a CPU drawing is what costs.
    """
    return device.type == "cuda"


def _by_bits(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    *place, scaled = rest
    keep = fused_mask(key, stream, threshold, Layout(*place), input.device)
    output = select(input, keep, survivor_scale(threshold) if scaled else None)
    # The compiler takes the memory format of the mask.
    return output if input.is_contiguous() else torch.empty_like(input).copy_(output)


def _by_selection(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    *place, scaled = rest
    keep = operators.keep_mask(key, stream, threshold, *place, input.device)
    return select(input, keep, survivor_scale(threshold) if scaled else None, in_place=False)


class _Dropout(torch.autograd.Function):
    """Dropout of a tensor: linear, so its derivative is itself, at the same address."""

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
        _, key, stream, threshold, *place, scaled = inputs
        ctx.save_for_backward(key, stream, threshold)
        ctx.place, ctx.scaled = place, scaled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key, stream, threshold = ctx.saved_tensors
        return apply_dropout(grad, key, stream, threshold, *ctx.place, scaled=ctx.scaled), *(None,) * 8


class _ForwardModeDropout(_Dropout):
    """The same with a forward-mode derivative and a batching rule."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Dropout.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:4])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: object) -> Tensor:
        key, stream, threshold = ctx.saved_tensors
        return apply_dropout(tangent, key, stream, threshold, *ctx.place, scaled=ctx.scaled)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        *batched, scaled = operators.batch_first(info, in_dims, *arguments)
        return apply_dropout(*batched, scaled=scaled), 0
