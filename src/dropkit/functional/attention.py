"""Attention whose dropout mask is addressed by query and key."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.functional.address import Names, check_not_traced, check_source, draw_key, plain_rate
from dropkit.functional.attention_inputs import (
    WHERE,
    broadcast,
    cast,
    check_options,
    check_tensors,
    leading_axes,
    plain_scale,
)
from dropkit.functional.attention_jagged import are_jagged, attend_jagged
from dropkit.functional.attention_tiles import attend_by_tiles, takes_tiles
from dropkit.functional.attention_weights import attend, find_weights, widened
from dropkit.functional.autograd import Constants
from dropkit.functional.eager import is_plain
from dropkit.functional.examples import NumberedKey, check_examples, numbers_of
from dropkit.functional.inputs import autocast_dtype, check_mask, is_identity, without_autocast
from dropkit.functional.overrides import overridable
from dropkit.kernels.native import operations as native

__all__ = ["scaled_dot_product_attention"]

_NAMES = Names("query", "dropout_p", "dropout_key")
# What a thread computes at a time: few enough weights for its cache, and queries enough for a matrix product.
_WEIGHTS_AT_ONCE = 2**18
_FEWEST_QUERIES = 32
# Up to so many weights of a call, 16 MB, are kept for the backward pass: to compute them again takes longer.
_MOST_KEPT = 2**22
_FEWEST_ALONE = 2**16


@overridable
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float | Tensor = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    training: bool = True,
    generator: torch.Generator | None = None,
    dropout_key: int | Tensor | None = None,
    dropout_mask: Tensor | None = None,
    return_dropout_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Attend, with dropout of the attention weights in training.

    It takes the arguments of `torch.nn.functional.scaled_dot_product_attention`, and draws nothing where `training` is
    False. The weight of a query and a key has the place (..., head, query, key) in the mask, whatever is computed
    together. On a CPU, in eager code and for one dropout key, weights are computed some queries at a time, and where
    there are more than 2**22 of them for the backward pass again, so that memory grows with the number of keys and not
    with its square. Half types are computed in float32 there, and rounded once. On a GPU with Triton, weights are
    computed a tile at a time and never stored, and in the backward pass again, for any number of dropout keys.

    Args:
        query: Tensor of shape (..., heads, queries, width). The leading axes of all three broadcast; those of query and
            key alone address the mask, so values with more of them share it. Or, like key and value then, a nested
            tensor of layout `torch.jagged` and shape (examples, heads, queries, width), whose queries vary in number;
            the mask counts both them and the keys as 2**32.
        key: Tensor of shape (..., heads, keys, width).
        value: Tensor of shape (..., heads, keys, columns).
        attn_mask: A bool tensor, True = takes part, or numbers to add to the scores; broadcasts to
            (..., heads, queries, keys). Default: none.
        dropout_p: Probability of dropping a weight, in ``[0, 1]``, or a tensor as for `dropout`. Default: 0.
        is_causal: Whether query i attends to keys 0 .. i alone; without `attn_mask`. Default: False.
        scale: What scores are multiplied by. Default: ``1 / sqrt(width)``.
        enable_gqa: Whether `key` and `value` may have fewer heads, each serving as many consecutive heads of `query`.
            Default: False.
        training: Whether to drop. Default: True.
        generator: Where to draw the dropout key. Default: PyTorch's own generator.
        dropout_key: The key of the mask, as `key` for `dropout`. Default: drawn.
        dropout_mask: A bool tensor of shape (..., heads, queries, keys), of length 1 on axes that share, True = kept,
            to use instead. Default: drawn.
        return_dropout_mask: Whether to return that mask too, for which all weights are stored. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of shape (..., heads, queries, columns). With `return_dropout_mask`, a pair with the mask, which is all
        True in evaluation.

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or heads do not fit.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> from dropkit.functional import scaled_dot_product_attention
        >>> query, key, value = (torch.randn(2, 4, 10, 8) for _ in range(3))
        >>> scaled_dot_product_attention(query, key, value, dropout_p=0.1, is_causal=True).shape
        torch.Size([2, 4, 10, 8])

    References:
        Vaswani et al. (2017), "Attention is all you need", sections 3.2.1 and 5.4. Rabe and Staats (2021),
        "Self-attention does not need O(n^2) memory", for computing it in parts.
    """
    dropout_p = plain_rate(dropout_p)
    if are_jagged(query, key, value):
        without = {
            "attn_mask": attn_mask, "dropout_mask": dropout_mask, "return_dropout_mask": return_dropout_mask,
        }  # fmt: skip
        return attend_jagged(
            query, key, value, dropout_p, is_causal, scale, enable_gqa, training, generator, dropout_key, stream,
            _NAMES, without,
        )  # fmt: skip
    check_tensors(query, key, value)
    half = autocast_dtype(query)
    if half is not None:  # as PyTorch's, in one type; what is computed within is no matter of autocast
        query, key, value, attn_mask = (cast(tensor, half) for tensor in (query, key, value, attn_mask))
        with without_autocast(query.device):
            return scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, training=training,
                generator=generator, dropout_key=dropout_key, dropout_mask=dropout_mask,
                return_dropout_mask=return_dropout_mask, stream=stream,
            )  # fmt: skip
    scale = plain_scale(scale)
    flags = {"is_causal": is_causal, "enable_gqa": enable_gqa, "training": training}
    check_options(query, attn_mask, **flags, return_dropout_mask=return_dropout_mask)
    leading = leading_axes(query, key, value, attn_mask, enable_gqa)
    whole = query.expand(*leading[0], *query.shape[-2:])  # whose axis 0 is that of the weights
    thresholds, streams, _ = check_source(WHERE, whole, dropout_p, dropout_key, generator, stream, _NAMES)
    weights = query.new_empty(()).expand(*whole.shape[:-1], key.size(-2))
    sources = {"dropout_key": dropout_key, "generator": generator}
    check_mask(WHERE, dropout_mask, weights, sources, {"stream": stream}, "dropout_mask")
    if is_identity(dropout_p, training, dropout_mask):
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return (output, torch.ones_like(weights, dtype=torch.bool)) if return_dropout_mask else output
    factor = 1 / math.sqrt(max(query.size(-1), 1)) if scale is None else scale
    if dropout_mask is None and not return_dropout_mask and takes_tiles(query, key, value, attn_mask, leading):
        check_not_traced(WHERE)
        drawn = draw_key(WHERE, generator, whole, _NAMES) if dropout_key is None else dropout_key
        return attend_by_tiles(
            query, key, value, attn_mask, is_causal, factor, leading, enable_gqa, dropout_p, drawn, stream,
            thresholds, streams,
        )  # fmt: skip
    query, key, value = broadcast(query, key, value, leading, enable_gqa)
    one_key = dropout_key is None or type(dropout_key) is int or numbers_of(dropout_key) is not None
    plain = type(dropout_p) is float and generator is None and type(stream) is int and stream == 0 and one_key
    check_not_traced(WHERE)
    if dropout_mask is not None:
        output, _, kept = attend(
            query, key, value, attn_mask, is_causal, factor, dropout_p, return_mask=return_dropout_mask,
            mask=dropout_mask,
        )  # fmt: skip
        return (output, kept) if return_dropout_mask else output
    drawn = draw_key(WHERE, generator, query, _NAMES) if dropout_key is None else dropout_key
    if plain and not return_dropout_mask and _computes_in_parts(query, key, value, attn_mask):
        threshold = math.floor(dropout_p * 2.0**32 + 0.5)
        numbers = numbers_of(drawn)
        if numbers is not None and numbers.runs:
            check_examples(WHERE, numbers.runs, weights.shape, len(numbers.streams))
        source = int(drawn) % 2**64 if numbers is None else numbers
        return _Attention.apply(query, key, value, attn_mask, Constants(is_causal, factor, source, threshold))
    output, _, kept = attend(
        query, key, value, attn_mask, is_causal, factor, dropout_p, return_mask=return_dropout_mask, key=drawn,
        stream=stream,
    )  # fmt: skip
    return (output, kept) if return_dropout_mask else output


