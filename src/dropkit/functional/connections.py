"""Linear maps by weights that every example masks anew: some examples at a time, or all at once."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dropkit.functional.address import signed
from dropkit.functional.autograd import apply_dropout, is_batched, traced
from dropkit.functional.examples import check_examples
from dropkit.functional.noise import Noise
from dropkit.kernels import fields, operators
from dropkit.random.layout import Layout

__all__ = ["Linear", "connect", "connect_by_mask", "takes_parts"]

Linear = tuple[Tensor, Tensor, Tensor | None]
"""Input of shape (..., inputs), weight of shape (outputs, inputs), and bias of shape (outputs,) or None."""

# Masked weights at a time: few enough for the cache of a core, elsewhere enough to outlast a launch.
_CPU_WEIGHTS, _DEVICE_WEIGHTS = 2**18, 2**24


def takes_parts(input: Tensor) -> bool:
    """Tell whether examples can be done some at a time: real numbers, and nothing that traces or transforms them."""
    return not (traced() or forward_ad._current_level >= 0 or is_batched(input) or input.is_complex())


def connect(linear: Linear, threshold: Tensor, noise: Noise) -> Tensor:
    """Apply the linear map, unscaled, under the masks of a noise; neither masks nor masked weights are kept.

    Args:
        linear: Input, of which `takes_parts` holds, weight and bias.
        threshold: Of the rate, or of one a slice of axis 0.
        noise: Of the call.
    """
    rows, weight, bias = linear
    if noise.runs:
        check_examples(noise.where, noise.runs, (*rows.shape[:-1], *weight.shape), max(noise.passes, 1))
    is_alike = len(noise.runs) > 1 and noise.runs[0][1] == 1 and len(set(noise.runs)) == 1
    if is_alike and rows.dim() == 2 and not threshold.dim():
        return _connect_alike(linear, threshold, noise)
    if noise.passes and (threshold.dim() or len(noise.runs) > 1):
        parts = _split(rows, threshold, [rows.size(0) // noise.passes] * noise.passes)
        passes = [connect((x, weight, bias), rate, noise.one_pass(i)) for i, (x, rate) in enumerate(parts)]
        return torch.cat(passes)
    if len(noise.runs) > 1:
        parts = _split(rows, threshold, [length for _, length in noise.runs])
        alone = [noise._replace(runs=(run,)) for run in noise.runs]
        return torch.cat([connect((x, weight, bias), rate, of) for (x, rate), of in zip(parts, alone, strict=True)])
    by_slice = bool(max(noise.key.dim(), noise.stream.dim(), threshold.dim()))
    slices = noise.passes or (rows.size(0) if by_slice else 1)
    inner = rows.shape[1:-1] if by_slice and not noise.passes else rows.shape[:-1]
    first = noise.runs[0][0] * math.prod(rows.shape[1:-1]) if noise.runs else 0
    examples = math.prod(inner) // max(noise.passes, 1)
    address = (value.expand(slices) if value.dim() else value for value in (noise.key, noise.stream, threshold))
    output = _Connect.apply(rows.reshape(slices, examples, weight.size(1)), weight, bias, *address, first)
    return output.reshape(*rows.shape[:-1], weight.size(0))


def _connect_alike(linear: Linear, threshold: Tensor, noise: Noise) -> Tensor:
    """Apply the linear map under one mask for all examples of a pass: one product of matrices each."""
    rows, weight, bias = linear
    place, *_ = noise.places((len(rows), *weight.shape))
    passes, address = max(noise.passes, 1), (noise.key, noise.stream, threshold)

    def dropped(values: Tensor, first_column: int) -> Tensor:
        lengths = (1, *values.shape)
        laid = values.expand(*noise.stream.shape, *lengths)
        columns = place._replace(shape=lengths, first_column=first_column)
        return apply_dropout(laid, *address, *columns, scaled=False).reshape(passes, *values.shape)

    output = rows.unflatten(0, (passes, -1)) @ dropped(weight, 0).transpose(1, 2)
    if bias is not None:
        output = output + dropped(bias.unsqueeze(1), weight.size(1)).transpose(1, 2)
    return output.flatten(0, 1)


def _split(rows: Tensor, threshold: Tensor, lengths: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the rows of some examples after those of others, with their rates."""
    rates = threshold.split(lengths) if threshold.dim() else [threshold] * len(lengths)
    return zip(rows.split(lengths), rates, strict=True)


