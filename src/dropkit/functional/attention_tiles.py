"""Attention by tiles, on GPUs: no weight is in memory, forward or backward, and the mask is drawn where needed."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dropkit._checks import argument_error
from dropkit.functional.address import key_tensor
from dropkit.functional.attention_inputs import WHERE, broadcast
from dropkit.functional.attention_weights import attend
from dropkit.functional.autograd import is_batched
from dropkit.functional.examples import check_examples, numbers_of
from dropkit.functional.inputs import without_autocast
from dropkit.kernels import attention as operators
from dropkit.kernels import gpu
from dropkit.kernels.attention import Mask, Weights
from dropkit.kernels.gpu_address import Form
from dropkit.kernels.gpu_attention import attention_form
from dropkit.kernels.portable import moved_to

__all__ = ["attend_by_tiles", "attend_packed", "takes_tiles"]

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_WIDEST = 256
_OLDEST = 8, 0  # compute capability: those before lack registers and shared memory for tiles
# Up to so many weights of a call have their mask drawn once, as bits, which all kernels read; it is drawn three times
# above, in the forward pass and for either half of the backward pass. None yet: bits take memory, and whether they
# save time is a matter of measurement, which benchmarks/gpu_attention.py does.
_MOST_BITS = 0


def takes_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    leading: tuple[tuple[int, ...], ...],
    is_causal: bool,
    is_packed: bool = False,
) -> bool:
    """Tell whether kernels serve these tensors here and now.

    Args:
        query: Checked queries.
        key: Keys.
        value: Values.
        attn_mask: The mask, or None.
        leading: The leading axes of the weights, and of the output.
        is_causal: Whether query i attends to keys 0 .. i alone.
        is_packed: Whether examples of various lengths lie one behind the other.
    """
    of_weights, of_output = leading
    fits = of_weights == of_output and len(of_weights) > 0 and max(query.size(-1), value.size(-1)) <= _WIDEST
    is_filled = bool(query.numel() and key.numel() and value.numel())
    is_constant = attn_mask is None or not attn_mask.requires_grad
    return (
        query.dtype in _TYPES
        and fits
        and is_filled
        and is_constant
        and not torch._C._are_functorch_transforms_active()
        and (torch.compiler.is_compiling() or forward_ad._current_level < 0)
        and is_served(query, value, attn_mask, is_causal, is_packed)
    )


def is_served(query: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, is_packed: bool) -> bool:
    """Tell whether there are kernels for the tensors' device; arguments are those of `takes_tiles`."""
    if not query.is_cuda:
        return False
    return _has_kernels(query.device, query.dtype, attention_form(query, value, attn_mask, is_causal, is_packed))


def _has_kernels(device: torch.device, dtype: torch.dtype, like: Form) -> bool:
    if torch.cuda.get_device_capability(device) < _OLDEST:
        return False
    return all(gpu.why_portable(name, device, dtype, like) is None for name in ("attention", "attention_backward"))


# As torch.compiler.assume_constant_result, which takes seconds to load.
_has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]  # which Dynamo looks for


def attend_by_tiles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    factor: float,
    leading: tuple[tuple[int, ...], ...],
    enable_gqa: bool,
    p: Any,
    drawn: Any,
    stream: Any,
    threshold: Tensor,
    streams: Tensor,
) -> Tensor:
    """Attend, where `takes_tiles` holds.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        attn_mask: The mask, or None.
        is_causal: Whether query i attends to keys 0 .. i alone.
        factor: What scores are multiplied by.
        leading: The leading axes of the weights, and of the output.
        enable_gqa: Whether a head of keys and values serves several of queries.
        p: The rate, as it was given.
        drawn: The key of the mask.
        stream: The stream, as it was given.
        threshold: Thresholds of the rate.
        streams: Streams as tensors.
    """
    of_weights, _ = leading
    # Four axes: examples, which may have keys of their own, heads, rows and width.
    has_groups = enable_gqa and query.dim() >= 4 and key.shape[:-2] == value.shape[:-2]
    if not (has_groups and query.shape[:-3] == key.shape[:-3]):
        query, key, value = broadcast(query, key, value, (of_weights, of_weights), enable_gqa)
    first, queries, keys = of_weights[0], query.size(-2), key.size(-2)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*of_weights, queries, keys).reshape(first, -1, queries, keys)
    four = [tensor.reshape(first, -1, *tensor.shape[-2:]) for tensor in (query, key, value)]
    mask = _mask_of(drawn, streams, threshold, (*of_weights, queries, keys), query.device)
    weights = Weights(is_causal, queries, keys)
    output = _Attention.apply(*four, attn_mask, *mask, *weights, factor, (p, drawn, stream))
    found: Tensor = output.reshape(*of_weights, queries, value.size(-1))
    return found