def _computes_in_parts(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> bool:
    """Tell whether parts can be computed: plain tensors, not empty, with the same leading axes, and a constant mask."""
    same = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    filled = query.numel() and key.numel() and value.numel()
    constant = attn_mask is None or not attn_mask.requires_grad
    return bool(same and filled and constant) and all(_is_plain_in_order(tensor) for tensor in (query, key, value))


def _is_plain_in_order(tensor: Tensor) -> bool:
    """Tell whether a tensor is plain once its elements lie in order."""
    return is_plain(tensor) or (not tensor.is_contiguous() and is_plain(tensor[..., :1, :1].detach().contiguous()))


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
        scores = self.products(self.query[heads, queries], self.key[heads, keys], self.factor)
        if self.attn_mask is not None:
            return find_weights(scores, self._attn_mask(self.attn_mask, heads, queries))
        if self.is_causal and queries.start < keys.stop:  # every query attends to the first key
            columns = torch.arange(queries.start, keys.stop)
            rows = torch.arange(queries.start, queries.stop)[:, None]
            scores[..., queries.start :].masked_fill_(columns > rows, -math.inf)
        if is_kept:
            return torch.softmax(scores, -1)
        return torch.softmax(scores, -1, out=self._space(1, *scores.shape))

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

    def drop_(self, weights: Tensor, heads: slice, queries: slice, keys: slice, key: int, threshold: int) -> None:
        """Apply dropout to the weights of a part, in place."""
        native.dropout_of_(weights, *self._place(heads, queries, keys, key), threshold)

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
            weights = parts.weights(heads, queries, keys, is_kept)
            if is_kept:
                bits = parts.bits(heads, queries, keys, dropout_key, threshold)
                kept += weights, bits
                weights = native.apply_bits(weights, bits, threshold)
            else:
                parts.drop_(weights, heads, queries, keys, dropout_key, threshold)
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
        if torch.is_grad_enabled() or not _is_plain_in_order(grad):  # a second derivative, or a batch of gradients
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
