"""The operators' work on CPU tensors by the compiled kernels; what these do not take is left to the portable ones."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native.library import Library, library
from dropkit.random.layout import Layout, check_addressable

__all__ = ["TYPES", "dropout", "keep_mask"]

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, scaled: bool) -> Tensor:
    """Do what `dropkit.kernels.portable.dropout` does."""
    native = library()
    if native is None or _is_per_column(key, stream, threshold, place):
        return portable.dropout(input, key, stream, threshold, place, scaled)
    if input.dtype in TYPES and input.is_contiguous() and input.shape == _mask_shape(key, stream, place):
        output = torch.empty_like(input)
        for call in _calls(key, stream, threshold, place, scaled):
            size = call.offset * input.element_size()
            native.dropout(TYPES[input.dtype], input.data_ptr() + size, output.data_ptr() + size, call.packed.data_ptr())
        return output
    keep = _keep_mask(native, key, stream, threshold, place)
    return portable.select(input, keep, portable.survivor_scale(threshold) if scaled else None)


def keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.portable.keep_mask` does."""
    native = library() if device.type == "cpu" else None
    if native is None or _is_per_column(key, stream, threshold, place):
        return portable.keep_mask(key, stream, threshold, place, device)
    return _keep_mask(native, key, stream, threshold, place)


def _keep_mask(native: Library, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout) -> Tensor:
    keep = torch.empty(_mask_shape(key, stream, place), dtype=torch.bool)
    for call in _calls(key, stream, threshold, place, scaled=False):
        native.keep_bytes(keep.data_ptr() + call.offset, call.packed.data_ptr())
    return keep


def _mask_shape(key: Tensor, stream: Tensor, place: Layout) -> torch.Size:
    return torch.Size((*torch.broadcast_shapes(key.shape, stream.shape), *place.shape))


def _is_per_column(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout) -> bool:
    """Tell whether rates differ within a row, or more finely than masks, which the kernels do not take."""
    slices = max(key.dim(), stream.dim())
    shape = (*(1,) * slices, *place.shape)[: threshold.dim()]
    finer = any(rates > 1 and length == 1 for rates, length in zip(threshold.shape[slices:], shape[slices:], strict=False))
    return finer or threshold.dim() > slices + max(len(place.shape) - 1, 0) or _is_wider(key, stream, threshold)


def _is_wider(key: Tensor, stream: Tensor, threshold: Tensor) -> bool:
    """Tell whether slices with rates of their own share an address."""
    slices = torch.broadcast_shapes(key.shape, stream.shape)
    return any(rates > length for rates, length in zip(threshold.shape, slices, strict=False))


class _Call(NamedTuple):
    offset: int  # elements before
    packed: Tensor
    kept: tuple[Tensor, ...]  # the tensors that `packed` points into


def _calls(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, scaled: bool) -> list[_Call]:
    """Return the calls of the library that make up a mask: as few as the numbering of its rows allows.

    A call takes equal steps between slices, and consecutive rows in each. So the rows of the mask are cut into runs of
    consecutive ones, and the innermost axis over the runs becomes an axis of slices.
    """
    slices = torch.broadcast_shapes(key.shape, stream.shape)
    check_addressable("dropout", "input", place.shape)
    axes = len(slices) + max(len(place.shape) - 1, 0)
    shape = (*slices, *place.shape)
    columns = shape[-1] if place.shape else 1
    steps = [*(0,) * len(slices), *place.row_strides]
    first = max(threshold.dim(), len(slices))  # axes before it need a key or a rate of their own
    run = axes
    while run > first and (run == axes or shape[run - 1] == 1 or steps[run - 1] == math.prod(shape[run:axes])):
        if run == axes and steps[run - 1] != 1 and shape[run - 1] != 1:
            break
        run -= 1
    rows = math.prod(shape[run:axes])
    outer, last = shape[: max(run - 1, 0)], shape[run - 1] if run else 1
    if 0 in shape:
        return []
    thresholds, keys, streams = (
        value.reshape(value.shape + (1,) * (run - value.dim())).expand(shape[:run]).contiguous()
        for value in (threshold, key, stream)
    )
    calls = []
    for index in itertools.product(*map(range, outer)):
        found = tuple(value[index].reshape(-1) for value in (keys, streams, thresholds))
        first_row = place.first_row + sum(i * step for i, step in zip(index, steps, strict=False))
        row_step = steps[run - 1] if run else 0
        packed = torch.tensor(
            [scaled, last, rows, columns, _int64(first_row), _int64(row_step), place.first_column]
            + [value.data_ptr() for value in found]
            + [1, 1, 1],
            dtype=torch.int64,
        )
        calls.append(_Call(len(calls) * last * rows * columns, packed, found))
    return calls


def _int64(value: int) -> int:
    """Return the int64 of the same low 64 bits."""
    return (value + 2**63) % 2**64 - 2**63
