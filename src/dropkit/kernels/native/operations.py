"""The operators' work on CPU tensors by the compiled kernels; what these do not take is left to the portable ones."""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dropkit.kernels import portable
from dropkit.kernels.native.library import Library, library, share_threads
from dropkit.kernels.native.packing import PACKED, int64, packed_place
from dropkit.kernels.native.strided import bit_steps, is_laid_out_like, memory_axes
from dropkit.random.layout import Layout, check_addressable

__all__ = [
    "ACTIVATIONS",
    "TYPES",
    "activate_gradient_plain",
    "activate_plain",
    "activates",
    "add_plain",
    "apply_bits",
    "apply_bits_",
    "calls",
    "dropout",
    "dropout_plain",
    "is_too_fine",
    "keep_bits_plain",
    "keep_mask",
    "mask_shape",
    "serving",
    "takes",
]

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

share_threads()  # NumPy may have loaded the library before


_keys_of = torch._C._dispatch_keys
with _disable_current_modes():  # whatever the import happens under
    with torch.inference_mode(False):
        _PLAIN_KEYS = _keys_of(torch.empty(0, device="cpu"))
    with torch.inference_mode():
        _INFERENCE_KEYS = _keys_of(torch.empty(0, device="cpu"))


def takes(input: Tensor) -> bool:
    """Tell whether `dropout_plain` takes a tensor: dense, contiguous, on a CPU, of a type that the kernels know.

    PyTorch's own marks of a tensor tell in one look what it is not: on a device, sparse, nested, negated, batched.
    """
    keys = _keys_of(input)
    return (
        keys in (_PLAIN_KEYS, _INFERENCE_KEYS)
        and input.dtype in TYPES
        and input.is_contiguous()
        and library() is not None
    )


def dropout_plain(input: Tensor, key: int, threshold: int, words: Tensor | None = None) -> Tensor:
    """Apply dropout to a tensor that the kernels take, under one key at stream 0, with scaling.

    Args:
        input: The tensor.
        key: The key in ``[0, 2**64)``.
        threshold: Of the rate.
        words: Where to keep the mask, a bit an element; only where columns are a multiple of 64. Default: nowhere.
    """
    output, shape = torch.empty_like(input), input.shape
    place, columns, kept = input.data_ptr(), shape[-1] if shape else 1, 0 if words is None else words.data_ptr()
    native: Any = library()  # there is one: `takes` asked
    native.dropout_plain(TYPES[input.dtype], place, output.data_ptr(), kept, input.numel(), columns, key, threshold)
    return output


def add_plain(input: Tensor, residual: Tensor, key: int, threshold: int) -> Tensor:
    """Add dropout of a tensor to another of its shape and type; the kernels take both."""
    output = torch.empty_like(input)
    places = input.data_ptr(), residual.data_ptr(), output.data_ptr()
    serving().add(TYPES[input.dtype], *places, *_sizes(input), key, threshold)
    return output


def activates() -> bool:
    """Tell whether activations are served: plain C++ takes longer for them than PyTorch's operations."""
    found = library()
    return found is not None and found.kernel() != b"scalar"


def activate_plain(input: Tensor, bias: Tensor | None, activation: int, key: int, threshold: int) -> Tensor:
    """Apply dropout to an activation, by its place in `ACTIVATIONS`, of a tensor plus a number a column."""
    output = torch.empty_like(input)
    places = input.data_ptr(), None if bias is None else bias.data_ptr(), output.data_ptr()
    serving().activate(TYPES[input.dtype], activation, *places, *_sizes(input), key, threshold)
    return output


def activate_gradient_plain(
    grad: Tensor, input: Tensor, bias: Tensor | None, activation: int, key: int, threshold: int
) -> Tensor:
    """Return the gradient of `activate_plain` with respect to its input."""
    output = torch.empty_like(input)
    places = grad.data_ptr(), input.data_ptr(), None if bias is None else bias.data_ptr(), output.data_ptr()
    serving().activate_gradient(TYPES[input.dtype], activation, *places, *_sizes(input), key, threshold)
    return output


