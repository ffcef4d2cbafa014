"""The mask definition for Triton: what a kernel calls to learn which elements of its tile are kept.

A kernel works on blocks of eight neighbouring columns, for which one Philox call has the bits. So a thread that holds
eight elements draws for itself, and no mask is ever in memory.
"""

import triton
import triton.language as tl

__all__ = [
    "NOT_SPECIALIZED", "along_line", "integers_of", "keep", "keep_word", "near", "philox", "places", "rate_of", "read",
    "scale_of", "scaled",
]  # fmt: skip

# Numbers that change from call to call. Triton would compile a kernel again where one of them is 1, which is then known
# to the compiler and no number of Triton's, or becomes a multiple of 16, which nothing here would gain from.
NOT_SPECIALIZED = [
    "keys", "streams", "thresholds", "key_step", "stream_step", "threshold_step", "first_row", "row_step",
    "first_block", "skipped", "columns", "blocks_per_row", "blocks", "tiles", "size", "words_per_row", "words",
    "lines", "rows",
]  # fmt: skip


@triton.jit
def read(values, line, step):
    """Return the key or stream of a line: from memory, or the one that is given for all, its highest bit inverted."""
    if values.dtype.is_ptr():
        return tl.load(values + line * step)
    else:
        return tl.cast(values, tl.int64) ^ -0x8000000000000000


@triton.jit
def rate_of(thresholds, line, step):
    """Return the rate of a line as what is drawn and scaled by it takes it.

    Its lowest 33 bits are the threshold; those above are of the float32 that survivors are multiplied by. Plain numbers
    come with these: a division in double precision, of one number in every thread, takes as long as eight draws.
    """
    if thresholds.dtype.is_ptr():
        found = tl.load(thresholds + line * step)
        scale = _wide_scale_of(found).to(tl.float32).to(tl.int32, bitcast=True)
        return found | scale.to(tl.int64) << 33
    else:
        return tl.cast(thresholds, tl.int64)