def connect_by_mask(linear: Linear, mask: Tensor) -> Tensor:
    """Apply the linear map, unscaled, under masks that broadcast to (..., outputs, inputs), or inputs + 1 with a bias.

    Sums of products, which a compiler makes one loop of, without a tensor of masked weights.
    """
    rows, weight, bias = linear
    inputs = weight.size(1)
    kept = torch.where(mask[..., :inputs], weight, 0.0)
    output = (kept * rows.unsqueeze(-2)).sum(-1)
    return output if bias is None else output + torch.where(mask[..., inputs], bias, 0.0)


class _Parts:
    """The masks of one call, of some examples of a slice at a time."""

    def __init__(
        self, input: Tensor, weight: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, first: int
    ) -> None:
        self.slices, self.examples, self.inputs = input.shape
        self.outputs = weight.size(0)
        self.weight = weight
        self.address, self.first = (key, stream, threshold), first
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
        before = self.first + examples.start + (0 if has_own else number * self.examples)
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
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *address: Any) -> Tensor:
        *tensors, ctx.first = address
        ctx.save_for_backward(input, weight, bias, *tensors)
        parts = _Parts(input, weight, *address)
        output = input.new_empty(*input.shape[:2], parts.outputs)
        for part in parts:
            torch.bmm(parts.dropped(weight, *part), input[part].unsqueeze(-1), out=output[part].unsqueeze(-1))
            if bias is not None:
                output[part] += parts.dropped_bias(bias, *part)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, key, stream, threshold = ctx.saved_tensors
        if torch.is_grad_enabled() or not takes_parts(grad):  # a second derivative, or a batch of gradients
            return *_differentiable(ctx, grad), None, None, None, None
        of_input, of_weight, of_bias = (
            torch.zeros_like(tensor, memory_format=torch.contiguous_format) if needed else None
            for tensor, needed in zip((rows, weight, bias), ctx.needs_input_grad, strict=False)
        )
        parts = _Parts(rows, weight, key, stream, threshold, ctx.first)
        for part in parts:
            some = grad[part]
            if of_input is not None:
                torch.bmm(some.unsqueeze(1), parts.dropped(weight, *part), out=of_input[part].unsqueeze(1))
            if of_weight is not None:
                of_weight += parts.dropped(some.unsqueeze(2) * rows[part].unsqueeze(1), *part).sum(0)
            if of_bias is not None:
                of_bias += parts.dropped_bias(some, *part).sum(0)
        return of_input, of_weight, of_bias, None, None, None, None


def _differentiable(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """Return the gradients by operations that PyTorch differentiates and maps."""
    rows, weight, bias, key, stream, threshold = ctx.saved_tensors
    slices = max(key.dim(), stream.dim())
    key, stream = (value.reshape((-1,) * slices) for value in (key, stream))
    shape = (*rows.shape[:-1], weight.size(0), weight.size(1) + (bias is not None))
    [place] = Noise("drop_connect", key, stream, rows.device).places(shape)
    place = place._replace(first_row=signed(ctx.first * weight.size(0) % 2**64))
    mask = fields.keep_mask(key, stream, threshold, place, rows.device)
    with torch.enable_grad():
        views = rows.view_as(rows), weight.view_as(weight), None if bias is None else bias.view_as(bias)
        wanted = [v for v, needed in zip(views, ctx.needs_input_grad, strict=False) if v is not None and needed]
        found = iter(torch.autograd.grad(connect_by_mask(views, mask), wanted, grad, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]
