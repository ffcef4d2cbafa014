"""The gradients of attention with dropout on a GPU: one kernel by queries, one by keys, which add nothing to memory.

As in `dropkit.kernels.triton_attention_forward`, after Dao (2023), algorithm 2, but in two kernels that each compute
the weights again. So results are the same from run to run: no sum depends on which program comes first.
"""

import triton
import triton.language as tl

from dropkit.kernels.triton_attention_tiles import NOT_SPECIALIZED, address, in_order, kept, rows_of, scores_of, segment
from dropkit.kernels.triton_bits import scale_of

__all__ = ["of_keys", "of_queries"]


@triton.jit
def _of_queries_part(
    found, rows, begin, end, query, grad, log, weighted,
    key, value, key_row, value_row, width, columns, keys, attn_mask, mask_column, factor,
    dropout_key, stream, rate, mask_row, bits, place, rows_of_bits, is_inside,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, IS_WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what some keys contribute to the gradient of queries."""
    order = in_order(COLUMNS)
    for first in range(begin, end, COLUMNS):
        key_rows = rows_of(key, first, order, key_row, WIDTH, width, keys, IS_WHOLE)
        values = rows_of(value, first, order, value_row, VALUES, columns, keys, IS_WHOLE)
        scores = scores_of(
            query, key_rows, factor, rows, first + order, keys, is_inside, attn_mask, mask_column,
            IS_CAUSAL and not IS_WHOLE, not IS_WHOLE, PRECISION,
        )  # fmt: skip
        weights = tl.exp2(scores - log[:, None])
        of_weights = tl.dot(grad, tl.trans(values), input_precision=PRECISION)
        is_kept = kept(
            of_weights, dropout_key, stream, rate, mask_row, bits, place, rows_of_bits, first, is_inside, keys,
            ROWS, COLUMNS,
        )  # fmt: skip
        of_scores = weights * (tl.where(is_kept, of_weights, 0.0) - weighted[:, None])
        found = tl.dot(of_scores.to(key_rows.dtype), key_rows, found, input_precision=PRECISION)
    return found


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def of_queries(
    query, key, value, attn_mask, bits, output, logs, grad, weighted, of_query,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    output_batch, output_head, output_row, grad_batch, grad_head, grad_row,
    of_query_batch, of_query_head, of_query_row, mask_batch, mask_head, mask_query, mask_column,
    query_ends, key_ends, tiles, heads, group, queries, keys,
    width: tl.constexpr, columns: tl.constexpr, factor, logs_batch, logs_head, words,
    dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a tile of queries, and the part of the gradients of scores that is one number a query."""
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
    grad += batch * grad_batch + head * grad_head + start * grad_row
    of_query += batch * of_query_batch + head * of_query_head + start * of_query_row
    along = tl.arange(0, ROWS)
    rows = first_row + along
    is_inside = rows < queries
    query_rows = rows_of(query, first_row, along, query_row, WIDTH, width, queries, False)
    grad_rows = rows_of(grad, first_row, along, grad_row, VALUES, columns, queries, False)
    output_rows = rows_of(output, first_row, along, output_row, VALUES, columns, queries, False)
    dropout_key, stream, rate, mask_row = address(
        dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
        batch, head,
    )  # fmt: skip
    scale = scale_of(rate)
    # Survivors are scaled at the end, for all that a gradient adds up has the same scale.
    weighted_rows = tl.sum(output_rows.to(tl.float32) * grad_rows.to(tl.float32), 1) / scale
    at = batch * logs_batch + head * logs_head + start + rows
    tl.store(weighted + at, weighted_rows, mask=is_inside)
    log = tl.load(logs + at, mask=is_inside, other=float("inf"))
    if attn_mask is not None:
        attn_mask += batch * mask_batch + head * mask_head + rows.to(tl.int64)[:, None] * mask_query
    place = (batch * logs_batch + head * logs_head) * words + start + rows
    end = tl.minimum(keys, first_row + ROWS) if IS_CAUSAL else keys
    whole = (tl.minimum(keys, first_row + 1) if IS_CAUSAL else keys) // COLUMNS * COLUMNS
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for part in tl.static_range(2):
        found = _of_queries_part(
            found, rows, whole if part else 0, end if part else whole, query_rows, grad_rows, log, weighted_rows,
            key, value, key_row, value_row, width, columns, keys, attn_mask, mask_column, factor,
            dropout_key, stream, rate, mask_row + rows, bits, place, logs_head, is_inside,
            ROWS, COLUMNS, WIDTH, VALUES, IS_CAUSAL, part == 0, PRECISION,
        )  # fmt: skip
    lane = tl.arange(0, WIDTH)
    at = of_query + rows.to(tl.int64)[:, None] * of_query_row + lane[None, :]
    found = (found * (factor * scale)).to(of_query.dtype.element_ty)
    tl.store(at, found, mask=is_inside[:, None] & (lane < width)[None, :])


@triton.jit
def _of_keys_from(
    of_key, of_value, first, query, key, value, grad, query_row, grad_row, width, columns, queries, keys,
    attn_mask, mask_query, mask_column, factor, logs, weighted,
    dropout_key, stream, rate, mask_row, bits, rows_of_bits,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the queries of a head contribute to the gradients of keys and values."""
    along = tl.arange(0, ROWS)
    for first_row in range(first // ROWS * ROWS if IS_CAUSAL else 0, queries, ROWS):
        rows = first_row + along
        is_inside = rows < queries
        query_rows = rows_of(query, first_row, along, query_row, WIDTH, width, queries, False)
        log = tl.load(logs + rows, mask=is_inside, other=float("inf"))  # which makes weights of 0
        mask = None if attn_mask is None else attn_mask + rows.to(tl.int64)[:, None] * mask_query
        scores = scores_of(
            query_rows, key, factor, rows, first + in_order(COLUMNS), keys, is_inside, mask, mask_column,
            IS_CAUSAL, False, PRECISION,
        )  # fmt: skip
        weights = tl.exp2(scores - log[:, None])
        grad_rows = rows_of(grad, first_row, along, grad_row, VALUES, columns, queries, False)
        of_weights = tl.dot(grad_rows, tl.trans(value), input_precision=PRECISION)
        is_kept = kept(
            weights, dropout_key, stream, rate, mask_row + rows, bits, rows, rows_of_bits, first, is_inside, keys,
            ROWS, COLUMNS,
        )  # fmt: skip
        weighted_rows = tl.load(weighted + rows, mask=is_inside, other=0.0)
        survivors = tl.where(is_kept, weights, 0.0).to(grad_rows.dtype)
        of_scores = weights * (tl.where(is_kept, of_weights, 0.0) - weighted_rows[:, None])
        of_scores = of_scores.to(query_rows.dtype)
        of_value = tl.dot(tl.trans(survivors), grad_rows, of_value, input_precision=PRECISION)
        of_key = tl.dot(tl.trans(of_scores), query_rows, of_key, input_precision=PRECISION)
    return of_key, of_value


# Where a head of keys serves one of queries there is no loop over these, which saves registers.
@triton.jit(do_not_specialize=[name for name in NOT_SPECIALIZED if name != "group"])
def of_keys(
    query, key, value, attn_mask, bits, logs, grad, weighted, of_key, of_value,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    grad_batch, grad_head, grad_row, of_key_batch, of_key_head, of_key_row,
    of_value_batch, of_value_head, of_value_row, mask_batch, mask_head, mask_query, mask_column,
    query_ends, key_ends, tiles, heads, group, queries, keys,
    width: tl.constexpr, columns: tl.constexpr, factor, logs_batch, logs_head, words,
    dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, VALUES: tl.constexpr,
    IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys and values, from all heads that they serve."""
    program = tl.program_id(0)
    line, first = program // tiles, (program % tiles) * COLUMNS
    batch, own = (line // heads).to(tl.int64), (line % heads).to(tl.int64)
    start, queries = segment(query_ends, batch, queries)
    key_start, keys = segment(key_ends, batch, keys)
    if first >= keys:
        return
    key += batch * key_batch + own * key_head + key_start * key_row
    value += batch * value_batch + own * value_head + key_start * value_row
    of_key += batch * of_key_batch + own * of_key_head + key_start * of_key_row
    of_value += batch * of_value_batch + own * of_value_head + key_start * of_value_row
    order = in_order(COLUMNS)
    key_rows = rows_of(key, first, order, key_row, WIDTH, width, keys, False)
    value_rows = rows_of(value, first, order, value_row, VALUES, columns, keys, False)
    summed_key = tl.zeros((COLUMNS, WIDTH), tl.float32)
    summed_value = tl.zeros((COLUMNS, VALUES), tl.float32)
    scale = 1.0
    for member in range(group):
        head = own * group + member
        dropout_key, stream, rate, mask_row = address(
            dropout_keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step,
            batch, head,
        )  # fmt: skip
        scale = scale_of(rate)
        at = batch * logs_batch + head * logs_head
        summed_key, summed_value = _of_keys_from(
            summed_key, summed_value, first, query + batch * query_batch + head * query_head + start * query_row,
            key_rows, value_rows, grad + batch * grad_batch + head * grad_head + start * grad_row,
            query_row, grad_row, width, columns, queries, keys,
            None if attn_mask is None else attn_mask + batch * mask_batch + head * mask_head, mask_query,
            mask_column, factor, logs + at + start, weighted + at + start, dropout_key, stream, rate,
            mask_row, None if bits is None else bits + at * words + start, logs_head,
            ROWS, COLUMNS, WIDTH, VALUES, IS_CAUSAL, PRECISION,
        )  # fmt: skip
    rows = (first + order).to(tl.int64)[:, None]
    exists = (first + order < keys)[:, None]
    lane = tl.arange(0, WIDTH)
    found = (summed_key * (factor * scale)).to(of_key.dtype.element_ty)
    tl.store(of_key + rows * of_key_row + lane[None, :], found, mask=exists & (lane < width)[None, :])
    lane = tl.arange(0, VALUES)
    found = (summed_value * scale).to(of_value.dtype.element_ty)
    tl.store(of_value + rows * of_value_row + lane[None, :], found, mask=exists & (lane < columns)[None, :])
