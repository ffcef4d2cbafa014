"""The mask of attention weights as bits, for kernels that read it instead of drawing it: one bit a weight.

A word has thirty-two keys of a query, and the words of neighbouring queries lie side by side: so a tile of weights, a
few words wide, reads whole lines of memory.
"""

import triton
import triton.language as tl

from dropkit.kernels.triton_attention_tiles import NOT_SPECIALIZED, address, segment
from dropkit.kernels.triton_bits import keep_word

__all__ = ["keep_bits"]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def keep_bits(
    bits, query_ends, key_ends, tiles, heads, queries, keys, logs_batch, logs_head, words,
    dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
    ROWS: tl.constexpr, WORDS: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Draw the words of some queries and keys, of those that a causal mask leaves."""
    programs = tiles * tl.cdiv(words, WORDS)
    line, program = tl.program_id(0) // programs, tl.program_id(0) % programs
    first_row, first_word = program % tiles * ROWS, program // tiles * WORDS
    batch, head = (line // heads).to(tl.int64), (line % heads).to(tl.int64)
    start, queries = segment(query_ends, batch, queries)
    _, keys = segment(key_ends, batch, keys)
    keys = tl.minimum(keys, first_row + ROWS) if IS_CAUSAL else keys
    rows = first_row + tl.arange(0, ROWS)
    key, stream, rate, mask_row = address(
        dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
        batch, head,
    )  # fmt: skip
    place = bits + (batch * logs_batch + head * logs_head) * words + start + rows
    for word in range(first_word, tl.minimum(first_word + WORDS, tl.cdiv(keys, 32))):
        found = keep_word(key, stream, rate, mask_row + rows, word * 4)
        tl.store(place + tl.cast(word, tl.int64) * logs_head, found.to(tl.int32, bitcast=True), mask=rows < queries)
