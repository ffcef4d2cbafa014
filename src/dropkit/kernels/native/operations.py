"""The operators' work on CPU tensors by the compiled kernels; what these do not take is left to the portable ones."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dropkit.kernels import portable
from dropkit.kernels.native.division import Division, divide
from dropkit.kernels.native.library import Library, library, share_threads
from dropkit.kernels.native.packing import MAP, int64, packed_map, packed_place
from dropkit.kernels.native.strided import MemoryAxes, bit_steps, is_laid_out_like, memory_axes
from dropkit.random.layout import Layout

__all__ = [
    "ACTIVATIONS",
    "TYPES",
    "activate_gradient_plain",
    "activate_plain",
    "activates",
    "add_plain",
    "affine_plain",
    "apply_bits",
    "apply_bits_",
    "dropout",
    "dropout_of_",
    "dropout_plain",
    "dropout_shared",
    "keep_bits_of",
    "keep_bits_plain",
    "keep_mask",
    "keep_mask_plain",
    "knows",
    "serving",
    "softmax",
    "softmax_dropout",
    "spread_bits",
    "spreads",
    "takes",
]

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
Parts = Sequence[tuple[int, int, int]]
"""Number of slices, number of the first row, and stream of each part of a mask."""

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

share_threads()  # NumPy may have loaded the library before


_keys_of = torch._C._dispatch_keys
with _disable_current_modes():  # whatever the import happens under
    with torch.inference_mode(False):
        _normal = _keys_of(torch.empty(0, device="cpu"))
    with torch.inference_mode():
        _inference = _keys_of(torch.empty(0, device="cpu"))
_PLAIN_KEYS = (_normal, _inference)


def takes(input: Tensor) -> bool:
    """Tell whether `dropout_plain` takes a tensor: one that the kernels know, and contiguous."""
    return knows(input) and input.is_contiguous()


def knows(input: Tensor) -> bool:
    """Tell whether a tensor is dense, on a CPU, and of a type that the kernels know.

    PyTorch's own marks of a tensor tell in one look what it is not: on a device, sparse, nested, negated, batched.
    """
    return _keys_of(input) in _PLAIN_KEYS and input.dtype in TYPES and library() is not None


def dropout_plain(input: Tensor, key: int, threshold: int, words: Tensor | None = None) -> Tensor:
    """Apply dropout to a tensor that the kernels take, under one key at stream 0, with scaling.

    Args:
        input: The tensor.
        key: The key, whose low 64 bits count.
        threshold: Of the rate.
        words: Where to keep the mask, a bit an element; only where columns are a multiple of 64. Default: nowhere.
    """
    output, shape = torch.empty_like(input), input.shape
    place, columns, kept = input.data_ptr(), shape[-1] if shape else 1, 0 if words is None else words.data_ptr()
    native: Any = library()  # there is one: `takes` asked
    native.dropout_plain(TYPES[input.dtype], place, output.data_ptr(), kept, input.numel(), columns, key, threshold)
    return output


def dropout_shared(input: Tensor, key: int, threshold: int, mask_shape: tuple[int, ...]) -> Tensor:
    """Do what `dropout_plain` does where elements share places of the mask, as `spreads` has told that it can.

    Args:
        input: The tensor.
        key: The key, whose low 64 bits count.
        threshold: Of the rate.
        mask_shape: Shape of the mask, with length 1 on the axes that share.
    """
    output = torch.empty_like(input)
    if input.numel():
        words, axes = _shared_bits(input, mask_shape, key, threshold)
        places = input.data_ptr(), output.data_ptr(), words.data_ptr(), 0
        serving().apply_bits_strided(TYPES[input.dtype], *places, threshold, True, len(axes), *axes)
    return output


def affine_plain(
    input: Tensor, key: int, threshold: int, mask_shape: tuple[int, ...], numbers: tuple[float, float, float]
) -> Tensor:
    """Do the same with what is kept scaled and shifted, and what is dropped a constant: the numbers."""
    output, native = torch.empty_like(input), serving()
    places = input.data_ptr(), output.data_ptr()
    if not input.numel():
        pass
    elif mask_shape == input.shape:
        packed, _kept = packed_map(*_sizes(input), key, threshold, numbers)
        native.affine(TYPES[input.dtype], *places, packed)
    else:
        words, axes = _shared_bits(input, mask_shape, key, threshold)
        native.affine_by_bits(TYPES[input.dtype], *places, words.data_ptr(), 0, MAP(*numbers), len(axes), *axes)
    return output


def spreads(input: Tensor, mask_shape: tuple[int, ...]) -> bool:
    """Tell whether a mask with length 1 on some axes can be spread over a tensor that the kernels take."""
    return not input.numel() or memory_axes(input.shape, input.stride(), bit_steps(mask_shape)) is not None


def _shared_bits(input: Tensor, mask_shape: tuple[int, ...], key: int, threshold: int) -> tuple[Tensor, MemoryAxes]:
    """Draw the mask, a bit a place, and tell how it lies over the tensor."""
    columns = mask_shape[-1]
    words = keep_bits_plain((1, math.prod(mask_shape[:-1]), columns), 0, 0, key, threshold)
    axes = memory_axes(input.shape, input.stride(), bit_steps(mask_shape))
    assert axes is not None  # noqa: S101  # `spreads` asked
    return words, axes


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
    count, rows, columns = place
    return keep_bits_of([(count, first_row, 0)], rows, columns, row_step, key, threshold)


def keep_bits_of(parts: Parts, rows: int, columns: int, row_step: int, key: int, threshold: int) -> Tensor:
    """Return the mask of slices that lie in several parts of a larger one, or in several streams, one after another.

    Args:
        parts: Number of slices, number of the first row, and stream of each part.
        rows: Number of rows in a slice.
        columns: Number of columns.
        row_step: How many rows a slice is after the one before it in its part.
        key: The key of all slices.
        threshold: Of the rate.
    """
    words = torch.zeros(sum(slices for slices, *_ in parts) * rows * columns + 63 >> 6, dtype=torch.int64)
    place, native = words.data_ptr(), serving()
    for offset, packed in _packed_parts(parts, rows, columns, row_step, key, threshold):
        native.keep_bits(place, offset, packed)
    return words


def dropout_of_(input: Tensor, parts: Parts, rows: int, columns: int, row_step: int, key: int, threshold: int) -> None:
    """Apply dropout in place to a tensor that the kernels take, by the mask that `keep_bits_of` returns."""
    place, native, kind, size = input.data_ptr(), serving(), TYPES[input.dtype], input.element_size()
    for offset, packed in _packed_parts(parts, rows, columns, row_step, key, threshold):
        native.dropout(kind, place + offset * size, place + offset * size, packed)


def softmax(input: Tensor, output: Tensor) -> None:
    """Write the softmax of each row of a contiguous tensor of float32 or float64 into another, or into itself."""
    columns = input.shape[-1]
    softmax_dropout(input, output, [(1, 0, 0)], input.numel() // max(columns, 1), columns, 0, 0, 0)


def softmax_dropout(
    input: Tensor, output: Tensor, parts: Parts, rows: int, columns: int, row_step: int, key: int, threshold: int
) -> None:
    """Do the same, and apply dropout to it by the mask that `keep_bits_of` returns; by none at a threshold of 0."""
    if not activates():  # exponentials, as of activations
        torch.softmax(input, -1, out=output)
        if threshold:
            dropout_of_(output, parts, rows, columns, row_step, key, threshold)
        return
    source, target, kind, size = input.data_ptr(), output.data_ptr(), TYPES[input.dtype], input.element_size()
    for offset, packed in _packed_parts(parts, rows, columns, row_step, key, threshold):
        serving().softmax(kind, source + offset * size, target + offset * size, packed)


def _packed_parts(
    parts: Parts, rows: int, columns: int, row_step: int, key: int, threshold: int
) -> Iterator[tuple[int, Any]]:
    """Yield the offset of every part and what the library reads of it."""
    offset = 0
    for slices, first_row, stream in parts:
        packed = packed_place(slices, rows, columns, key, threshold)
        packed[4], packed[5], packed[14] = int64(first_row), int64(row_step), stream
        yield offset, packed
        offset += slices * rows * columns


def keep_mask_plain(shape: tuple[int, ...], key: int, threshold: int) -> Tensor:
    """Return a mask, a byte an element, of a shape of one axis or more, under one key at stream 0."""
    keep = torch.empty(shape, dtype=torch.bool, device="cpu")
    if keep.numel():
        serving().keep_bytes(keep.data_ptr(), packed_place(1, math.prod(shape[:-1]), shape[-1], key, threshold))
    return keep


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
    native, division = library(), divide(key, stream, threshold, place)
    if native is None or division.is_too_fine:
        return portable.dropout(input, key, stream, threshold, place, scaled)
    if input.dtype in TYPES and input.is_contiguous() and input.shape == division.mask_shape:
        output = torch.empty_like(input)
        for call in division.calls(key, stream, threshold, scaled):
            size = call.offset * input.element_size()
            native.dropout(TYPES[input.dtype], input.data_ptr() + size, output.data_ptr() + size, call.packed)
        return output

    def apply(index: tuple[int, ...], places: tuple[int, ...], axes: MemoryAxes) -> None:
        rate = int(threshold[index] if threshold.numel() > 1 else threshold)
        native.apply_bits_strided(TYPES[input.dtype], *places, rate, scaled, len(axes), *axes)

    spread = spread_bits(native, division, input, key, stream, threshold, apply)
    if spread is not None:
        return spread
    keep = _keep_mask(native, division, key, stream, threshold)
    return portable.select(input, keep, portable.survivor_scale(threshold) if scaled else None)


def spread_bits(
    native: Library,
    division: Division,
    input: Tensor,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    apply: Callable[[tuple[int, ...], tuple[int, ...], MemoryAxes], None],
) -> Tensor | None:
    """Apply dropout where elements share places of the mask or lie in another order, if the kernels can.

    The mask is drawn at its own size, a bit a place, and spread over the elements as these lie in memory: by `apply`,
    which gets the index of the rate, the addresses of input, output and mask with the place of the first bit, and the
    axes.
    """
    if input.dtype not in TYPES:
        return None
    output = torch.empty_like(input)  # dense, even if the input is not
    if not output.numel():
        return output
    steps = bit_steps(division.mask_shape)
    rates = threshold.expand(input.shape[: threshold.dim()]) if threshold.numel() > 1 else threshold.reshape(())
    axes = memory_axes(output.shape[rates.dim() :], output.stride()[rates.dim() :], steps[rates.dim() :])
    if axes is None:
        return None
    source = input if is_laid_out_like(input, output) else output.copy_(input)
    words = torch.zeros(division.mask_shape.numel() + 63 >> 6, dtype=torch.int64)
    for call in division.calls(key, stream, threshold, scaled=False):
        native.keep_bits(words.data_ptr(), call.offset, call.packed)
    for index in itertools.product(*map(range, rates.shape)):
        first = sum(i * step for i, step in zip(index, steps, strict=False))
        rate = tuple(i if n > 1 else 0 for i, n in zip(index, threshold.shape, strict=False))  # which several may share
        apply(rate, (source[index].data_ptr(), output[index].data_ptr(), words.data_ptr(), first), axes)
    return output


def keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.portable.keep_mask` does."""
    native, division = library(), divide(key, stream, threshold, place)
    if native is None or division.is_too_fine or device.type != "cpu":
        return portable.keep_mask(key, stream, threshold, place, device)
    return _keep_mask(native, division, key, stream, threshold)


def _keep_mask(native: Library, division: Division, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    keep = torch.empty(division.mask_shape, dtype=torch.bool)
    for call in division.calls(key, stream, threshold, scaled=False):
        native.keep_bytes(keep.data_ptr() + call.offset, call.packed)
    return keep
