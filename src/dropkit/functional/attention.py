"""Attention whose dropout mask is addressed by query and key."""

import math
from collections.abc import Sequence
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
from dropkit.functional.attention_parts import are_plain, attend_by_parts, takes_parts
from dropkit.functional.attention_tiles import attend_by_tiles, takes_tiles
from dropkit.functional.attention_weights import attend
from dropkit.functional.examples import check_examples, numbers_of
from dropkit.functional.inputs import autocast_dtype, check_mask, is_identity, without_autocast
from dropkit.functional.overrides import overridable

__all__ = ["scaled_dot_product_attention"]

_NAMES = Names("query", "dropout_p", "dropout_key")


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
    has_one_key = _has_one_key(dropout_p, generator, dropout_key, stream)
    has_scale = scale is None or (type(scale) is float and math.isfinite(scale))
    is_simple = has_scale and attn_mask is None and enable_gqa is False and type(is_causal) is bool
    is_training = training is True and dropout_mask is None and return_dropout_mask is False
    if has_one_key and is_simple and is_training and are_plain(query, key, value):  # nothing else to check
        drawn = draw_key(WHERE, None, query, _NAMES) if dropout_key is None else dropout_key
        source = _source(drawn, (*query.shape[:-1], key.size(-2)))
        return attend_by_parts(query, key, value, None, is_causal, _factor(query, scale), dropout_p, source)
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
    factor = _factor(query, scale)
    is_plain = dropout_mask is None and not return_dropout_mask
    if is_plain and takes_tiles(query, key, value, attn_mask, leading, is_causal):
        check_not_traced(WHERE)
        drawn = draw_key(WHERE, generator, whole, _NAMES) if dropout_key is None else dropout_key
        return attend_by_tiles(
            query, key, value, attn_mask, is_causal, factor, leading, enable_gqa, dropout_p, drawn, stream,
            thresholds, streams,
        )  # fmt: skip
    query, key, value = broadcast(query, key, value, leading, enable_gqa)
    check_not_traced(WHERE)
    if dropout_mask is not None:
        output, _, kept = attend(
            query, key, value, attn_mask, is_causal, factor, dropout_p, return_mask=return_dropout_mask,
            mask=dropout_mask,
        )  # fmt: skip
        return (output, kept) if return_dropout_mask else output
    drawn = draw_key(WHERE, generator, query, _NAMES) if dropout_key is None else dropout_key
    if has_one_key and not return_dropout_mask and takes_parts(query, key, value, attn_mask):
        return attend_by_parts(
            query, key, value, attn_mask, is_causal, factor, dropout_p, _source(drawn, weights.shape)
        )
    output, _, kept = attend(
        query, key, value, attn_mask, is_causal, factor, dropout_p, return_mask=return_dropout_mask, key=drawn,
        stream=stream,
    )  # fmt: skip
    return (output, kept) if return_dropout_mask else output


def _factor(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(max(query.size(-1), 1)) if scale is None else scale


def _has_one_key(p: object, generator: object, key: object, stream: object) -> bool:
    """Tell whether all weights are dropped at one rate and under one key, given or drawn from PyTorch's generator."""
    is_one = key is None or (type(key) is int and 0 <= key < 2**64) or numbers_of(key) is not None
    is_rate = type(p) is float and 0.0 < p <= 1.0
    return is_rate and generator is None and type(stream) is int and stream == 0 and is_one


def _source(key: Any, weights: Sequence[int]) -> int:
    """Return one key in ``[0, 2**64)``; one that numbers examples has to fit the weights."""
    numbers = numbers_of(key)
    if numbers is None:
        return int(key) % 2**64
    if numbers.runs:
        check_examples(WHERE, numbers.runs, weights, len(numbers.streams))
    return numbers
