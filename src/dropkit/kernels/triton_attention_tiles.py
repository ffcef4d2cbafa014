"""What the kernels of attention do with a tile of weights: where it lies, its scores, and which weights are dropped.

A row is a query and a column a key. The keys of a tile are taken in an order of their own. Tensor cores leave a thread
two neighbouring columns of every eight, and one Philox call serves eight neighbouring keys, so neighbouring threads
would draw the same four times, or exchange what they drew. In the order of `in_order`, the columns that a thread has of
thirty-two are the eight keys of one call. Softmax and sums over keys do not mind.
"""

import triton
import triton.language as tl

from dropkit.kernels.triton_bits import near, rate_of, read

__all__ = ["LOG2_E", "NOT_SPECIALIZED", "address", "in_order", "kept", "rows_of", "scores_of", "segment"]

LOG2_E = tl.constexpr(1.4426950408889634)
# Numbers that change from call to call, for which a kernel is not compiled anew.
NOT_SPECIALIZED = [
    "dropout_keys", "key_step", "streams", "stream_step", "thresholds", "threshold_step", "row_step", "head_step",
    "tiles", "heads", "group", "queries", "keys", "logs_batch", "logs_head", "words", "mask_batch", "mask_head",
    "mask_query", "mask_column",
]  # fmt: skip


@triton.jit
def in_order(COLUMNS: tl.constexpr):
    """Return the key of every column of a tile, counted from the tile's first."""
    column = tl.arange(0, COLUMNS)
    return (column & -32) | ((column >> 1 & 3) << 3) | ((column >> 3 & 3) << 1) | (column & 1)


@triton.jit
def segment(ends, batch, length):
    """Return where an example's rows begin, and how many there are: all, or as `ends` has it where lengths vary."""
    if ends is not None:
        begin = tl.load(ends + batch)
        return begin.to(tl.int64), (tl.load(ends + batch + 1) - begin).to(tl.int32)
    else:
        return (batch * 0).to(tl.int64), length


@triton.jit
def rows_of(tensor, begin, row, row_step, WIDTH: tl.constexpr, width, count, IS_WHOLE: tl.constexpr):
    """Load rows of a tensor, zeros beyond its end and its width.

    Args:
        tensor: Where row 0 of the head begins.
        begin: Number of the first row.
        row: Numbers of the rows, counted from it.
        row_step: How far apart rows are.
        WIDTH: A power of two, that of the tile.
        width: That of the tensor.
        count: How many rows the tensor has.
        IS_WHOLE: Whether all rows of the tile exist.
    """
    lane = tl.arange(0, WIDTH)
    place = tensor + tl.cast(begin, tl.int64) * row_step + row.to(tl.int64)[:, None] * row_step + lane[None, :]
    exists = (begin + row < count)[:, None]
    if width < WIDTH:
        return tl.load(place, mask=exists & (lane < width)[None, :], other=0.0)
    elif IS_WHOLE:
        return tl.load(place)
    else:
        return tl.load(place, mask=exists, other=0.0)


@triton.jit
def address(
    keys, key_step, streams, stream_step, thresholds, threshold_step, begins, row_step, head_step, batch, head
):  # fmt: skip
    """Return key, stream and rate of an example, and the number of the mask's row of a head's first query.

    Args:
        keys: The keys, one an example, or one for all; and so `streams` and `thresholds`.
        key_step: How far apart the keys of two examples are, 1 or 0; and so `stream_step` and `threshold_step`.
        begins: The first row of every example; None where each begins so many rows after the one before.
        row_step: How many.
        head_step: How many rows after that of the head before a head begins.
        batch: Number of the example.
        head: Number of the head.
    """
    first = tl.load(begins + batch) if begins is not None else batch * row_step
    key, stream = read(keys, batch, key_step), read(streams, batch, stream_step)
    return key, stream, rate_of(thresholds, batch, threshold_step), first + head * head_step


