"""Linear maps by weights that every example masks anew: some examples at a time, or all at once."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dropkit.functional.address import signed
from dropkit.functional.autograd import traced
from dropkit.functional.noise import Noise
from dropkit.kernels import operators
from dropkit.random.layout import Layout

__all__ = ["connect", "connect_by_mask", "takes_parts"]

# Masked weights at a time: few enough for the cache of a core, elsewhere enough to outlast a launch.
_CPU_WEIGHTS, _DEVICE_WEIGHTS = 2**18, 2**24


def takes_parts(input: Tensor) -> bool:
    """Tell whether examples can be done some at a time: real numbers, and nothing that traces or transforms them."""
    return not (traced() or forward_ad._current_level >= 0 or input.is_complex())


def connect(input: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, noise: Noise) -> Tensor:
    """Apply the linear map, unscaled, under the masks of a noise; neither masks nor masked weights are kept.

    Args:
        input: Tensor of shape (..., inputs), of which `takes_parts` holds.
        weight: Tensor of shape (outputs, inputs).
        bias: Tensor of shape (outputs,), or None.
        threshold: Of the rate, or of one a slice of axis 0.
        noise: Of the call.
    """
    by_slice = bool(max(noise.key.dim(), noise.stream.dim(), threshold.dim()))
    slices = input.size(0) if by_slice else 1
    examples = math.prod(input.shape[1:-1]) if by_slice else math.prod(input.shape[:-1])
    address = (value.expand(slices) if value.dim() else value for value in (noise.key, noise.stream, threshold))
    rows = input.reshape(slices, examples, weight.size(1))
    return _Connect.apply(rows, weight, bias, *address).reshape(*input.shape[:-1], weight.size(0))


def connect_by_mask(input: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """Apply the linear map, unscaled, under masks that broadcast to (..., outputs, inputs and perhaps one for the bias).

    Sums of products, which a compiler makes one loop of, without a tensor of masked weights.
    """
    inputs = weight.size(1)
    kept = torch.where(mask[..., :inputs], weight, 0.0)
    output = (kept * input.unsqueeze(-2)).sum(-1)
    return output if bias is None else output + torch.where(mask[..., inputs], bias, 0.0)


class _Parts:
    """The masks of one call, of some examples of a slice at a time."""

    def __init__(self, input: Tensor, weight: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> None:
        self.slices, self.examples, self.inputs = input.shape
        self.outputs = weight.size(0)
        self.weight = weight
        self.address = key, stream, threshold
        most = _CPU_WEIGHTS if input.device.type == "cpu" else _DEVICE_WEIGHTS
        self.step = max(most // max(weight.numel(), 1), 1)

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        for number in range(self.slices):
            for first in range(0, self.examples, self.step):
                yield number, slice(first, min(first + self.step, self.examples))

    def _place(self, number: int, examples: slice, first_column: int, columns: int) -> tuple[Any, ...]:
        """Return key, stream, threshold and layout of some columns of the masks of some examples."""
        key, stream, threshold = (value[number] if value.dim() else value for value in self.address)
        has_own = self.address[0].dim() or self.address[1].dim()
        before = examples.start + (0 if has_own else number * self.examples)
        shape = (examples.stop - examples.start, self.outputs, columns)
        place = Layout(shape, (self.outputs, 1), signed(before * self.outputs % 2**64), first_column)
        return key, stream, threshold, *place

    def dropped(self, values: Tensor, number: int, examples: slice) -> Tensor:
        """Return numbers of the shape of the weights, or one such set an example, where the weights are kept."""
        shape = (examples.stop - examples.start, *self.weight.shape)
        return operators.dropout(values.expand(shape), *self._place(number, examples, 0, self.inputs), False)

    def dropped_bias(self, values: Tensor, number: int, examples: slice) -> Tensor:
        """Return numbers of the shape of the bias, or one such set an example, where the bias is kept."""
        shape = (examples.stop - examples.start, self.outputs, 1)
        place = self._place(number, examples, self.inputs, 1)
        return operators.dropout(values.unsqueeze(-1).expand(shape), *place, False).squeeze(-1)


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *address: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight, bias, *address)
        parts = _Parts(input, weight, *address)
        output = input.new_empty(*input.shape[:2], parts.outputs)
        for part in parts:
            torch.bmm(parts.dropped(weight, *part), input[part].unsqueeze(-1), out=output[part].unsqueeze(-1))
            if bias is not None:
                output[part] += parts.dropped_bias(bias, *part)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, *address = ctx.saved_tensors
        if torch.is_grad_enabled() or not takes_parts(grad):  # a second derivative, or a batch of gradients
            return *_differentiable(ctx, grad), None, None, None
        of_input, of_weight, of_bias = (
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) if needed else None
            for tensor, needed in zip((input, weight, bias), ctx.needs_input_grad, strict=False)
        )
        parts = _Parts(input, weight, *address)
        for part in parts:
            some = grad[part]
            if of_input is not None:
                torch.bmm(some.unsqueeze(1), parts.dropped(weight, *part), out=of_input[part].unsqueeze(1))
            if of_weight is not None:
                of_weight += parts.dropped(some.unsqueeze(2) * input[part].unsqueeze(1), *part).sum(0)
            if of_bias is not None:
                of_bias += parts.dropped_bias(some, *part).sum(0)
        return of_input, of_weight, of_bias, None, None, None


def _differentiable(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """Return the gradients by operations that PyTorch differentiates and maps."""
    input, weight, bias, key, stream, threshold = ctx.saved_tensors
    slices = max(key.dim(), stream.dim())
    noise = Noise("drop_connect", *(value.reshape((-1,) * slices) for value in (key, stream)), input.device)
    shape = (*input.shape[:-1], weight.size(0), weight.size(1) + (bias is not None))
    with torch.enable_grad():
        # A threshold a slice lies over axis 0 in any case; one key for all counts rows over the slices too.
        mask = noise.keep_mask(shape, threshold)
        tensors = [None if tensor is None else tensor.view_as(tensor) for tensor in (input, weight, bias)]
        wanted = [tensor for tensor, needed in zip(tensors, ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(connect_by_mask(*tensors, mask), wanted, grad, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]
