"""What attention layers may be built with and given, and the one mask that their masks make together."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dropkit._checks import Integer, argument_error, argument_type_error
from dropkit.functional.inputs import check_input

__all__ = ["Call", "check_masks", "check_sizes", "check_tensor", "merge_masks", "nest_like", "pad"]

_SIZE = Integer(1, 2**31 - 1, "[1, 2**31)")
_RANKS = {(2, 3): "of two axes, unbatched, or three", (2,): "of two axes as the query", (3,): "of three as the query"}
_PAD = "Pad it to one length, and pass key_padding_mask."


class Call(NamedTuple):
    """The sizes of one call, batch first; what is not batched is a batch of one."""

    where: str
    batch: int
    heads: int
    queries: int
    keys: int
    is_batched: bool


def check_sizes(where: str, sizes: Mapping[str, object], heads: str) -> None:
    """Raise unless every size is a positive integer, and the heads divide the first of them."""
    whole = {name: _SIZE.check(where, name, value) for name, value in sizes.items()}
    width, number = next(iter(whole)), whole[heads]
    if whole[width] % number:
        raise argument_error(where, width, f"a multiple of {heads}, {number}", whole[width])


def check_tensor(where: str, name: str, tensor: Any, ranks: tuple[int, ...], width: int) -> None:
    """Raise unless an input is dense, real, of a width and of one of the ranks."""
    if not isinstance(tensor, Tensor):
        raise argument_type_error(where, name, "a torch.Tensor", tensor)
    if not tensor.is_floating_point():
        raise argument_type_error(where, name, "of a real floating type", tensor.dtype)
    if tensor.is_nested:
        raise argument_type_error(where, name, "a dense tensor, not a nested one", tensor.layout, _PAD)
    check_input(where, tensor, name)
    if tensor.dim() not in ranks:
        raise argument_error(where, name, _RANKS[ranks], tuple(tensor.shape))
    if tensor.size(-1) != width:
        raise argument_error(where, name, f"of width {width}", tuple(tensor.shape))


def check_masks(call: Call, attn_mask: Any, key_padding_mask: Any, is_causal: bool, names: tuple[str, str]) -> None:
    """Raise unless the masks have the type and a shape for the call."""
    pair = (call.queries, call.keys)
    several = (call.batch * call.heads, *pair)
    padding = (call.batch, call.keys) if call.is_batched else (call.keys,)
    for name, mask, shapes in zip(names, (attn_mask, key_padding_mask), ((pair, several), (padding,)), strict=True):
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise argument_type_error(call.where, name, "a torch.Tensor, or None", mask)
        if mask.dtype != torch.bool and not mask.is_floating_point():
            remedy = "In a bool mask True is left out of attention; numbers are added to the scores."
            raise argument_type_error(call.where, name, "bool or of a real floating type", mask.dtype, remedy)
        if mask.shape not in shapes:
            rule = "of shape " + " or ".join(map(str, shapes))
            raise argument_error(call.where, name, rule, tuple(mask.shape))
    if is_causal and attn_mask is None:
        remedy = (
            f"It says that {names[0]} is causal: pass torch.nn.Transformer.generate_square_subsequent_mask(length) too."
        )
        raise argument_error(call.where, "is_causal", f"False where {names[0]} is None", is_causal, remedy)


def merge_masks(
    call: Call, attn_mask: Tensor | None, key_padding_mask: Tensor | None, extra: int, dtype: torch.dtype
) -> Tensor | None:
    """Return one mask that broadcasts to the weights, for keys of which the last few are for everyone.

    Where all masks are bool, so is the result, with True = takes part; else it is what is added to the scores.
    """
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask.unflatten(0, (call.batch, call.heads)) if attn_mask.dim() == 3 else attn_mask)
    if key_padding_mask is not None:
        masks.append(key_padding_mask.reshape(call.batch, 1, 1, call.keys))
    if extra:
        masks = [functional.pad(mask, (0, extra)) for mask in masks]
    if all(mask.dtype == torch.bool for mask in masks):
        return ~(masks[0] if len(masks) == 1 else masks[0] | masks[1]) if masks else None
    return sum((_added(mask, dtype) for mask in masks[1:]), _added(masks[0], dtype))


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a mask adds to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def pad(nested: Tensor) -> tuple[Tensor, Tensor]:
    """Return nested sequences padded to one length, and where they are padded."""
    lengths = torch.tensor([part.size(0) for part in nested.unbind()], device=nested.device)
    padded = torch.nested.to_padded_tensor(nested, 0.0)
    return padded, torch.arange(padded.size(1), device=nested.device) >= lengths[:, None]


def nest_like(nested: Tensor, padded: Tensor) -> Tensor:
    """Return padded sequences with the lengths of nested ones."""
    lengths = [part.size(0) for part in nested.unbind()]
    return torch.nested.as_nested_tensor([row[:length] for row, length in zip(padded, lengths, strict=True)])