def keep_bits_plain(place: tuple[int, int, int], first_row: int, row_step: int, key: int, threshold: int) -> Tensor:
    """Return the mask of slices of rows of columns, a bit an element, in words of 64.

    Args:
        place: Number of slices, of rows in each, and of columns.
        first_row: Number of the first row.
        row_step: How many rows a slice is after the one before it.
        key: The key of all slices, at stream 0.
        threshold: Of the rate.
    """
    words = torch.zeros(math.prod(place) + 63 >> 6, dtype=torch.int64)
    packed = packed_place(*place, key, threshold)
    packed[4], packed[5] = int64(first_row), int64(row_step)
    serving().keep_bits(words.data_ptr(), 0, packed)
    return words


def apply_bits(input: Tensor, words: Tensor, threshold: int) -> Tensor:
    """Apply dropout to a tensor that the kernels take, by the bits of its mask."""
    output = torch.empty_like(input)
    places = input.data_ptr(), output.data_ptr(), words.data_ptr()
    serving().apply_bits(TYPES[input.dtype], *places, input.numel(), threshold, 1)
    return output


def apply_bits_(input: Tensor, words: Tensor, threshold: int) -> None:
    """Do the same in place."""
    place = input.data_ptr()
    serving().apply_bits(TYPES[input.dtype], place, place, words.data_ptr(), input.numel(), threshold, 1)


def serving() -> Library:
    """Return the library, where `takes` has told that it serves."""
    found = library()
    assert found is not None  # noqa: S101  # `takes` asked
    return found


def _sizes(input: Tensor) -> tuple[int, int]:
    shape = input.shape
    return input.numel(), shape[-1] if shape else 1


def dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, scaled: bool) -> Tensor:
    """Do what `dropkit.kernels.portable.dropout` does."""
    native = library()
    if native is None or is_too_fine(key, stream, threshold, place):
        return portable.dropout(input, key, stream, threshold, place, scaled)
    if input.dtype in TYPES and input.is_contiguous() and input.shape == mask_shape(key, stream, place):
        output = torch.empty_like(input)
        for call in calls(key, stream, threshold, place, scaled):
            size = call.offset * input.element_size()
            native.dropout(TYPES[input.dtype], input.data_ptr() + size, output.data_ptr() + size, call.packed)
        return output
    spread = _dropout_by_bits(native, input, key, stream, threshold, place, scaled)
    if spread is not None:
        return spread
    keep = _keep_mask(native, key, stream, threshold, place)
    return portable.select(input, keep, portable.survivor_scale(threshold) if scaled else None)


def _dropout_by_bits(
    native: Library, input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, scaled: bool
) -> Tensor | None:
    """Apply dropout where elements share places of the mask or lie in another order, if the kernels can.

    The mask is drawn at its own size, a bit a place, and spread over the elements as these lie in memory.
    """
    if input.dtype not in TYPES:
        return None
    check_addressable("dropout", "input", place.shape)
    output = torch.empty_like(input)  # dense, even if the input is not
    mask = mask_shape(key, stream, place)
    steps = bit_steps(mask)
    rates = threshold.expand(input.shape[: threshold.dim()]) if threshold.numel() > 1 else threshold.reshape(())
    axes = memory_axes(output[(0,) * rates.dim()], steps[rates.dim() :]) if output.numel() else None
    if axes is None:
        return output if not output.numel() else None
    source = input if is_laid_out_like(input, output) else output.copy_(input)
    words = torch.zeros(math.prod(mask) + 63 >> 6, dtype=torch.int64)
    for call in calls(key, stream, threshold, place, scaled=False):
        native.keep_bits(words.data_ptr(), call.offset, call.packed)
    for index in itertools.product(*map(range, rates.shape)):
        first = sum(i * step for i, step in zip(index, steps, strict=False))
        places = source[index].data_ptr(), output[index].data_ptr(), words.data_ptr(), first
        native.apply_bits_strided(TYPES[input.dtype], *places, int(rates[index]), scaled, len(axes), *axes)
    return output


def keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.portable.keep_mask` does."""
    native = library() if device.type == "cpu" else None
    if native is None or is_too_fine(key, stream, threshold, place):
        return portable.keep_mask(key, stream, threshold, place, device)
    return _keep_mask(native, key, stream, threshold, place)


def _keep_mask(native: Library, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout) -> Tensor:
    keep = torch.empty(mask_shape(key, stream, place), dtype=torch.bool)
    for call in calls(key, stream, threshold, place, scaled=False):
        native.keep_bytes(keep.data_ptr() + call.offset, call.packed)
    return keep


def mask_shape(key: Tensor, stream: Tensor, place: Layout) -> torch.Size:
    """Return the shape of a mask: slices with keys or streams of their own, then the axes of the place."""
    return torch.Size((*_slices(key, stream), *place.shape))


def _slices(key: Tensor, stream: Tensor) -> torch.Size:
    """Return the axes of slices, on each of which keys or streams may have one value for all."""
    return torch.Size(n if m == 1 else m for m, n in zip(key.shape, stream.shape, strict=True))


def is_too_fine(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout) -> bool:
    """Tell whether rates differ within a row, or where the draws are shared, which the kernels do not take."""
    mask = mask_shape(key, stream, place)
    rates = threshold.shape
    return len(rates) >= max(len(mask), 1) or any(rates[axis] > mask[axis] for axis in range(len(rates)))


class _Call(NamedTuple):
    offset: int  # elements before
    packed: Any
    kept: tuple[Tensor, ...]  # the tensors that `packed` points into


def calls(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, scaled: bool) -> list[_Call]:
    """Return the calls of the library that make up a mask: as few as the numbering of its rows allows.

    A call takes slices with a key, a stream and a rate each, and as many consecutive rows in every one of them. So the
    innermost axes whose rows are consecutive become the rows of a slice, the axis before them the slices, and every
    place on the axes before that is a call of its own.
    """
    check_addressable("dropout", "input", place.shape)
    slices = _slices(key, stream)
    columns = place.shape[-1] if place.shape else 1
    lengths = (*slices, *place.shape[:-1])
    steps = (*(0,) * len(slices), *place.row_strides)
    if 0 in lengths or not columns:
        return []
    inner = len(lengths)  # the first axis of those whose rows are consecutive
    while inner > max(threshold.dim(), len(slices)):
        consecutive = steps[inner - 1] == math.prod(lengths[inner:])
        if not consecutive and lengths[inner - 1] > 1:
            break
        inner -= 1
    rows = math.prod(lengths[inner:])
    if not inner:  # one call, as is most common: the tensors of the address have one value each
        found: tuple[Tensor, ...] = (key, stream, threshold)
        sizes = [scaled, 1, rows, columns, int64(place.first_row), 0, place.first_column]
        return [_Call(0, PACKED(*sizes, *(value.data_ptr() for value in found)), found)]
    if inner == 1 and max(key.dim(), stream.dim(), threshold.dim()) <= 1:  # one call too: a value for all, or a slice
        found = key.contiguous(), stream.contiguous(), threshold.contiguous()
        sizes = [scaled, lengths[0], rows, columns, int64(place.first_row), int64(steps[0]), place.first_column]
        strides = (int(value.numel() > 1) for value in found)
        return [_Call(0, PACKED(*sizes, *(value.data_ptr() for value in found), *strides), found)]
    *outer, count = lengths[:inner]
    row_step = steps[inner - 1]
    address = [
        value.reshape(value.shape + (1,) * (inner - value.dim())).expand(lengths[:inner]).reshape(*outer, count)
        for value in (key, stream, threshold)
    ]
    parts: list[_Call] = []
    for index in itertools.product(*map(range, outer)):
        found = tuple(value[index].contiguous() for value in address)
        first_row = place.first_row + sum(i * step for i, step in zip(index, steps, strict=False))
        sizes = [scaled, count, rows, columns, int64(first_row), int64(row_step), place.first_column]
        packed = PACKED(*sizes, *(value.data_ptr() for value in found), 1, 1, 1)
        parts.append(_Call(len(parts) * count * rows * columns, packed, found))
    return parts
