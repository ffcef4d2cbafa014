"""Launches of every kernel of Triton's, by the Python code that makes them, on fake tensors.

Run as a program, it prints what has become of them, a line of JSON each:
``python -m tests.helpers.gpu_launches CAPABILITY GROUP TYPE``.
"""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import triton_attention, triton_dropout, triton_fields, triton_fused, triton_norm
from dropkit.random.layout import Layout, layout
from tests.helpers.gpu_compiler import Compiled, gpu

_Launches = Iterator[tuple[str, Callable[[], Any]]]

HUGE = 2**20 + 1  # rows of 4096 columns, that are more elements than fit into 32 bits
_GPU = torch.device("cuda")


def number(value: int | None) -> Tensor:
    """A key, a stream or a threshold: a plain number on the CPU, or one on the GPU."""
    return torch.tensor(value) if value is not None else torch.empty((), dtype=torch.int64, device=_GPU)


def several(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device=_GPU)


def address(key: int | None = 2**40, stream: int | None = 0, threshold: int | None = 429496730) -> tuple[Tensor, ...]:
    return number(key), number(stream), number(threshold)


def tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_GPU)


def dropouts(dtype: torch.dtype) -> _Launches:
    def drop(shape: tuple[int, ...], place: Layout | None = None, at: Any = None, scaled: bool = True) -> Any:
        x = tensor(*shape, dtype=dtype)
        return lambda: triton_dropout.dropout(x, *(at or address()), place or layout("test", shape), scaled)

    yield "aligned", drop((64, 64))
    yield "aligned, not scaled", drop((64, 64), scaled=False)
    yield "aligned, address on the GPU", drop((64, 64), at=address(None, None, None))
    yield "aligned, more elements than fit into 32 bits", drop((HUGE, 2**12))
    yield "aligned, more blocks than fit into 32 bits", drop((2**22, 2**13))
    for columns in (1, 3, 33, 2**31 + 1):
        yield f"columns {columns}", drop((4, columns))
    unaligned = tensor(64 * 64 + 1, dtype=dtype).as_strided((64, 64), (64, 1), 1)
    yield "unaligned memory", lambda: triton_dropout.dropout(unaligned, *address(), layout("test", (64, 64)), True)
    slices = layout("test", (6, 4, 64), slices=1)
    yield "aligned, keys of slices", drop((6, 4, 64), slices, (several(6), several(1), number(3)))
    yield "aligned, rates of slices", drop((6, 4, 64), at=(number(3), number(0), several(6)))
    yield "rates of slices", drop((6, 4, 33), at=(number(3), number(0), several(6)))
    part = layout("test", (2, 3, 2, 16), offset=(1, 2, 0, 8), full_shape=(5, 9, 4, 64))
    yield "aligned, rows that lie apart", drop((2, 3, 2, 16), part)
    yield "channels", drop((6, 8, 4, 4), layout("test", (6, 8, 4, 4), broadcast_dims=(2, 3)))
    yield "huge channels", drop((2**10, 2**12, 64, 64), layout("test", (2**10, 2**12, 64, 64), broadcast_dims=(2, 3)))
    permuted = tensor(5, 3, 4, 7, dtype=dtype).permute(2, 0, 3, 1)
    yield "permuted", lambda: triton_dropout.dropout(permuted, *address(), layout("test", (4, 5, 7, 3)), True)
    for columns in (64, 33):
        place = layout("test", (64, columns))
        yield f"mask of {columns}", lambda place=place: triton_dropout.keep_mask(*address(), place, _GPU)
        yield f"uniform {columns}", lambda place=place: triton_fields.uniform(*address()[:2], place, _GPU, dtype)
        yield f"integers {columns}", lambda place=place: triton_fields.integers(*address()[:2], place, _GPU)


def fused(dtype: torch.dtype) -> _Launches:
    for columns, activation, has_bias in product((64, 1, 33), ("relu", "gelu", "gelu_tanh", "silu"), (True, False)):
        x, bias = tensor(64, columns, dtype=dtype), tensor(columns, dtype=dtype) if has_bias else None
        what, given = f"columns {columns}, {activation}, {has_bias}", (x, bias, activation)
        yield what, lambda given=given: triton_fused.activation_dropout(*given, *address())
        yield what, lambda given=given: triton_fused.activation_dropout_backward(given[0], *given, *address())
    for rows, columns in ((64, 64), (64, 33), (HUGE, 2**12)):
        x = tensor(rows, columns, dtype=dtype)
        yield f"{rows} by {columns}", lambda x=x: triton_fused.dropout_add(x, x, *address())


