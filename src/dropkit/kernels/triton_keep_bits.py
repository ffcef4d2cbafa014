"""The mask as bits on a GPU: a thread draws a word, and thirty-two elements are selected by it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import bits as operators
from dropkit.kernels.native.division import divide
from dropkit.kernels.triton_address import launch_words, on_device, rates
from dropkit.kernels.triton_bits import NOT_SPECIALIZED, along_line, keep_word, rate_of, scaled
from dropkit.random.layout import Layout

__all__ = ["keep_bits", "select"]

_TILE = 2048  # elements


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _keep_bits(
    bits,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    words_per_row, words, tiles, WORDS: tl.constexpr,
):  # fmt: skip
    key, stream, rate, first_row, line, begin, along, row, word = along_line(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, words_per_row,
        words, tiles, WORDS,
    )  # fmt: skip
    found = keep_word(key, stream, rate, row + first_row, first_block + word * 4)
    offset = line * words + begin.to(tl.int64) + along
    tl.store(bits + offset, found.to(tl.int32, bitcast=True), mask=begin + along < words)


@triton.jit(do_not_specialize=["threshold", "elements", "columns", "skipped", "words_per_row"])
def _select(
    input, output, bits, threshold, elements, columns, skipped, words_per_row,
    TILE: tl.constexpr, IS_NARROW: tl.constexpr, IS_SCALED: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * TILE
    along, lane = tl.arange(0, TILE // 8)[:, None] * 8, tl.arange(0, 8)[None, :]
    # Of eight elements all are in one row or in two, unless rows are narrow: one division serves them.
    integer: tl.constexpr = tl.int64 if columns.dtype == tl.int64 else tl.uint32
    length, after = columns.to(integer), (begin % columns).to(integer) + (along + lane * IS_NARROW).to(integer)
    row, column = begin // columns + (after // length).to(tl.int64), after % length
    if not IS_NARROW:
        column += lane
        is_next = column >= length
        row, column = row + is_next.to(tl.int64), tl.where(is_next, column - length, column)
    word = bits + row * words_per_row + (column + skipped >> 5).to(tl.int64)
    bit, offset = (column + skipped & 31).to(tl.int32), begin + (along + lane)
    if begin + TILE <= elements:  # the compiler sees that all elements exist, and moves 16 bytes at once
        _select_tile(input + offset, output + offset, word, bit, threshold, None, IS_SCALED)
    else:
        _select_tile(input + offset, output + offset, word, bit, threshold, offset < elements, IS_SCALED)


@triton.jit
def _select_tile(input, output, word, bit, threshold, is_inside, IS_SCALED: tl.constexpr):
    values, kept = tl.load(input, mask=is_inside), (tl.load(word, mask=is_inside) >> bit & 1) != 0
    found = tl.where(kept, values, 0.0)
    if IS_SCALED:
        found = scaled(found, rate_of(threshold, 0, 0))
    tl.store(output, found.to(output.dtype.element_ty), mask=is_inside)


def keep_bits(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.bits.keep_bits` does."""
    division = divide(key, stream, threshold, place)
    if division.is_too_fine:
        return operators.portable_bits(key, stream, threshold, place, device)
    words = operators.words(division.columns, division.first_column)
    bits = torch.empty((*division.mask_shape[: -1 if place.shape else None], words), dtype=torch.int32, device=device)
    if bits.numel():
        launch_words(division, key, stream, threshold, device, words).run(_keep_bits, bits)
    return bits


def select(input: Tensor, bits: Tensor, threshold: Tensor, place: Layout, is_scaled: bool) -> Tensor:
    """Apply dropout by the bits of a mask of the input's shape.

    Args:
        input: Contiguous tensor of a type that the kernels know, not empty.
        bits: What `keep_bits` has returned.
        threshold: Of the one rate.
        place: The place of the mask.
        is_scaled: Whether survivors are scaled.
    """
    output = torch.empty_like(input)
    found = rates(threshold, (), input.device)
    columns = place.shape[-1] if place.shape else 1
    with on_device(input.device):
        _select[(triton.cdiv(input.numel(), _TILE),)](
            input, output, bits, found, input.numel(), columns, place.first_column & 7, bits.shape[-1],
            TILE=_TILE, IS_NARROW=columns < 8, IS_SCALED=is_scaled,
        )  # fmt: skip
    return output
