"""Attention computed some heads and queries at a time, on CPUs: each part's weights stay in the cache."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dropkit.functional.attention_weights import attend, find_weights, widened
from dropkit.functional.autograd import Constants
from dropkit.functional.eager import is_plain_in_any_order
from dropkit.functional.examples import NumberedKey, numbers_of
from dropkit.functional.inputs import autocast_dtype, without_autocast
from dropkit.kernels.native import operations as native

__all__ = ["are_plain", "attend_by_parts", "takes_parts"]

# What a thread computes at a time: few enough weights for its cache, and queries enough for a matrix product.
_WEIGHTS_AT_ONCE = 2**18
_FEWEST_QUERIES = 32
# Up to so many weights of a call, 16 MB, are kept for the backward pass: to compute them again takes longer.
_MOST_KEPT = 2**22
_FEWEST_ALONE = 2**16
_AXES = 2  # of the fewest: rows and width


def takes_parts(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> bool:
    """Tell whether parts can be computed: plain tensors, not empty, with the same leading axes, and a constant mask."""
    same = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    filled = query.numel() and key.numel() and value.numel()
    constant = attn_mask is None or not attn_mask.requires_grad
    return bool(same and filled and constant) and all(map(is_plain_in_any_order, (query, key, value)))


def are_plain(query: Any, key: Any, value: Any) -> bool:
    """Tell whether parts can be computed, and nothing is wrong with three tensors of any kind."""
    return (
        all(map(is_plain_in_any_order, (query, key, value)))
        and query.dtype == key.dtype == value.dtype
        and query.dim() == key.dim() == value.dim() >= _AXES
        and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        and query.size(-1) == key.size(-1)
        and key.size(-2) == value.size(-2)
        and bool(query.numel() and key.numel() and value.numel())
        and autocast_dtype(query) is None
    )


def attend_by_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    factor: float,
    p: Any,
    source: int,
) -> Tensor:
    """Attend, where `takes_parts` holds.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        attn_mask: The mask, or None.
        is_causal: Whether query i attends to keys 0 .. i alone.
        factor: What scores are multiplied by.
        p: The rate, a float.
        source: The key of the dropout mask in ``[0, 2**64)``, with the numbers of examples if these have any.
    """
    threshold = math.floor(p * 2.0**32 + 0.5)
    output: Tensor = _Attention.apply(query, key, value, attn_mask, Constants(is_causal, factor, source, threshold))
    return output


class _Heads:
    """A tensor by heads, one after another, and rows."""

    def __init__(self, tensor: Tensor, together: int) -> None:
        self.tensor = tensor.reshape(-1, together, *tensor.shape[-2:])
        self.together = together

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        heads, rows = index
        example, first = divmod(heads.start, self.together)
        count = heads.stop - heads.start
        found = self.tensor.select(0, example)  # an index would take several times as long
        if count < self.together:
            found = found.narrow(0, first, count)
        return found if rows.stop - rows.start == found.size(1) else found.narrow(1, rows.start, rows.stop - rows.start)


class _Parts:
    """The weights of one call, a part of heads and queries at a time."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        factor: float,
        at_once: tuple[int, int, int] | None = None,
    ) -> None:
        self.shape = (*query.shape[:-1], key.size(-2))
        self.queries, self.keys = self.shape[-2:]
        self.factor = factor
        self.attn_mask = attn_mask
        self.is_causal = is_causal
        self.heads = math.prod(self.shape[:-2])
        # Heads of several examples lie apart where they were split from one projection. To lay them side by side takes
        # a copy, which pays where an example has too few weights to be computed alone.
        is_apart = query.dim() == 4 and not query.is_contiguous()
        is_alone = is_apart and math.prod(self.shape[-3:]) >= _FEWEST_ALONE
        self.together = self.shape[-3] if is_alone else self.heads
        threads = torch.get_num_threads()  # each with a head of its own, if there are as many
        most_weights = threads * _WEIGHTS_AT_ONCE
        # The later queries are, the more keys a causal mask leaves them: a few at a time spare half of the work.
        queries = min(self.queries, max(2 * _FEWEST_QUERIES, self.queries // 4)) if is_causal else self.queries
        self.most_heads = min(self.together, max(threads, most_weights // (queries * self.keys)))
        self.most_queries = min(queries, max(most_weights // (self.most_heads * self.keys), _FEWEST_QUERIES))
        if at_once is not None:  # as in the forward pass, whatever the number of threads is by now
            self.most_heads, self.most_queries, self.together = at_once
        most = self.most_heads * min(self.most_queries, self.queries) * self.keys
        # Used again for every part: new memory would cost much of what is done in it.
        self._memory = query.new_empty(2, most)
        self._room: dict[tuple[int, ...], Tensor] = {}
        self.query, self.key = self.laid(query), self.laid(key)

    def laid(self, tensor: Tensor) -> _Heads:
        """Return a tensor by heads."""
        return _Heads(tensor, self.together)

    def empty_like(self, tensor: Tensor, width: int) -> Tensor:
        """Return a new tensor that `laid` does not copy, which lies as another where it may."""
        if self.together < self.heads and width == tensor.size(-1):
            return torch.empty_like(tensor)
        return tensor.new_empty(*tensor.shape[:-1], width)

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        """Yield heads, queries and the keys that these queries may attend to."""
        starts = (range(start, start + self.together, self.most_heads) for start in range(0, self.heads, self.together))
        for head, first in itertools.product(itertools.chain(*starts), range(0, self.queries, self.most_queries)):
            last = min(head + self.most_heads, (head // self.together + 1) * self.together)
            end = min(first + self.most_queries, self.queries)
            yield slice(head, last), slice(first, end), slice(0, min(end, self.keys) if self.is_causal else self.keys)

    def weights(self, heads: slice, queries: slice, keys: slice, is_kept: bool = False) -> Tensor:
        """Return the attention weights of a part, before dropout. They last until those of the next, or are kept."""
        scores = self._scores(heads, queries, keys)
        if self.attn_mask is not None:
            return find_weights(scores, self._attn_mask(self.attn_mask, heads, queries))
        weights = torch.empty_like(scores) if is_kept else self._space(1, *scores.shape)
        native.softmax(scores, weights)
        return weights

    def dropped(self, heads: slice, queries: slice, keys: slice, key: int, threshold: int) -> Tensor:
        """Return the attention weights of a part, after dropout. They last until those of the next."""
        scores, place = self._scores(heads, queries, keys), self._place(heads, queries, keys, key)
        if self.attn_mask is not None:
            weights = find_weights(scores, self._attn_mask(self.attn_mask, heads, queries))
            native.dropout_of_(weights, *place, threshold)
            return weights
        native.softmax_dropout(scores, scores, *place, threshold)
        return scores

    def _scores(self, heads: slice, queries: slice, keys: slice) -> Tensor:
        """Return what the weights of a part are the softmax of, but for a mask that was given."""
        scores = self.products(self.query[heads, queries], self.key[heads, keys], self.factor)
        if self.is_causal and queries.start < keys.stop:  # every query attends to the first key
            columns = torch.arange(queries.start, keys.stop)
            rows = torch.arange(queries.start, queries.stop)[:, None]
            scores[..., queries.start :].masked_fill_(columns > rows, -math.inf)
        return scores

    def products(self, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
        """Return the products of every row with every row, times a factor. They last until the next."""
        found = self._space(0, *left.shape[:2], right.size(1))
        return torch.baddbmm(found, left, right.transpose(1, 2), beta=0, alpha=factor, out=found)

    def _space(self, *place: int) -> Tensor:
        """Return memory that was used before, by number and shape."""
        if place not in self._room:
            self._room[place] = self._memory[place[0], : math.prod(place[1:])].view(place[1:])
        return self._room[place]

    def _attn_mask(self, attn_mask: Tensor, heads: slice, queries: slice) -> Tensor:
        """Return a part of the mask: what heads or queries share is not repeated for all of them."""
        part = attn_mask.expand(*attn_mask.shape[:-2], *self.shape[-2:])[..., queries, :]
        if math.prod(part.shape[:-2]) == 1:
            return part.reshape(1, *part.shape[-2:])
        leading = self.shape[:-2]
        index = torch.unravel_index(torch.arange(heads.start, heads.stop), leading)
        return part.expand(*leading, *part.shape[-2:])[index]

    def bits(self, heads: slice, queries: slice, keys: slice, key: int, threshold: int) -> Tensor:
        """Return the mask of a part, a bit a weight."""
        return native.keep_bits_of(*self._place(heads, queries, keys, key), threshold)

    def _place(
        self, heads: slice, queries: slice, keys: slice, key: int
    ) -> tuple[list[tuple[int, int, int]], int, int, int, int]:
        """Return where the mask of a part lies: its slices, rows and columns in each, rows of a head, and the key."""
        numbers = numbers_of(key)
        heads_of = [(heads.stop - heads.start, heads.start, 0)] if numbers is None else self._of(numbers, heads)
        found = [(count, head * self.queries + queries.start, stream) for count, head, stream in heads_of]
        return found, queries.stop - queries.start, keys.stop - keys.start, self.queries, key

    def _of(self, numbers: NumberedKey, heads: slice) -> Iterator[tuple[int, int, int]]:
        """Yield how many heads follow one another in the mask, the number of the first there, and their stream."""
        each, start = math.prod(self.shape[1:-2]), heads.start
        while start < heads.stop:
            example, head = divmod(start, each)
            number, left, stream = numbers.place(example)
            stop = min((example + left) * each, heads.stop)
            yield stop - start, number * each + head, stream
            start = stop


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, constants: Constants
    ) -> Tensor:
        ctx.rest = is_causal, factor, dropout_key, threshold = constants.values
        wide_query, wide_key, wide_value = widened(query, key, value)
        parts = _Parts(wide_query, wide_key, attn_mask, is_causal, factor)
        values = parts.laid(wide_value)
        output = parts.empty_like(wide_query, value.size(-1))
        outputs = parts.laid(output)
        kept: list[Tensor] = []
        is_kept = math.prod(parts.shape) <= _MOST_KEPT and any(ctx.needs_input_grad)
        for heads, queries, keys in parts:
            if is_kept:
                weights = parts.weights(heads, queries, keys, is_kept)
                bits = parts.bits(heads, queries, keys, dropout_key, threshold)
                kept += weights, bits
                weights = native.apply_bits(weights, bits, threshold)
            else:
                weights = parts.dropped(heads, queries, keys, dropout_key, threshold)
            torch.bmm(weights, values[heads, keys], out=outputs[heads, queries])
        ctx.save_for_backward(query, key, value, attn_mask, *kept)
        ctx.at_once = parts.most_heads, parts.most_queries, parts.together
        return output.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if autocast_dtype(grad) is not None:
            with without_autocast(grad.device):
                return _Attention.backward(ctx, grad)
        query, key, value, attn_mask, *kept = ctx.saved_tensors
        is_causal, factor, dropout_key, threshold = ctx.rest
        none = None, None
        if torch.is_grad_enabled() or not is_plain_in_any_order(grad):  # a second derivative, or a batch of gradients
            with torch.enable_grad():
                query, key, value = (tensor.view_as(tensor) for tensor in (query, key, value))
                rate = threshold / 2.0**32
                found, *_ = attend(query, key, value, attn_mask, is_causal, factor, rate, key=dropout_key)
                needed = ctx.needs_input_grad[:3]
                wanted = [tensor for tensor, is_needed in zip((query, key, value), needed, strict=True) if is_needed]
                found_gradients = iter(torch.autograd.grad(found, wanted, grad, create_graph=True))
                return *(next(found_gradients) if is_needed else None for is_needed in needed), *none
        dtype = query.dtype
        query, key, value, grad = widened(query, key, value, grad)
        parts = _Parts(query, key, attn_mask, is_causal, factor, ctx.at_once)
        values, grads = parts.laid(value), parts.laid(grad)
        gradients = [parts.empty_like(tensor, tensor.size(-1)) for tensor in (query, key, value)]
        if is_causal:  # whose parts begin with some of the keys; else the first of a head sets what others add to
            gradients[1].zero_()
            gradients[2].zero_()
        of_query, of_key, of_value = map(parts.laid, gradients)
        from_forward = iter(kept)
        for heads, queries, keys in parts:
            weights = next(from_forward) if kept else parts.weights(heads, queries, keys)
            bits = next(from_forward) if kept else parts.bits(heads, queries, keys, dropout_key, threshold)
            of_scores = parts.products(grads[heads, queries], values[heads, keys])
            native.apply_bits_(of_scores, bits, threshold)
            torch._softmax_backward_data(of_scores, weights, -1, weights.dtype, grad_input=of_scores)
            if kept:
                weights = native.apply_bits(weights, bits, threshold)
            else:
                native.apply_bits_(weights, bits, threshold)
            beta = 1 if is_causal or queries.start else 0
            of_value[heads, keys].baddbmm_(weights.transpose(1, 2), grads[heads, queries], beta=beta)
            rows, columns = of_query[heads, queries], of_key[heads, keys]
            rows.baddbmm_(of_scores, parts.key[heads, keys], beta=0, alpha=factor)
            columns.baddbmm_(of_scores.transpose(1, 2), parts.query[heads, queries], beta=beta, alpha=factor)
        return *(tensor.to(dtype) for tensor in gradients), *none
