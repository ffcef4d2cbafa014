"""Attention with all weights at once, by operations that PyTorch differentiates, maps and compiles."""

import math
from typing import Any

import torch
from torch import Tensor

from dropkit.functional.dropout import dropout

__all__ = ["attend", "find_weights", "widened"]


def attend(
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    factor: float,
    p: float | Tensor,
    training: bool = True,
    return_mask: bool = False,
    **source: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the output, the weights after dropout, and their mask if it is asked for.

    Args:
        query: Tensor of shape (..., heads, queries, width).
        keys: Tensor of shape (..., heads, keys, width).
        value: Tensor of shape (..., heads, keys, columns).
        attn_mask: A bool tensor, True = takes part, or numbers to add to the scores.
        is_causal: Whether query i attends to keys 0 .. i alone.
        factor: What scores are multiplied by.
        p: Rate of dropping weights.
        training: Whether to drop.
        return_mask: Whether to return the mask.
        **source: Where the noise comes from, as for `dropkit.functional.dropout`.
    """
    dtype = query.dtype
    query, keys, value = widened(query, keys, value)
    scores = (query * factor) @ keys.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    found = dropout(find_weights(scores, attn_mask), p, training, return_mask=return_mask, **source)
    weights, mask = found if return_mask else (found, None)
    return (weights @ value).to(dtype), weights.to(dtype), mask


def widened(*tensors: Tensor) -> list[Tensor]:
    """Return tensors in the type to compute in: on a CPU, as PyTorch does there, weights of half types are float32."""
    is_half = tensors[0].is_cpu and tensors[0].dtype in (torch.float16, torch.bfloat16)
    return [tensor.to(torch.float32) if is_half else tensor for tensor in tensors]


def find_weights(scores: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Return the weights of every query; one that may attend to nothing has weights of zero, and no gradient."""
    if attn_mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
