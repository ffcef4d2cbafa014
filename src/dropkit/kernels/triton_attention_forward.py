"""Attention with dropout on a GPU, by Triton: no weight is ever in memory.

The algorithm is FlashAttention-2's (Dao 2023, "FlashAttention-2: faster attention with better parallelism and work
partitioning", algorithms 1 and 2): softmax by parts, whose running maxima and sums are kept as one number a query, from
which the backward pass computes weights again.
"""

import triton
import triton.language as tl

from dropkit.kernels.triton_attention_tiles import NOT_SPECIALIZED, address, in_order, kept, rows_of, scores_of, segment
from dropkit.kernels.triton_bits import scale_of

__all__ = ["forward"]


@triton.jit
def _forward_part(
    summed, sums, highest, rows, begin, end, query, key, value, key_row, value_row, width, columns, keys,
    attn_mask, mask_column, factor, dropout_key, stream, rate, mask_row, bits, place, rows_of_bits, is_inside,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, IS_WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what some keys contribute."""
    order = in_order(COLUMNS)
    for first in range(begin, end, COLUMNS):
        key_rows = rows_of(key, first, order, key_row, WIDTH, width, keys, IS_WHOLE)
        scores = scores_of(
            query, key_rows, factor, rows, first + order, keys, is_inside, attn_mask, mask_column,
            IS_CAUSAL and not IS_WHOLE, not IS_WHOLE, PRECISION,
        )  # fmt: skip
        found = tl.maximum(highest, tl.max(scores, 1))
        # A query that may attend to nothing yet has a maximum of -inf, from which nothing can be subtracted.
        base = tl.where(found == float("-inf"), 0.0, found) if attn_mask is not None else found
        shrink = tl.exp2(highest - base)
        weights = tl.exp2(scores - base[:, None])
        sums = sums * shrink + tl.sum(weights, 1)
        is_kept = kept(
            weights, dropout_key, stream, rate, mask_row, bits, place, rows_of_bits, first, is_inside, keys,
            ROWS, COLUMNS,
        )  # fmt: skip
        values = rows_of(value, first, order, value_row, VALUES, columns, keys, IS_WHOLE)
        weights = tl.where(is_kept, weights, 0.0).to(values.dtype)
        summed = tl.dot(weights, values, summed * shrink[:, None], input_precision=PRECISION)
        highest = found
    return summed, sums, highest


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward(
    query, key, value, attn_mask, bits, output, logs,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    output_batch, output_head, output_row, mask_batch, mask_head, mask_query, mask_column,
    query_ends, key_ends, tiles, heads, group, queries, keys,
    width: tl.constexpr, columns: tl.constexpr, factor,
    logs_batch, logs_head, words,
    dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a tile of the output, and the logarithm of what each of its queries is divided by."""
    program = tl.program_id(0)
    line, first_row = program // tiles, (tiles - 1 - program % tiles) * ROWS
    batch, head = (line // heads).to(tl.int64), (line % heads).to(tl.int64)
    start, queries = segment(query_ends, batch, queries)
    key_start, keys = segment(key_ends, batch, keys)
    if first_row >= queries:
        return
    own = head // group
    query += batch * query_batch + head * query_head + start * query_row
    key += batch * key_batch + own * key_head + key_start * key_row
    value += batch * value_batch + own * value_head + key_start * value_row
    output += batch * output_batch + head * output_head + start * output_row
    along = tl.arange(0, ROWS)
    rows = first_row + along
    is_inside = rows < queries
    query_rows = rows_of(query, first_row, along, query_row, WIDTH, width, queries, False)
    if attn_mask is not None:
        attn_mask += batch * mask_batch + head * mask_head + rows.to(tl.int64)[:, None] * mask_query
    dropout_key, stream, rate, mask_row = address(
        dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
        batch, head,
    )  # fmt: skip
    place = (batch * logs_batch + head * logs_head) * words + start + rows
    end = tl.minimum(keys, first_row + ROWS) if IS_CAUSAL else keys
    whole = (tl.minimum(keys, first_row + 1) if IS_CAUSAL else keys) // COLUMNS * COLUMNS
    summed = tl.zeros((ROWS, VALUES), tl.float32)
    sums, highest = tl.zeros((ROWS,), tl.float32), tl.full((ROWS,), float("-inf"), tl.float32)
    for part in tl.static_range(2):
        summed, sums, highest = _forward_part(
            summed, sums, highest, rows, whole if part else 0, end if part else whole,
            query_rows, key, value, key_row, value_row, width, columns, keys, attn_mask, mask_column, factor,
            dropout_key, stream, rate, mask_row + rows, bits, place, logs_head, is_inside,
            ROWS, COLUMNS, WIDTH, VALUES, IS_CAUSAL, part == 0, PRECISION,
        )  # fmt: skip
    is_empty = sums == 0.0  # of queries that may attend to nothing, which is not NaN
    sums = tl.where(is_empty, 1.0, sums)
    survivors = tl.where(is_empty, 0.0, scale_of(rate) / sums)
    lane = tl.arange(0, VALUES)
    found = (summed * survivors[:, None]).to(output.dtype.element_ty)
    at = output + rows.to(tl.int64)[:, None] * output_row + lane[None, :]
    tl.store(at, found, mask=is_inside[:, None] & (lane < columns)[None, :])
    log = tl.where(is_empty, float("inf"), highest + tl.log2(sums))
    tl.store(logs + batch * logs_batch + head * logs_head + start + rows, log, mask=is_inside)