def norms(dtype: torch.dtype) -> _Launches:
    size = dtype.itemsize
    widest, widest_backward = triton_norm._WIDEST[size]
    widths = 1, 8, 33, 768, 1024, 8 * widest_backward, 8 * widest_backward + 8, 8 * widest, 8 * widest + 8
    for columns, is_centred in product(widths, (True, False)):
        yield f"columns {columns}", _norm(tensor(64, columns, dtype=dtype), is_centred, dtype)
    yield "no weight", _norm(tensor(64, 1024, dtype=dtype), True, dtype, has_weight=False)
    yield "keys of slices", _norm(tensor(6, 4, 64, dtype=dtype), True, dtype, at=(several(6), several(1), number(3)))
    if size == 2:
        yield "residual of float32", _norm(tensor(64, 1024, dtype=torch.float32), True, dtype)


def _norm(residual: Tensor, is_centred: bool, dtype: torch.dtype, has_weight: bool = True, at: Any = None) -> Any:
    """Launch both passes."""
    x, weight = tensor(*residual.shape, dtype=dtype), tensor(residual.size(-1), dtype=dtype) if has_weight else None

    def run() -> None:
        where = at or address()
        output, total, *moments = triton_norm.dropout_add_norm(
            x, residual, weight, weight, is_centred, 1e-5, dtype, *where
        )
        of_total, needed = total if has_weight else None, [has_weight, has_weight]
        triton_norm.dropout_add_norm_backward(
            output, of_total, total, weight, *moments, is_centred, needed, dtype, *where
        )

    return run


def attention(dtype: torch.dtype) -> _Launches:
    for width in (64, 128, 256):
        yield f"width {width}", _attention(dtype, width, is_causal=width != 128)
    yield "bits", _attention(dtype, 128, is_causal=True, has_bits=True)
    yield "bool mask", _attention(dtype, 64, attn_mask=torch.bool)
    yield "mask of numbers, bits", _attention(dtype, 64, attn_mask=dtype, has_bits=True)
    yield "width 1", _attention(dtype, 1)
    yield "one query and key", _attention(dtype, 64, lengths=(1, 1))
    yield "heads that serve several", _attention(dtype, 64, heads=(8, 2))
    yield "lengths that vary", _attention(dtype, 64, True, True, varies=True)
    yield "keys of examples", _attention(dtype, 64, at=(several(2), several(2), number(3), several(2)))


def _attention(
    dtype: torch.dtype,
    width: int,
    is_causal: bool = False,
    has_bits: bool = False,
    attn_mask: torch.dtype | None = None,
    lengths: tuple[int, int] = (1024, 1024),
    heads: tuple[int, int] = (8, 8),
    varies: bool = False,
    at: Any = None,
) -> Any:
    """Launch both passes."""
    ends = torch.empty(3, dtype=torch.int32, device=_GPU) if varies else None
    shapes = [(2, each, length, width) for each, length in zip(heads, lengths, strict=True)]
    if varies:  # examples one behind the other, and heads side by side, as nested tensors have them
        query, key = (tensor(1, 2 * n, h, width, dtype=dtype).transpose(1, 2) for _, h, n, _ in shapes)
    else:
        query, key = (tensor(*shape, dtype=dtype) for shape in shapes)
    mask = None if attn_mask is None else tensor(2, heads[0], *lengths, dtype=attn_mask)

    def run() -> None:
        rest = *(at or (*address(), None)), is_causal, *lengths, ends, ends
        bits = triton_attention.attention_bits(query, *rest) if has_bits else None
        output, logs = triton_attention.attention(query, key, key, mask, bits, *rest, 0.125)
        triton_attention.attention_backward(output, output, logs, query, key, key, mask, bits, *rest, 0.125)

    return run


def steps(dtype: torch.dtype) -> _Launches:
    """The same work at step after step: under other keys, at other rates and in other batches."""
    for step in range(1, 40, 3):
        rows, at = 3 + step * 5, (2**35 * (step % 2) + step, step % 5, (2**32 * step) // 50)
        for key, stream, threshold in (at, (None, None, None)):
            where, x = address(key, stream, threshold), tensor(rows, 64, dtype=dtype)
            y = tensor(rows, 33, dtype=dtype)
            yield "dropout", lambda x=x, at=where: triton_dropout.dropout(x, *at, layout("test", x.shape), True)
            yield "dropout", lambda y=y, at=where: triton_dropout.dropout(y, *at, layout("test", y.shape), True)
            yield "dropout_add", lambda x=x, at=where: triton_fused.dropout_add(x, x, *at)
            yield "norm", _norm(x, True, dtype, at=where)
            if step % 16 == 1:
                yield "attention", _attention(dtype, 64, True, lengths=(rows, 2 * rows), at=(*where, None))


GROUPS = {"dropout": dropouts, "fused": fused, "norm": norms, "attention": attention, "steps": steps}


def main(capability: int, group: str, dtype: torch.dtype) -> None:
    """Print what becomes of the launches of a group."""
    case = ""

    def report(found: Compiled) -> None:
        sys.stdout.write(f"{json.dumps([case, found])}\n")

    with gpu(capability, report):
        for case, launch in GROUPS[group](dtype):  # noqa: B007  # which `report` tells
            launch()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]))