@triton.jit
def scores_of(
    query, key, factor, rows, columns, keys, is_inside, attn_mask, mask_column,
    IS_CAUSAL: tl.constexpr, HAS_END: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the scores of a tile, in units of which two to the power of one is a weight.

    Args:
        query: Rows of the queries.
        key: Rows of the keys.
        factor: What scores are multiplied by.
        rows: Numbers of the queries.
        columns: Numbers of the keys.
        keys: How many there are.
        is_inside: Which queries exist.
        attn_mask: Where the mask of every query begins, or None.
        mask_column: How far apart two keys are in it.
        IS_CAUSAL: Whether some of these keys come after some of these queries.
        HAS_END: Whether keys may not exist whose scores would matter.
        PRECISION: Of products of float32.
    """
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (factor * LOG2_E)
    if attn_mask is not None:
        exists = is_inside[:, None] & (columns < keys)[None, :]
        added = tl.load(attn_mask + columns.to(tl.int64)[None, :] * mask_column, mask=exists, other=0)
        if added.dtype.is_int():
            scores = tl.where(added != 0, scores, float("-inf"))
        else:
            scores += added.to(tl.float32) * LOG2_E
    if HAS_END:
        scores = tl.where((columns < keys)[None, :], scores, float("-inf"))
    if IS_CAUSAL:
        scores = tl.where(columns[None, :] <= rows[:, None], scores, float("-inf"))
    return scores


@triton.jit
def kept(
    weights, key, stream, rate, row, bits, place, rows_of_bits, column, is_inside, keys,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return which weights are kept.

    Args:
        weights: Tensor of shape (ROWS, COLUMNS), near which the mask is drawn.
        key: The key of the mask.
        stream: Its stream.
        rate: Its rate.
        row: The mask's row of every query.
        bits: The mask, a bit a weight, by words of thirty-two keys; None where it is drawn here.
        place: Where the words of every query begin in it.
        rows_of_bits: How far apart the words of a query are.
        column: Number of the first key, a multiple of 32.
        is_inside: Which queries exist.
        keys: How many keys do.
        ROWS: How many queries.
        COLUMNS: How many keys.
    """
    groups: tl.constexpr = COLUMNS // 32
    if bits is not None:
        group = (column >> 5) + tl.arange(0, groups)
        at = place[:, None] + group.to(tl.int64)[None, :] * rows_of_bits
        words = tl.load(bits + at, mask=is_inside[:, None] & (group * 32 < keys)[None, :], other=0)
        spread = tl.broadcast_to(words[:, :, None], (ROWS, groups, 32)).reshape((ROWS, COLUMNS))
        return (spread >> (in_order(COLUMNS) & 31)[None, :] & 1) != 0
    else:
        half, rest = (rate >> 16 & 0x1FFFF).to(tl.int32), (rate & 0xFFFF).to(tl.int32)
        block = ((column >> 3) + tl.arange(0, groups)[:, None] * 4 + tl.arange(0, 4)[None, :])[None, :, :]
        halves = _halves(key, stream, row, block, ROWS, COLUMNS)
        found = halves >= half
        if rest != 0:
            is_tied = (halves == half) & near(weights)
            if tl.max(is_tied.to(tl.int32)) > 0:  # for one weight in 65,536, the bits below decide
                below = _halves(key, stream, row, block | -0x80000000, ROWS, COLUMNS)
                found = tl.where(is_tied, below >= rest, found)
        return found


@triton.jit
def _halves(key, stream, row, block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the halves of every column: those of its key, in the order of `in_order`."""
    low, high = (row & 0xFFFFFFFF).to(tl.uint32)[:, None, None], (row >> 32 & 0xFFFFFFFF).to(tl.uint32)[:, None, None]
    key_low, key_high = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32 & 0xFFFFFFFF).to(tl.uint32)
    # Rows and blocks stand on axes of their own, so that the first two rounds are computed for each alone.
    # Triton's own Philox takes fewer registers than that of `dropkit.kernels.triton_bits`, which are what lacks here.
    a, b, c, d = tl.philox_impl(
        block.to(tl.uint32, bitcast=True), low, high, stream.to(tl.uint32), key_low, key_high, 10
    )
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape((ROWS, COLUMNS // 32, 4, 4)).permute((0, 1, 3, 2))
    return tl.join(words & 0xFFFF, words >> 16).reshape((ROWS, COLUMNS)).to(tl.int32)
