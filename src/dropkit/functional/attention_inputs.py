"""What attention may be given, and the leading axes its tensors broadcast to."""

import math
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import argument_error, argument_type_error, as_float
from dropkit.functional.inputs import autocast_dtype, check_input

__all__ = ["WHERE", "broadcast", "cast", "check_options", "check_tensors", "leading_axes", "plain_scale"]

WHERE = "scaled_dot_product_attention"


def check_tensors(query: Any, key: Any, value: Any) -> None:
    """Raise unless the three are dense tensors of one type and device that fit each other."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise argument_type_error(WHERE, name, "a torch.Tensor", tensor)
        if not tensor.is_floating_point():
            raise argument_type_error(WHERE, name, "of a real floating type", tensor.dtype)
        check_input(WHERE, tensor, name)
        if tensor.is_nested:
            remedy = "Pad it to one length, or attend to its parts one by one."
            raise argument_type_error(WHERE, name, "a dense tensor, not a nested one", tensor.layout, remedy)
        if tensor.dim() < 2:
            raise argument_error(WHERE, name, "of two axes or more", tuple(tensor.shape))
        if tensor.device != query.device:
            raise argument_error(WHERE, name, f"on the query's device {query.device}", tensor.device)
        if tensor.dtype != query.dtype and autocast_dtype(query) is None:
            raise argument_type_error(WHERE, name, f"of the query's type {query.dtype}", tensor.dtype)
    if key.size(-1) != query.size(-1):
        raise argument_error(WHERE, "key", f"of the query's width {query.size(-1)}", tuple(key.shape))
    if value.size(-2) != key.size(-2):
        raise argument_error(WHERE, "value", f"of as many rows as there are keys, {key.size(-2)}", tuple(value.shape))


def plain_scale(scale: Any) -> float | None:
    """Return a scale of any kind of number as a float, or raise."""
    if scale is None:
        return None
    number = scale if type(scale) is float else as_float(scale)
    if not isinstance(number, float):
        raise argument_type_error(WHERE, "scale", "a finite number, or None", scale)
    if not math.isfinite(number):
        raise argument_error(WHERE, "scale", "a finite number, or None", scale)
    return number


def check_options(query: Tensor, attn_mask: Any, **flags: Any) -> None:
    """Raise unless the mask is one for these queries and every flag is a bool."""
    check_input(WHERE, query, "query", **flags)
    if attn_mask is None:
        return
    if not isinstance(attn_mask, Tensor):
        raise argument_type_error(WHERE, "attn_mask", "a torch.Tensor", attn_mask)
    if attn_mask.is_nested or attn_mask.layout != torch.strided:
        raise argument_type_error(WHERE, "attn_mask", "a dense tensor, not a sparse or nested one", attn_mask.layout)
    if attn_mask.device != query.device:
        raise argument_error(WHERE, "attn_mask", f"on the query's device {query.device}", attn_mask.device)
    if flags["is_causal"]:
        raise argument_error(WHERE, "attn_mask", "None where is_causal is True", tuple(attn_mask.shape))
    if attn_mask.dtype not in (torch.bool, query.dtype):
        raise argument_type_error(WHERE, "attn_mask", f"bool or {query.dtype}", attn_mask.dtype)


def cast(tensor: Any, dtype: torch.dtype) -> Any:
    """Return a tensor as autocast gives it to operations that it runs in a half type."""
    is_cast = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if is_cast else tensor


def leading_axes(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, enable_gqa: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the leading axes of the weights and of the output; a value may have more."""
    of_key, of_value = (
        _repeated_axes(name, tensor, query, enable_gqa) for name, tensor in (("key", key), ("value", value))
    )
    leading = _common(query.shape[:-2], of_key)
    if leading is None:
        rule = f"of leading axes that broadcast with {tuple(query.shape[:-2])}"
        remedy = _grouping(query.shape[:-2], key)
        raise argument_error(WHERE, "key", rule, tuple(key.shape), remedy)
    weights = (*leading, query.size(-2), key.size(-2))
    if attn_mask is not None and _common(weights, attn_mask.shape) != weights:
        raise argument_error(WHERE, "attn_mask", f"of a shape that broadcasts to {weights}", tuple(attn_mask.shape))
    of_output = _common(leading, of_value)
    if of_output is None:
        rule = f"of leading axes that broadcast with {leading}"
        remedy = _grouping(leading, value)
        raise argument_error(WHERE, "value", rule, tuple(value.shape), remedy)
    return leading, of_output


def _repeated_axes(name: str, tensor: Tensor, query: Tensor, enable_gqa: bool) -> tuple[int, ...]:
    """Return the leading axes of keys or values that are repeated for every head of the query."""
    if not enable_gqa:
        return tuple(tensor.shape[:-2])
    for its_name, each in (("query", query), (name, tensor)):
        if each.dim() < 3:
            raise argument_error(WHERE, its_name, "of three axes or more where enable_gqa is True", tuple(each.shape))
    heads, own = query.size(-3), tensor.size(-3)
    if own == 0 or heads % own:
        raise argument_error(WHERE, name, f"of a number of heads that divides the query's {heads}", own)
    return (*tensor.shape[:-3], heads)


def _grouping(leading: tuple[int, ...], tensor: Tensor) -> str:
    """Return the advice to group heads, where keys or values would fit that way."""
    heads, own = leading[-1], tensor.shape[-3]  # there are some, or they would fit
    fits = own and heads % own == 0 and _common(leading[:-1], tensor.shape[:-3]) is not None
    return f"For its {own} heads to serve the query's {heads}, pass enable_gqa=True." if fits else ""


def broadcast(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    leading: tuple[tuple[int, ...], tuple[int, ...]],
    enable_gqa: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give query and key the leading axes of the weights, and a value too unless it has more."""
    of_weights, of_output = leading
    if enable_gqa:
        key, value = (_repeated(tensor, query.size(-3)) for tensor in (key, value))
    query, key = (tensor.expand(*of_weights, *tensor.shape[-2:]) for tensor in (query, key))
    return query, key, value.expand(*of_weights, *value.shape[-2:]) if of_output == of_weights else value


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    """Give every head of the query its keys or values."""
    own = tensor.size(-3)
    return tensor.repeat_interleave(heads // own, -3) if own != heads else tensor


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(one, other))
    except RuntimeError:
        return None