@triton.jit
def along_line(
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, blocks_per_row,
    blocks, tiles, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return the address of this program's tile, and where its blocks, or words, lie in rows.

    Args are those of `places`.

    Returns:
        Key, stream, rate, and number of the line's first row; the line, the number of the tile's first block in
        it, and those of all blocks after that; rows in the line, and blocks in their rows.
    """
    program = tl.program_id(0).to(tl.uint32)
    if tiles is None:
        line, tile = (program * 0).to(tl.int64), program.to(tl.int32)
    else:
        line, tile = (program // tiles.to(tl.uint32)).to(tl.int64), (program % tiles.to(tl.uint32)).to(tl.int32)
    key, stream = read(keys, line, key_step), read(streams, line, stream_step)
    rate = rate_of(thresholds, line, threshold_step)
    first_row += tl.load(begins + line) if begins is not None else line * row_step
    along = tl.arange(0, BLOCKS)
    begin = tile.to(blocks.dtype) * BLOCKS
    # Integers without a sign are divided in fewer steps; from where the tile begins in a row on, 32 bits are enough.
    length, place = blocks_per_row.to(tl.uint32), begin.to(tl.uint64 if begin.dtype == tl.int64 else tl.uint32)
    after = (place % length).to(tl.uint32) + along.to(tl.uint32)
    row = (place // length).to(tl.int64) + (after // length).to(tl.int64)
    block = (after % length).to(tl.int32, bitcast=True)
    return key, stream, rate, first_row, line, begin, along, row, block


@triton.jit
def places(
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block, skipped,
    columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return the address of this program's tile, and where its elements lie.

    Args:
        keys: The keys, one a line, or one for all; and so `streams` and `thresholds`.
        key_step: How far apart the keys of two lines are, 1 or 0; and so `stream_step` and `threshold_step`.
        first_row: Number of the first row.
        begins: How many rows after that every line begins; None where each does so many after the one before.
        row_step: How many.
        first_block: Number of the block of eight columns in which rows begin.
        skipped: How many of its columns are before that.
        columns: Number of columns.
        blocks_per_row: Number of blocks of eight columns in a row.
        blocks: Number of blocks in a line.
        tiles: Number of tiles in a line; None where there is one line.
        size: Number of elements in a line.
        BLOCKS: Number of blocks in a tile.
        IS_ALIGNED: Whether a row is made of whole blocks, so that elements follow one another through rows.

    Returns:
        Key, stream, rate; rows and blocks in the mask, one below the other; offsets of the elements, and which of
        them exist, a row for every block.
    """
    key, stream, rate, first_row, line, begin, along, row, block = along_line(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, blocks_per_row,
        blocks, tiles, BLOCKS,
    )  # fmt: skip
    along, row, block = along[:, None], row[:, None], block[:, None]
    exists, lane = begin + along < blocks, tl.arange(0, 8)[None, :]
    if IS_ALIGNED:  # the compiler sees that these follow one another, and moves 16 bytes at once
        offset = line * blocks * 8 + begin.to(tl.int64) * 8 + (along * 8 + lane)
        is_inside = exists & (lane < 8)
    else:
        column = block.to(columns.dtype) * 8 + lane - skipped
        offset = line * size + row * columns + column
        is_inside = exists & (column >= 0) & (column < columns)
    return key, stream, rate, row + first_row, first_block + block, offset, is_inside


@triton.jit
def philox(a, b, c, d, key_low, key_high):
    """Return the four words of Philox, ten rounds, at a counter of four words of uint32.

    Triton's own takes the halves of products one by one, for which a GPU multiplies twice.
    """
    for _ in tl.static_range(10):
        first, third = a.to(tl.uint64) * 0xD2511F53, c.to(tl.uint64) * 0xCD9E8D57
        a, b = (third >> 32).to(tl.uint32) ^ b ^ key_low, (third & 0xFFFFFFFF).to(tl.uint32)
        c, d = (first >> 32).to(tl.uint32) ^ d ^ key_high, (first & 0xFFFFFFFF).to(tl.uint32)
        key_low = tl.add(key_low, 0x9E3779B9, sanitize_overflow=False)
        key_high = tl.add(key_high, 0xBB67AE85, sanitize_overflow=False)
    return a, b, c, d


@triton.jit
def _halves(block, low, high, stream, key_low, key_high):
    """Return words whose upper halves are those of eight lanes of every block, along the second axis."""
    a, b, c, d = philox(block, low, high, stream, key_low, key_high)
    lane = tl.arange(0, 8)[None, :]
    # A thread has all lanes of a block and knows each when it is compiled: nothing is selected when it runs.
    words = tl.where(lane < 4, tl.where(lane < 2, a, b), tl.where(lane < 6, c, d))
    return words << ((lane & 1 ^ 1) * 16).to(tl.uint32)


@triton.jit
def keep(key, stream, rate, row, block, near):
    """Return which elements of blocks are kept.

    Args:
        key: The key.
        stream: The stream.
        rate: The rate, as `rate_of` returns it.
        row: Number of the row of every block.
        block: Number of every block in its row.
        near: What `near` has made of values that were loaded for these elements.
    """
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), ((row >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key_low, key_high = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    number, stream = block.to(tl.uint32, bitcast=True), (low & 0) + stream.to(tl.uint32)
    threshold = tl.minimum(rate & 0x1FFFFFFFF, 0xFFFFFFFF)  # 1 is told from the rate just below where bits are equal
    bound, rest = (threshold & 0xFFFF0000).to(tl.uint32), (threshold & 0xFFFF).to(tl.uint32) << 16
    found = tl.where(near, _halves(number, low, high, stream, key_low, key_high), 0)
    if rest != 0:  # noqa: SIM102  # not `and`, which would take the minimum either way
        if tl.min(found - bound) < 65536:  # for one element in 65,536, the bits below decide
            below = _halves(number | 0x80000000, low, high, stream, key_low, key_high)
            is_kept = (below >= rest) & (rate >> 32 & 1 == 0)
            found = tl.where(found - bound < 65536, is_kept, found >= bound).to(tl.uint32)
            bound = bound * 0 + 1
    return found >= bound


@triton.jit
def integers_of(key, stream, row, block):
    """Return the uniform 32-bit integers of all columns of blocks; arguments are those of `keep`."""
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), ((row >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key_low, key_high = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    number, stream = block.to(tl.uint32, bitcast=True), (low & 0) + stream.to(tl.uint32)
    above = _halves(number, low, high, stream, key_low, key_high)
    below = _halves(number | 0x80000000, low, high, stream, key_low, key_high)
    return above & 0xFFFF0000 | below >> 16


@triton.jit
def near(values):
    """Return True for every value, in a way that the compiler learns late.

    It places what is computed where the values lie that it is combined with. Without this it computes a mask eight
    times, or moves it from thread to thread.
    """
    if values.dtype.primitive_bitwidth == 16:
        return (values.to(tl.int16, bitcast=True) | 1) != 0
    elif values.dtype.primitive_bitwidth == 32:
        return (values.to(tl.int32, bitcast=True) | 1) != 0
    else:
        return (values.to(tl.int64, bitcast=True) | 1) != 0


@triton.jit
def scale_of(rate):
    """Return what survivors are multiplied by, in float32; of no meaning where nothing survives."""
    return (rate >> 33 & 0x7FFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _wide_scale_of(threshold):
    left = tl.maximum(4294967296 - threshold, 1)
    return 4294967296.0 / left.to(tl.float64)


@triton.jit
def scaled(values, rate):
    """Return what survivors become, in float32 or wider."""
    if values.dtype == tl.float64:
        return values * _wide_scale_of(rate & 0x1FFFFFFFF)
    else:
        return values.to(tl.float32) * scale_of(rate)


@triton.jit
def keep_word(key, stream, rate, row, first_block):
    """Return which elements of four blocks are kept, as the bits of one word, the first in the lowest."""
    half, rest = (rate >> 16 & 0x1FFFF).to(tl.uint32), (rate & 0xFFFF).to(tl.uint32)
    found, tied = _compared(key, stream, row, first_block, half)
    if rest != 0:  # noqa: SIM102  # not `and`, which would take the maximum either way
        if tl.max((tied != 0).to(tl.int32)) > 0:
            below, _ = _compared(key, stream, row, first_block | -0x80000000, rest)
            found &= (tied ^ 0xFFFFFFFF) | below
    return found


@triton.jit
def _compared(key, stream, row, first_block, half):
    """Return where the halves of four blocks are at least a number, and where they equal it: a bit each."""
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32 & 0xFFFFFFFF).to(tl.uint32)
    key_low, key_high = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32 & 0xFFFFFFFF).to(tl.uint32)
    found, tied = low & 0, low & 0
    for i in tl.static_range(4):
        number = (low & 0) + tl.cast(first_block + i, tl.int32).to(tl.uint32, bitcast=True)
        drawn = philox(number, low, high, stream.to(tl.uint32), key_low, key_high)
        for j in tl.static_range(8):
            value = drawn[j // 2] >> 16 if j % 2 else drawn[j // 2] & 0xFFFF
            found |= (value >= half).to(tl.uint32) << (8 * i + j)
            tied |= (value == half).to(tl.uint32) << (8 * i + j)
    return found, tied
