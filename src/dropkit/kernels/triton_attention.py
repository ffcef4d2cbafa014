"""What serves the operators of `dropkit.kernels.attention` on a GPU: how its kernels are launched."""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dropkit.kernels.attention import Mask, Weights
from dropkit.kernels.native.packing import int64
from dropkit.kernels.triton_address import on_device, rates, spread
from dropkit.kernels.triton_attention_backward import of_keys, of_queries
from dropkit.kernels.triton_attention_bits import keep_bits
from dropkit.kernels.triton_attention_forward import forward

__all__ = ["Tile", "attention", "attention_backward", "attention_bits", "tile_of"]

_BITS_ROWS, _BITS_WORDS = 64, 32  # queries side by side in a program that draws bits, and words one after another


class Tile(NamedTuple):
    """How a kernel divides the weights: queries and keys at a time, and by how many warps and stages of loads."""

    rows: int
    columns: int
    warps: int
    stages: int


# Half types: as many weights at a time as registers hold, or nearly so, by the width up to which they do, as found by
# compiling for compute capability 9.0. No tile has been chosen by its speed yet.
_LARGE = 227 * 1024  # bytes of shared memory
_LARGE_TILES = {
    "forward": {64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 3), 256: Tile(128, 32, 8, 2)},
    "of_queries": {64: Tile(128, 64, 8, 2), 128: Tile(128, 64, 8, 2), 256: Tile(128, 32, 8, 2)},
    "of_keys": {64: Tile(128, 64, 8, 2), 128: Tile(128, 64, 8, 2), 256: Tile(32, 32, 8, 1)},
}
_SMALL_TILES = {
    "forward": {64: Tile(64, 32, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 1)},
    "of_queries": {64: Tile(64, 32, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 1)},
    "of_keys": {64: Tile(32, 32, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(32, 32, 8, 1)},
}


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, bits: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Return the output, and logarithms from which `attention_backward` computes weights again.

    Args:
        query: Tensor of shape (examples, heads, queries, width).
        key: Tensor of shape (examples, own heads, keys, width).
        value: Tensor of shape (examples, own heads, keys, columns).
        attn_mask: A bool tensor, or numbers to add to the scores, of shape (examples, heads, queries, keys), or None.
        bits: What `attention_bits` has returned, or None to draw the mask here.
        *rest: The fields of a `Mask` and of a `Weights`, and what scores are multiplied by.
    """
    call = _Call(query, key, value, attn_mask, bits, rest)
    output = _empty_rows(query, value.size(3))
    logs = query.new_empty(query.shape[:3], dtype=torch.float32)
    tile = tile_of("forward", query, value)
    tensors = (call.query, call.key, call.value, call.attn_mask, bits, output, logs)
    call.run(forward, tile, tensors, (call.query, call.key, call.value, output))
    return output.contiguous(), logs


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
    """Return the gradients of queries, keys and values.

    Args:
        grad: The output's gradient.
        output: What `attention` has returned.
        logs: What it has returned too.
        query: As there, and so the rest.
        key: The keys.
        value: The values.
        attn_mask: The mask, or None.
        bits: The bits, or None.
        *rest: The rest.
    """
    call, grad, output = _Call(query, key, value, attn_mask, bits, rest), _in_rows(grad), _in_rows(output)
    gradients = [_empty_rows(tensor, tensor.size(3)) for tensor in (query, key, value)]
    weighted = torch.empty_like(logs)  # sums of weights' gradients times weights, found with the first of them
    inputs = (call.query, call.key, call.value)
    tensors = (*inputs, call.attn_mask, bits, output, logs, grad, weighted, gradients[0])
    call.run(of_queries, tile_of("of_queries", query, value), tensors, (*inputs, output, grad, gradients[0]))
    left = (*inputs, call.attn_mask, bits, logs, grad, weighted, *gradients[1:])
    call.run(of_keys, tile_of("of_keys", query, value), left, (*inputs, grad, *gradients[1:]), by_keys=True)
    of_query, of_key, of_value = (gradient.contiguous() for gradient in gradients)
    return of_query, of_key, of_value


def attention_bits(query: Tensor, *rest: Any) -> Tensor:
    """Return the mask of all weights, a bit each: bit k & 31 of word k >> 5 is that of key k.

    Words have the shape (examples, heads, words, queries). Those that a causal mask leaves nothing of are not written.

    Args:
        query: The queries, for their shape.
        *rest: The fields of a `Mask` and of a `Weights`.
    """
    mask, weights = Mask(*rest[:4]), Weights(*rest[4:])
    words = triton.cdiv(weights.keys, 32)
    bits = query.new_empty((*query.shape[:2], words, query.size(2)), dtype=torch.int32)
    tiles, lines = triton.cdiv(weights.queries, _BITS_ROWS), weights.examples(query) * query.size(1)
    with on_device(query.device):
        keep_bits[(lines * tiles * triton.cdiv(words, _BITS_WORDS),)](
            bits, weights.query_ends, weights.key_ends, tiles, query.size(1), weights.queries, weights.keys,
            *_log_steps(query, weights), words, *_address(query, mask, weights),
            ROWS=_BITS_ROWS, WORDS=_BITS_WORDS, IS_CAUSAL=weights.is_causal, num_warps=1,
        )  # fmt: skip
    return bits


class _Call:
    """The arguments that the kernels of one call share."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        bits: Tensor | None,
        rest: tuple[Any, ...],
    ) -> None:
        *fields, self.factor = rest
        self.mask, self.weights = Mask(*fields[:4]), Weights(*fields[4:])
        self.query, self.key, self.value = (_in_rows(tensor) for tensor in (query, key, value))
        is_bool = attn_mask is not None and attn_mask.dtype == torch.bool
        self.attn_mask = attn_mask.view(torch.int8) if attn_mask is not None and is_bool else attn_mask

    def run(
        self,
        kernel: Any,
        tile: Tile,
        tensors: tuple[Tensor | None, ...],
        strided: tuple[Tensor, ...],
        by_keys: bool = False,
    ) -> None:
        """Run a kernel.

        Args:
            kernel: Which.
            tile: How it divides the weights.
            tensors: What it reads and writes.
            strided: Those of them whose strides it takes, in its order.
            by_keys: Whether a program has some of the keys, not of the queries.
        """
        query, key, weights = self.query, self.key, self.weights
        tiles = triton.cdiv(weights.keys, tile.columns) if by_keys else triton.cdiv(weights.queries, tile.rows)
        heads = (key if by_keys else query).size(1)
        steps = [step for each in strided for step in _steps(each)]
        mask_steps = (0, 0, 0, 0) if self.attn_mask is None else self.attn_mask.stride()
        precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        with on_device(query.device):
            kernel[(weights.examples(query) * heads * tiles,)](
                *tensors, *steps, *mask_steps, weights.query_ends, weights.key_ends, tiles, heads,
                query.size(1) // key.size(1), weights.queries, weights.keys, query.size(3), self.value.size(3),
                self.factor, *_log_steps(query, weights), triton.cdiv(weights.keys, 32),
                *_address(query, self.mask, weights), ROWS=tile.rows, COLUMNS=tile.columns,
                WIDTH=_padded(query.size(3)), VALUES=_padded(self.value.size(3)), IS_CAUSAL=weights.is_causal,
                PRECISION=precision, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip


def _in_rows(tensor: Tensor) -> Tensor:
    """Return a tensor whose rows' elements lie side by side, and nothing else: kernels are compiled apart for that."""
    if tensor.stride(3) == 1 and 1 not in _steps(tensor):
        return tensor
    return _empty_rows(tensor, tensor.size(3)).copy_(tensor)


def _empty_rows(like: Tensor, width: int) -> Tensor:
    """Return an empty tensor of so wide rows: a contiguous one, unless rows are of one element, which lie apart."""
    examples, heads, rows, _ = like.shape
    step = max(width, 2)
    return like.new_empty_strided((examples, heads, rows, width), (heads * rows * step, rows * step, step, 1))


def _steps(tensor: Tensor) -> list[int]:
    """Return how far apart neighbours are on each axis but the last; 0 where there are none."""
    return [0 if length == 1 else step for length, step in zip(tensor.shape[:3], tensor.stride(), strict=False)]


def _padded(width: int) -> int:
    """Return the width of a tile: a power of two that tensor cores take."""
    return max(triton.next_power_of_2(width), 16)


def _log_steps(query: Tensor, weights: Weights) -> tuple[int, int]:
    """Return how far apart numbers of two examples are, and of two heads, where there is one for each query."""
    return (0 if weights.query_ends is not None else query.size(1) * query.size(2)), query.size(2)


def _address(query: Tensor, mask: Mask, weights: Weights) -> tuple[Any, ...]:
    """Return the address of the mask as kernels take it."""
    examples, step = weights.examples(query), weights.head_step()
    address: list[Any] = []
    for value, found in zip(mask[:3], (spread, spread, rates), strict=True):
        address += found(value, (examples,), query.device), int(value.numel() > 1)
    return *address, mask.begins, 0 if mask.has_slices() else int64(query.size(1) * step), step


def tile_of(kernel: str, query: Tensor, value: Tensor) -> Tile:
    """Return how a kernel divides the weights."""
    width = max(_padded(query.size(3)), _padded(value.size(3)))
    if query.dtype == torch.float32:
        return Tile(32, 32, 4, 2) if width <= 128 else Tile(16, 32, 8, 1)
    is_large = _shared_memory(query.device) >= _LARGE
    return (_LARGE_TILES if is_large else _SMALL_TILES)[kernel][max(width, 64)]


@cache
def _shared_memory(device: torch.device) -> int:
    """Return how many bytes a program may share among its threads."""
    found = torch.cuda.get_device_properties(device)
    return int(found.shared_memory_per_block_optin)  # type: ignore[attr-defined]  # missing from its hints