def attend_packed(query: Tensor, key: Tensor, value: Tensor, mask: Mask, weights: Weights, factor: float) -> Tensor:
    """Attend where lengths vary: to tensors of shape (heads, rows of all examples, width)."""
    output: Tensor = _Attention.apply(query[None], key[None], value[None], None, *mask, *weights, factor, None)
    return output[0]


def _mask_of(drawn: Any, streams: Tensor, threshold: Tensor, shape: tuple[int, ...], device: torch.device) -> Mask:
    """Return where a mask of attention weights lies; examples that have numbers have the rows of these."""
    numbers = numbers_of(drawn)
    if numbers is None or not numbers.runs:
        return Mask(key_tensor(drawn), streams, threshold)
    check_examples(WHERE, numbers.runs, shape, len(numbers.streams))
    rows = math.prod(shape[1:-1])
    places = [numbers.place(example) for example in range(shape[0])]
    begins = [((number * rows + 2**63) % 2**64) - 2**63 for number, _, _ in places]
    passes = torch.tensor([stream for _, _, stream in places], device="cpu")
    first_rows = torch.tensor(begins, device="cpu")
    return Mask(key_tensor(drawn), moved_to(passes, device), threshold, moved_to(first_rows, device))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, *rest: Any) -> Tensor:
        mask, weights, (factor, source) = Mask(*rest[:4]), Weights(*rest[4:9]), rest[9:]
        bits = None
        if math.prod(query.shape[:3]) * weights.keys <= _MOST_BITS:
            bits = operators.attention_bits(query, *mask, *weights)
        output, logs = operators.attention(query, key, value, attn_mask, bits, *mask, *weights, factor)
        ctx.save_for_backward(query, key, value, attn_mask, bits, output, logs, *mask, *weights[3:])
        ctx.rest = weights[:3], factor, source
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attn_mask, bits, output, logs, *fields = ctx.saved_tensors
        sizes, factor, source = ctx.rest
        none = (None,) * 12
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or is_batched(grad)):
            inputs = query, key, value, attn_mask
            return *_differentiable(inputs, grad, sizes[0], factor, source, ctx.needs_input_grad[:3]), *none
        rest = (*fields[:4], *sizes, *fields[4:], factor)
        found = operators.attention_backward(grad, output, logs, query, key, value, attn_mask, bits, *rest)
        return *found, *none


def _differentiable(
    inputs: tuple[Any, ...], grad: Tensor, is_causal: bool, factor: float, source: Any, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again, for which all weights are stored."""
    if source is None:
        raise argument_error(WHERE, "query", "dense where a second derivative is asked for", "nested")
    p, drawn, stream = source
    with torch.enable_grad(), without_autocast(grad.device):
        query, key, value = (tensor.view_as(tensor) for tensor in inputs[:3])
        keys, values = (each.repeat_interleave(query.size(1) // each.size(1), 1) for each in (key, value))
        found, *_ = attend(query, keys, values, inputs[3], is_causal, factor, p, key=drawn, stream=stream)
        pairs = list(zip((query, key, value), needed, strict=True))
        wanted = [tensor for tensor, is_needed in pairs if is_needed]
        gradients = iter(torch.autograd.grad(found, wanted, grad, create_graph=True))
        return [next(gradients) if is_needed else None for _, is_needed in pairs]
