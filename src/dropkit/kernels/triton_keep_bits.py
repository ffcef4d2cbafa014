"""The mask as bits on a GPU: a word is drawn by one thread, and thirty-two elements are read by it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import bits as operators
from dropkit.kernels.native.division import divide
from dropkit.kernels.triton_address import launch_words
from dropkit.kernels.triton_bits import along_line, keep_word
from dropkit.random.layout import Layout

__all__ = ["keep_bits"]


@triton.jit(do_not_specialize=["keys", "streams", "thresholds", "first_row", "row_step", "first_block"])
def _keep_bits(
    bits,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    words_per_row, words, tiles, WORDS: tl.constexpr,
):  # fmt: skip
    key, stream, threshold, first_row, line, begin, along, row, word = along_line(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, words_per_row,
        words, tiles, WORDS,
    )  # fmt: skip
    found = keep_word(key, stream, threshold, row + first_row, first_block + word * 4)
    offset = line * words + begin.to(tl.int64) + along
    tl.store(bits + offset, found.to(tl.int32, bitcast=True), mask=begin + along < words)


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
