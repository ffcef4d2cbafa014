"""What the operators of `dropkit.kernels.attention` do, in PyTorch's operations: all weights of an example at once."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropkit.kernels.portable import keep_mask, survivor_scale
from dropkit.random.layout import Layout

__all__ = ["RAGGED", "Mask", "Weights", "attention", "attention_backward", "attention_bits"]

RAGGED = 2**32  # what an axis of lengths that vary counts as in an address


class Mask(NamedTuple):
    """Where the mask of the weights lies.

    Args:
        key: Int64 tensor, one key, or one an example.
        stream: Int64 tensor, one stream, or one an example.
        threshold: Int64 tensor, the threshold of one rate, or of one an example.
        begins: Int64 tensor of the first row of every example; None where they are in order, or have keys each.
    """

    key: Tensor
    stream: Tensor
    threshold: Tensor
    begins: Tensor | None = None

    def has_slices(self) -> bool:
        """Tell whether every example has rows from 0 on, for it has a key or a stream of its own."""
        return self.begins is None and max(self.key.dim(), self.stream.dim()) > 0


class Weights(NamedTuple):
    """Which weights there are.

    Args:
        is_causal: Whether query i attends to keys 0 .. i alone.
        queries: How many queries an example has; the longest, where lengths vary.
        keys: How many keys.
        query_ends: Int32 tensor of where the queries of every example begin, and those of the last end; None where
            all have as many.
        key_ends: The same of keys.
    """

    is_causal: bool
    queries: int
    keys: int
    query_ends: Tensor | None = None
    key_ends: Tensor | None = None

    def examples(self, query: Tensor) -> int:
        """Return how many examples there are."""
        return query.size(0) if self.query_ends is None else len(self.query_ends) - 1

    def head_step(self) -> int:
        """Return how many rows of the mask apart the first queries of two heads are."""
        return self.queries if self.query_ends is None else RAGGED

    def places(self, query: Tensor) -> Iterator[tuple[int, slice, slice]]:
        """Yield where every example lies: on the first axis, and its queries and keys on the third."""
        for example in range(self.examples(query)):
            if self.query_ends is None or self.key_ends is None:
                yield example, slice(self.queries), slice(self.keys)
            else:
                rows, columns = self.query_ends.tolist(), self.key_ends.tolist()
                yield 0, slice(*rows[example : example + 2]), slice(*columns[example : example + 2])


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, bits: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Do what `dropkit.kernels.triton_attention.attention` does; bits are drawn again."""
    *fields, factor = rest
    mask, weights = Mask(*fields[:4]), Weights(*fields[4:])
    output = query.new_empty((*query.shape[:3], value.size(3)))
    logs = query.new_empty(query.shape[:3], dtype=torch.float32)
    for number, (at, rows, columns) in enumerate(weights.places(query)):
        scores, values = _scores(query, key, value, attn_mask, weights, factor, at, rows, columns)
        found = torch.logsumexp(scores, -1)
        found = torch.where(found == -math.inf, math.inf, found)
        kept, scale = _kept(mask, weights, number, scores)
        survivors = torch.exp(scores - found[..., None]).masked_fill(~kept, 0.0) * scale
        output[at, :, rows] = (survivors @ values).to(output.dtype)
        logs[at, :, rows] = found / math.log(2.0)
    return output, logs


def attention_backward(
    grad: Tensor,
    output: Tensor,
    logs: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    bits: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `dropkit.kernels.triton_attention.attention_backward` does."""
    *fields, factor = rest
    mask, weights = Mask(*fields[:4]), Weights(*fields[4:])
    of_query, of_key, of_value = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    heads, own = query.size(1), key.size(1)
    for number, (at, rows, columns) in enumerate(weights.places(query)):
        scores, values = _scores(query, key, value, attn_mask, weights, factor, at, rows, columns)
        found = torch.exp(scores - logs[at, :, rows, None] * math.log(2.0))
        kept, scale = _kept(mask, weights, number, scores)
        above = grad[at, :, rows].float()
        of_weights = (above @ values.mT).masked_fill(~kept, 0.0) * scale
        weighted = (above * output[at, :, rows].float()).sum(-1, keepdim=True)
        of_scores = found * (of_weights - weighted) * factor
        survivors = found.masked_fill(~kept, 0.0) * scale
        keys = key[at, :, columns].float().repeat_interleave(heads // own, 0)
        of_query[at, :, rows] = (of_scores @ keys).to(of_query.dtype)
        each = (of_scores.mT @ query[at, :, rows].float(), survivors.mT @ above)
        of_keys, of_values = (tensor.unflatten(0, (own, heads // own)).sum(1) for tensor in each)
        of_key[at, :, columns] = of_keys.to(of_key.dtype)
        of_value[at, :, columns] = of_values.to(of_value.dtype)
    return of_query, of_key, of_value


def attention_bits(query: Tensor, *rest: Any) -> Tensor:
    """Do what `dropkit.kernels.triton_attention.attention_bits` does."""
    mask, weights = Mask(*rest[:4]), Weights(*rest[4:])
    words = (weights.keys + 31) // 32
    bits = query.new_zeros((*query.shape[:2], words, query.size(2)), dtype=torch.int32)
    shifts = torch.arange(32, device=query.device)
    for number, (at, rows, columns) in enumerate(weights.places(query)):
        shape = (query.size(1), rows.stop - (rows.start or 0), columns.stop - (columns.start or 0))
        kept, _ = _kept(mask, weights, number, query.new_empty(()).expand(shape))
        kept = torch.nn.functional.pad(kept, (0, 32 * words - shape[2])).unflatten(-1, (words, 32))
        bits[at, :, :, rows] = (kept.long() << shifts).sum(-1).to(torch.int32).mT
    return bits


def _scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    weights: Weights,
    factor: float,
    at: int,
    rows: slice,
    columns: slice,
) -> tuple[Tensor, Tensor]:
    """Return the scores of an example, and its values, for every head."""
    group = query.size(1) // key.size(1)
    keys, values = (tensor[at, :, columns].float().repeat_interleave(group, 0) for tensor in (key, value))
    scores = query[at, :, rows].float() @ keys.mT * factor
    if attn_mask is not None:
        added = attn_mask[at]
        scores = scores.masked_fill(~added, -math.inf) if added.dtype == torch.bool else scores + added
    if weights.is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return scores, values


def _kept(mask: Mask, weights: Weights, number: int, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return which weights of an example are kept, and what these are multiplied by."""
    key, stream, threshold = (value[number] if value.numel() > 1 else value.reshape(()) for value in mask[:3])
    step = weights.head_step()
    first = 0 if mask.has_slices() else number * scores.size(0) * step
    first = first if mask.begins is None else int(mask.begins[number])
    place = Layout(tuple(scores.shape), (step, 1), first, 0)
    return keep_mask(key, stream, threshold, place, scores.device), survivor_scale(threshold).to(scores)
