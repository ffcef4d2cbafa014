"""Forms and examples of attention, as `dropkit.kernels.gpu_examples` has them of other operators."""

import math
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels.gpu_address import Address, Example, Form, count_of

__all__ = ["attention_form", "backward", "form", "form_of_bits", "forward", "of_bits"]


def attention_form(
    query: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, is_packed: bool, has_bits: bool = False
) -> Form:
    """Return the form of a call of attention.

    Args:
        query: Queries.
        value: Values, whose heads may each serve several of the queries.
        attn_mask: The mask, or None.
        is_causal: Whether query i attends to keys 0 .. i alone.
        is_packed: Whether examples of various lengths lie one behind the other.
        has_bits: Whether the mask of dropout is read from bits.
    """
    is_grouped = query.shape[-3:-2] != value.shape[-3:-2]
    of_mask = None if attn_mask is None else attn_mask.dtype
    # Constants to the compiler even where sizes vary, as `int` would not be.
    width, values = len(range(query.size(-1))), len(range(value.size(-1)))
    return width, values, is_grouped, of_mask, is_causal, is_packed, has_bits


def form(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, bits: Tensor | None, *rest: Any) -> Form:
    """Return the form of a call of the operators."""
    *mask, is_causal, _, _, query_ends, _, _ = rest
    own = attention_form(query, value, attn_mask, is_causal, query_ends is not None, bits is not None)
    return *own, _address(*mask)


def _address(key: Tensor, stream: Tensor, threshold: Tensor, begins: Tensor | None) -> Address:
    return Address(count_of(key), count_of(stream), count_of(threshold), "one" if begins is None else "of places")


def forward(
    make: Example,
    width: int,
    values: int,
    is_grouped: bool,
    of_mask: torch.dtype | None,
    is_causal: bool,
    is_packed: bool,
    has_bits: bool,
) -> tuple[Any, ...]:
    """Return the arguments of a small call of the operator, with columns of queries and of values as many as those."""
    query, *rest = of_bits(make, is_causal, is_packed, width, 4 if is_grouped else 2)
    examples, heads, queries, _ = query.shape
    keys = (2 if is_packed else 1) * _keys(is_causal)
    key, value = make.numbers(examples, 2, keys, width), make.numbers(examples, 2, keys, values)
    attn_mask = None
    if of_mask is not None:
        drawn = make.numbers(examples, heads, queries, keys)
        attn_mask = drawn > -1 if of_mask == torch.bool else drawn.to(of_mask)
    bits = make.portable("attention_bits")(query, *rest) if has_bits else None
    return query, key, value, attn_mask, bits, *rest, 1 / math.sqrt(width)


def backward(
    make: Example,
    width: int,
    values: int,
    is_grouped: bool,
    of_mask: torch.dtype | None,
    is_causal: bool,
    is_packed: bool,
    has_bits: bool,
) -> tuple[Any, ...]:
    """Do the same for the backward pass."""
    inputs = forward(make, width, values, is_grouped, of_mask, is_causal, is_packed, has_bits)
    output, logs = make.portable("attention")(*inputs)
    return make.numbers(*output.shape), output, logs, *inputs


def form_of_bits(_: Tensor, *rest: Any) -> Form:
    """Return the form of a call of the operator that draws bits."""
    return rest[4], rest[-2] is not None, _address(*rest[:4])


def _keys(is_causal: bool) -> int:
    """Return how many keys an example has: so few that a causal mask leaves no word of bits unwritten."""
    return 64 if is_causal else 96


def of_bits(make: Example, is_causal: bool, is_packed: bool, width: int = 16, heads: int = 2) -> tuple[Any, ...]:
    """Return the arguments of a small call of it."""
    keys = _keys(is_causal)
    ends = [torch.tensor(each, dtype=torch.int32, device=make.device) for each in ((0, 40, 64), (0, keys, 2 * keys))]
    query = make.numbers(1, heads, 64, width) if is_packed else make.numbers(2, heads, 40, width)
    begins = torch.tensor([1000, 3], device=make.device) if make.leading else None
    address = *make.address((2,)), begins
    return query, *address, is_causal, 40, keys, *(ends if is_packed else (None, None))
