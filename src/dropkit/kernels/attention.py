"""The operators of attention with dropout by tiles, whose weights are never in memory on GPUs.

Tensors have the axes (examples, heads, rows, width), with any strides. Where lengths vary, examples lie one behind the
other in one, and `ends` tells where each begins and the last ends. A head of keys and values serves as many consecutive
heads of queries as there are for it.
"""

from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import attention_portable as portable
from dropkit.kernels import gpu
from dropkit.kernels.attention_portable import RAGGED, Mask, Weights

__all__ = ["RAGGED", "Mask", "Weights", "attention", "attention_backward", "attention_bits"]

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? bits"
_MASK = "Tensor dropout_key, Tensor stream, Tensor threshold, Tensor? begins"
_WEIGHTS = "bool is_causal, SymInt queries, SymInt keys, Tensor? query_ends, Tensor? key_ends"
_CALL = f"{_INPUTS}, {_MASK}, {_WEIGHTS}, float factor"

for _schema in (
    f"attention({_CALL}) -> (Tensor, Tensor)",
    f"attention_backward(Tensor grad, Tensor output, Tensor logs, {_CALL}) -> (Tensor, Tensor, Tensor)",
    f"attention_bits(Tensor query, {_MASK}, {_WEIGHTS}) -> Tensor",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

attention = torch.ops.dropkit.attention.default
attention_backward = torch.ops.dropkit.attention_backward.default
attention_bits = torch.ops.dropkit.attention_bits.default


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    output = query.new_empty((*query.shape[:3], value.size(3)))
    return output, query.new_empty(query.shape[:3], dtype=torch.float32)


def _fake_attention_backward(
    grad: Tensor, output: Tensor, logs: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


def _fake_attention_bits(query: Tensor, *rest: Any) -> Tensor:
    weights = Weights(*rest[4:])
    words = (weights.keys + 31) // 32
    return query.new_empty((*query.shape[:2], words, query.size(2)), dtype=torch.int32)


for _name, _fake in (
    ("attention", _fake_attention),
    ("attention_backward", _fake_attention_backward),
    ("attention_bits", _fake_attention_bits),
):
    _LIBRARY.impl(_name, getattr(portable, _name), "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, gpu.served("triton_attention", _name, getattr(portable, _name)), "CUDA")
    torch.library.register_fake(f"dropkit::{_name}", _fake, lib=_LIBRARY)
