"""Attention where lengths vary: nested tensors, each example at the place that it has in any batch.

Both axes of an example's weights are ragged, and count as 2**32 long: the weight of a query and a key has the row
(example * heads + head) * 2**32 + query, and the key as its column.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit._checks import argument_error
from dropkit.functional.address import Names, check_not_traced, check_source, draw_key, key_tensor
from dropkit.functional.attention_inputs import (
    WHERE,
    broadcast,
    cast,
    check_options,
    check_tensors,
    leading_axes,
    plain_scale,
)
from dropkit.functional.attention_tiles import attend_packed, takes_tiles
from dropkit.functional.attention_weights import attend
from dropkit.functional.examples import check_examples, numbers_of
from dropkit.functional.inputs import autocast_dtype, is_identity, without_autocast
from dropkit.functional.nested import nest_alike, of_slice
from dropkit.kernels.attention import RAGGED, Mask, Weights
from dropkit.kernels.portable import moved_to

__all__ = ["are_jagged", "attend_jagged"]


def are_jagged(*tensors: Any) -> bool:
    """Tell whether all are nested tensors of shape (examples, heads, rows, width) whose rows alone vary."""
    return all(
        isinstance(tensor, Tensor)
        and tensor.layout == torch.jagged
        and tensor.dim() == 4
        and tensor._ragged_idx == 2  # type: ignore[attr-defined]  # of nested tensors
        and tensor.lengths() is None  # type: ignore[attr-defined]  # so too, where rows leave no gaps
        for tensor in tensors
    )


def attend_jagged(
    query: Any,
    key: Any,
    value: Any,
    p: Any,
    is_causal: bool,
    scale: Any,
    enable_gqa: bool,
    training: bool,
    generator: torch.Generator | None,
    dropout_key: Any,
    stream: Any,
    names: Names,
    without: dict[str, Any],
) -> Tensor:
    """Attend, example by example or all in one.

    Args:
        query: Nested queries; `are_jagged` holds of them and of the next two.
        key: Nested keys.
        value: Nested values.
        p: The rate.
        is_causal: Whether query i attends to keys 0 .. i alone.
        scale: What scores are multiplied by, or None.
        enable_gqa: Whether a head of keys and values serves several of queries.
        training: Whether to drop.
        generator: Where to draw the dropout key.
        dropout_key: The dropout key, or None.
        stream: Number of the pass.
        names: What these are called.
        without: Arguments that must have their defaults, None or False, by name.
    """
    for name, given in without.items():
        if given is not None and given is not False:
            raise argument_error(WHERE, name, "left out where the query is nested", given)
    half = autocast_dtype(query)
    if half is not None:
        query, key, value = (cast(tensor, half) for tensor in (query, key, value))
    examples = len(query.offsets()) - 1
    for name, tensor in (("key", key), ("value", value)):
        if len(tensor.offsets()) - 1 != examples:
            raise argument_error(WHERE, name, f"of {examples} examples like the query", len(tensor.offsets()) - 1)
    rows = [[part.unsqueeze(0) for part in tensor.unbind()] for tensor in (query, key, value)]
    parts = list(zip(*rows, strict=True))
    scale, leading = plain_scale(scale), (1, int(query.size(1)))
    for each in parts:
        check_tensors(*each)
        check_options(each[0], None, is_causal=is_causal, enable_gqa=enable_gqa, training=training)
        leading = (1, leading_axes(each[0], each[1], each[2], None, enable_gqa)[0][1])
    whole = query.values().new_empty(()).expand(examples, leading[1], 1)
    thresholds, streams, keys = check_source(WHERE, whole, p, dropout_key, generator, stream, names)
    factor = 1 / math.sqrt(max(query.size(-1), 1)) if scale is None else scale
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    with without_autocast(whole.device):
        if is_identity(p, training):
            return nest_alike(query, [F.scaled_dot_product_attention(*each, **options)[0] for each in parts])
        check_not_traced(WHERE)
        drawn = draw_key(WHERE, generator, whole, names) if dropout_key is None else dropout_key
        mask, numbers = _mask_of(drawn, keys, streams, thresholds, (examples, leading[1]), query.device)
        packed = query.values(), key.values(), value.values()
        if examples and takes_tiles(*packed, None, (leading, leading), is_causal, is_packed=True):
            lengths = [max(part.size(2) for part in each) for each in rows[:2]]
            ends = (each.offsets().to(torch.int32) for each in (query, key))
            output = attend_packed(*packed, mask, Weights(is_causal, *lengths, *ends), factor)
            return torch.nested.nested_tensor_from_jagged(output, query.offsets(), jagged_dim=2)
        outputs = []
        for i, each in enumerate(parts):
            own = of_slice(mask.stream, i) if mask.begins is None else mask.stream[i]
            source: dict[str, Any] = {"key": of_slice(mask.key, i), "stream": own}
            shape = (max(numbers) + 1, leading[1], RAGGED, RAGGED)
            source |= {"offset": (numbers[i], 0, 0, 0), "full_shape": shape}
            tensors = broadcast(each[0], each[1], each[2], (leading, leading), enable_gqa)
            output, *_ = attend(*tensors, None, is_causal, factor, of_slice(p, i), **source)
            outputs.append(output[0])
        return nest_alike(query, outputs)


def _mask_of(
    drawn: Any, keys: Tensor | None, streams: Tensor, thresholds: Tensor, shape: tuple[int, int], device: torch.device
) -> tuple[Mask, list[int]]:
    """Return where the mask lies, and the number of every example."""
    examples, heads = shape
    keys = key_tensor(drawn) if keys is None else keys
    numbers = numbers_of(drawn)
    if numbers is None or not numbers.runs:
        return Mask(keys, streams, thresholds), list(range(examples))
    check_examples(WHERE, numbers.runs, (examples, heads, RAGGED, RAGGED), len(numbers.streams))
    places = [numbers.place(example) for example in range(examples)]
    begins = [(number * heads * RAGGED + 2**63) % 2**64 - 2**63 for number, _, _ in places]
    passes = torch.tensor([stream for _, _, stream in places], device="cpu")
    first_rows = torch.tensor(begins, device="cpu")
    mask = Mask(keys, moved_to(passes, device), thresholds, moved_to(first_rows, device))
    return mask, [number for number, _, _ in places]
