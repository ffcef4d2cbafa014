"""Dropout, residual and LayerNorm or RMSNorm on a GPU: one pass over memory forward, one backward.

A program has a whole row in its registers. Rows that are too long for that are gone through twice, tile by tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import norms
from dropkit.kernels.native.division import Division, divide
from dropkit.kernels.portable import computing_type
from dropkit.kernels.triton_address import Launch, launch
from dropkit.kernels.triton_bits import NOT_SPECIALIZED, keep, near, rate_of, read, scaled
from dropkit.kernels.triton_dropout import TYPES
from dropkit.random.layout import layout

__all__ = ["dropout_add_norm", "dropout_add_norm_backward"]

# By the bytes of a number: the most blocks of eight columns that a program holds, in the forward and in the backward
# pass, where it holds sums over rows too; as far as registers go, by what the compiler reports.
_WIDEST = {2: (2048, 1024), 4: (1024, 512), 8: (512, 128)}
_TILE = 256  # blocks of a tile of longer rows
_AHEAD = 8192  # the most bytes of a row with which a program also holds the next one
_WARPS = 16  # on a multiprocessor in the backward pass, as far as registers go


@triton.jit
def _address(
    number, keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines
):
    """Return key, stream and rate of a row of the tensor, and where the rows of its line begin in the mask.

    Args:
        number: Which row of the tensor, in int64.
        lines: How many rows a line has; None where there is one line.

    The others are those of `dropkit.kernels.triton_bits.places`.
    """
    number, first_row = tl.cast(number, tl.int64), tl.cast(first_row, tl.int64)
    line = number * 0 if lines is None else number // lines
    first_row += tl.load(begins + line) if begins is not None else line * row_step
    key, stream = read(keys, line, key_step), read(streams, line, stream_step)
    return key, stream, rate_of(thresholds, line, threshold_step), first_row - (0 if lines is None else line * lines)


@triton.jit
def _columns(start, columns, blocks, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr):
    """Return the blocks of a tile of a row, its columns, a row for every block, and which of them exist."""
    block, lane = start + tl.arange(0, BLOCKS)[:, None], tl.arange(0, 8)[None, :]
    column = block * 8 + lane
    if IS_ALIGNED:
        return block, column, (block < blocks) & (lane < 8)
    else:
        return block, column, column < columns


@triton.jit
def _begin(number, columns, blocks, IS_ALIGNED: tl.constexpr):
    """Return where a row begins; of whole blocks, so that the compiler sees that 16 bytes may be moved at once."""
    return number * blocks * 8 if IS_ALIGNED else number * columns


@triton.jit
def _added(input, residual, address, number, block, offset, exists):
    """Return the sum of a residual and of what dropout leaves of a tile, as the residual's type has it."""
    key, stream, rate, first_row = address
    values, other = tl.load(input + offset, mask=exists, other=0.0), tl.load(residual + offset, mask=exists, other=0.0)
    kept = keep(key, stream, rate, first_row + number, block, near(values))
    values = scaled(values, rate)
    return (tl.where(kept, values, 0.0) + other).to(other.dtype)


@triton.jit
def _of_columns(numbers, column, exists):
    """Return numbers of columns, of which there are some: Triton 3.6 knows no function that may return None."""
    return tl.load(numbers + column, mask=exists, other=0.0)


@triton.jit
def _weighted(values, weight, bias):
    """Return values times the first and plus the second, as far as there are any."""
    if weight is not None:
        values *= weight
    if bias is not None:
        values += bias
    return values


@triton.jit
def _sum(values):
    """Return the sum of a tile, first of what a thread has."""
    return tl.sum(tl.sum(values, 1), 0)


@triton.jit
def _plus(a, b, c, d):
    return a + c, b + d


@triton.jit
def _sums(values, others):
    """Return the sums of two tiles, for which threads wait for one another once."""
    values, others = tl.reduce((values, others), 1, _plus)
    return tl.reduce((values, others), 0, _plus)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _forward(
    input, residual, weight, bias, output, total, means, scales,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines,
    columns, blocks, EPS: tl.constexpr, WIDE: tl.constexpr, IS_CENTRED: tl.constexpr, BLOCKS: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    address = _address(
        number, keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines
    )
    block, column, exists = _columns(0, columns, blocks, BLOCKS, IS_ALIGNED)
    offset = _begin(number, columns, blocks, IS_ALIGNED) + column
    factors = None if weight is None else _of_columns(weight, column, exists)
    shifts = None if bias is None else _of_columns(bias, column, exists)
    summed = _added(input, residual, address, number, block, offset, exists)
    tl.store(total + offset, summed, mask=exists)
    values = summed.to(WIDE)
    if IS_CENTRED:
        mean = _sum(values) / columns
        values = tl.where(exists, values - mean, 0.0)
        tl.store(means + number, mean)
    scale = 1.0 / tl.sqrt(_sum(values * values) / columns + EPS)
    tl.store(scales + number, scale)
    found = _weighted(values * scale, factors, shifts)
    tl.store(output + offset, found.to(output.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _forward_long(
    input, residual, weight, bias, output, total, means, scales,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines,
    columns, blocks, EPS: tl.constexpr, WIDE: tl.constexpr, IS_CENTRED: tl.constexpr, BLOCKS: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    address = _address(
        number, keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines
    )
    begin = _begin(number, columns, blocks, IS_ALIGNED)
    mean, squares = tl.full((), 0.0, WIDE), tl.full((), 0.0, WIDE)
    for start in range(0, blocks, BLOCKS):
        block, column, exists = _columns(start, columns, blocks, BLOCKS, IS_ALIGNED)
        summed = _added(input, residual, address, number, block, begin + column, exists)
        tl.store(total + begin + column, summed, mask=exists)
        values = summed.to(WIDE)
        if IS_CENTRED:  # moments of two parts make those of both (Chan, Golub and LeVeque 1983, equation 2.1)
            before, count = start * 8, tl.minimum(columns - start * 8, BLOCKS * 8)
            middle = _sum(values) / count
            values = tl.where(exists, values - middle, 0.0)
            apart, part = middle - mean, count.to(WIDE) / (before + count)
            squares += apart * apart * before * part
            mean += apart * part
        squares += _sum(values * values)
    if IS_CENTRED:
        tl.store(means + number, mean)
    scale = 1.0 / tl.sqrt(squares / columns + EPS)
    tl.store(scales + number, scale)
    tl.debug_barrier()  # for threads may load what others have stored
    for start in range(0, blocks, BLOCKS):
        block, column, exists = _columns(start, columns, blocks, BLOCKS, IS_ALIGNED)
        values = tl.load(total + begin + column, mask=exists).to(WIDE)
        factors = None if weight is None else _of_columns(weight, column, exists)
        shifts = None if bias is None else _of_columns(bias, column, exists)
        found = _weighted((values - mean) * scale, factors, shifts)
        tl.store(output + begin + column, found.to(output.dtype.element_ty), mask=exists)


@triton.jit
def _read(grad, total, means, scales, number, rows, offset, exists, IS_CENTRED: tl.constexpr):
    """Return a tile of the gradient and of the sum, and the moments of its row; anything where there is no such row."""
    is_row = number < rows
    upper = tl.load(grad + offset, mask=exists & is_row, other=0.0)
    values = tl.load(total + offset, mask=exists & is_row, other=0.0)
    mean = tl.load(means + number, mask=is_row) if IS_CENTRED else 0.0
    return upper, values, mean, tl.load(scales + number, mask=is_row)


@triton.jit
def _normal(values, mean, scale, WIDE: tl.constexpr):
    """Return a normalised tile of the sum; anything where there is none, for it meets gradients that are 0 there."""
    return (values.to(WIDE) - mean) * scale


@triton.jit
def _store_gradients(found, grad_total, of_input, of_residual, address, number, block, offset, exists):
    """Store what a gradient with respect to the sum is with respect to its parts."""
    key, stream, rate, first_row = address
    if grad_total is not None:
        found += tl.load(grad_total + offset, mask=exists, other=0.0)
    tl.store(of_residual + offset, found.to(of_residual.dtype.element_ty), mask=exists)
    kept = keep(key, stream, rate, first_row + number, block, near(found))
    found = scaled(tl.where(kept, found, 0.0), rate)
    tl.store(of_input + offset, found.to(of_input.dtype.element_ty), mask=exists)


@triton.jit
def _store_sums(of_weight, of_bias, offset, weights, biases, exists):
    if of_weight is not None:
        tl.store(of_weight + offset, weights, mask=exists)
    if of_bias is not None:
        tl.store(of_bias + offset, biases, mask=exists)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _backward(
    grad, grad_total, total, weight, means, scales, of_input, of_residual, of_weight, of_bias, rows,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines,
    columns, blocks, WIDE: tl.constexpr, IS_CENTRED: tl.constexpr, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
    IS_AHEAD: tl.constexpr,
):  # fmt: skip
    program, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    block, column, exists = _columns(0, columns, blocks, BLOCKS, IS_ALIGNED)
    factors = _of_columns(weight, column, exists) if IS_AHEAD and weight is not None else None
    weights, biases = tl.zeros((BLOCKS, 8), WIDE), tl.zeros((BLOCKS, 8), WIDE)
    address = _address(
        program, keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines
    )
    if IS_AHEAD:
        offset = _begin(program, columns, blocks, IS_ALIGNED) + column
        upper, values, mean, scale = _read(grad, total, means, scales, program, rows, offset, exists, IS_CENTRED)
    for number in range(program, rows, step):
        offset = _begin(number, columns, blocks, IS_ALIGNED) + column
        if IS_AHEAD:  # the next row is on its way while this one is worked on
            after = _begin(number + step, columns, blocks, IS_ALIGNED) + column
            following = _read(grad, total, means, scales, number + step, rows, after, exists, IS_CENTRED)
        else:
            upper, values, mean, scale = _read(grad, total, means, scales, number, rows, offset, exists, IS_CENTRED)
        normal, found = _normal(values, mean, scale, WIDE), upper.to(WIDE)
        if of_weight is not None:
            weights += found * normal
        if of_bias is not None:
            biases += found
        if weight is not None:  # where registers are few, a cache has the factors
            found *= factors if IS_AHEAD else _of_columns(weight, column, exists)
        if IS_CENTRED:
            product, middle = _sums(found * normal, found)
            found -= middle / columns
        else:
            product = _sum(found * normal)
        found = (found - normal * (product / columns)) * scale
        if lines is not None:
            address = _address(
                number, keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step,
                lines,
            )  # fmt: skip
        _store_gradients(found, grad_total, of_input, of_residual, address, number, block, offset, exists)
        if IS_AHEAD:
            upper, values, mean, scale = following
    _store_sums(of_weight, of_bias, _begin(program, columns, blocks, IS_ALIGNED) + column, weights, biases, exists)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _backward_long(
    grad, grad_total, total, weight, means, scales, of_input, of_residual, rows,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines,
    columns, blocks, WIDE: tl.constexpr, IS_CENTRED: tl.constexpr, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    address = _address(
        number, keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, lines
    )
    begin = _begin(number, columns, blocks, IS_ALIGNED)
    products, uppers = tl.full((), 0.0, WIDE), tl.full((), 0.0, WIDE)
    for start in range(0, blocks, BLOCKS):
        _, column, exists = _columns(start, columns, blocks, BLOCKS, IS_ALIGNED)
        offset = begin + column
        upper, values, mean, scale = _read(grad, total, means, scales, number, rows, offset, exists, IS_CENTRED)
        factors = None if weight is None else _of_columns(weight, column, exists)
        found = _weighted(upper.to(WIDE), factors, None)
        product, upper = _sums(found * _normal(values, mean, scale, WIDE), found)
        products, uppers = products + product, uppers + upper
    for start in range(0, blocks, BLOCKS):
        block, column, exists = _columns(start, columns, blocks, BLOCKS, IS_ALIGNED)
        offset = begin + column
        upper, values, mean, scale = _read(grad, total, means, scales, number, rows, offset, exists, IS_CENTRED)
        factors = None if weight is None else _of_columns(weight, column, exists)
        found = _weighted(upper.to(WIDE), factors, None)
        found -= _normal(values, mean, scale, WIDE) * (products / columns)
        if IS_CENTRED:
            found -= uppers / columns
        _store_gradients(found * scale, grad_total, of_input, of_residual, address, number, block, offset, exists)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _sums_long(
    grad, total, means, scales, of_weight, of_bias, rows, tiles, columns, blocks,
    WIDE: tl.constexpr, IS_CENTRED: tl.constexpr, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    """Sum over rows what is summed for weight and bias: each program some of the rows of a tile."""
    first, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    _, column, exists = _columns(tile * BLOCKS, columns, blocks, BLOCKS, IS_ALIGNED)
    weights, biases = tl.zeros((BLOCKS, 8), WIDE), tl.zeros((BLOCKS, 8), WIDE)
    for number in range(first, rows, tl.num_programs(0) // tiles):
        offset = _begin(number, columns, blocks, IS_ALIGNED) + column
        upper, values, mean, scale = _read(grad, total, means, scales, number, rows, offset, exists, IS_CENTRED)
        weights += upper.to(WIDE) * _normal(values, mean, scale, WIDE)
        biases += upper.to(WIDE)
    _store_sums(of_weight, of_bias, _begin(first, columns, blocks, IS_ALIGNED) + column, weights, biases, exists)


def dropout_add_norm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    is_centred: bool,
    eps: float,
    dtype: torch.dtype,
    *address: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `dropkit.kernels.norms.forward` does."""
    division = _divided(residual, address)
    if division is None:
        return norms.forward(input, residual, weight, bias, is_centred, eps, dtype, *address)
    output, total = (torch.empty(input.shape, dtype=each, device=input.device) for each in (dtype, residual.dtype))
    scale = output.new_empty((*input.shape[:-1], 1), dtype=computing_type(residual))
    mean = torch.empty_like(scale) if is_centred else scale.new_empty(0)
    blocks, size = triton.cdiv(input.shape[-1], 8), residual.element_size()
    is_long = blocks > _WIDEST[size][0]
    tensors = input.contiguous(), residual.contiguous(), *_contiguous(weight, bias), output, total, mean, scale
    tile = _TILE if is_long else triton.next_power_of_2(blocks)
    found = _launch(division, address, total, tile, warps=tile * size // 128)
    kernel = _forward_long if is_long else _forward
    found.run(kernel, *tensors, EPS=eps, WIDE=_WIDE[scale.dtype], IS_CENTRED=is_centred)
    return output, total, mean, scale


def dropout_add_norm_backward(
    grad: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    is_centred: bool,
    needed: list[bool],
    dtype: torch.dtype,
    *address: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what `dropkit.kernels.norms.backward` does."""
    division = _divided(total, address)
    if division is None:
        arguments = grad, grad_total, total, weight, mean, scale, is_centred, needed, dtype
        return norms.backward(*arguments, *address)
    of_input, of_residual = torch.empty_like(total, dtype=dtype), torch.empty_like(total)
    columns, rows = total.shape[-1], scale.numel()
    blocks = triton.cdiv(columns, 8)
    is_long = blocks > _WIDEST[total.element_size()][1]
    tile = _TILE if is_long else triton.next_power_of_2(blocks)
    found = _launch(division, address, total, tile, warps=tile // 32)
    programs = min(rows, _multiprocessors(total.device) * max(1, _WARPS // found.options["num_warps"]))
    sums = scale.new_empty((2, programs, columns))
    of_sums = [part if is_needed else None for part, is_needed in zip(sums, needed, strict=True)]
    known = {"WIDE": _WIDE[scale.dtype], "IS_CENTRED": is_centred}
    upper, *others = _contiguous(grad, grad_total, total, weight)
    tensors = upper, *others, mean, scale, of_input, of_residual
    if not is_long:
        is_ahead = blocks * 8 * total.element_size() <= _AHEAD
        found._replace(programs=programs).run(_backward, *tensors, *of_sums, rows, **known, IS_AHEAD=is_ahead)
    else:
        found.run(_backward_long, *tensors, rows, **known)
        if any(needed):
            tiles = triton.cdiv(blocks, _TILE)
            found = found._replace(programs=programs * tiles, arguments=(rows, tiles, columns, blocks))
            found.run(_sums_long, upper, others[1], mean, scale, *of_sums, **known)
    of_weight, of_bias = (scale.new_empty(0) if part is None else part.sum(0) for part in of_sums)
    return of_input, of_residual, of_weight, of_bias


_WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}


def _divided(total: Tensor, address: tuple[Tensor, ...]) -> Division | None:
    """Return the division of the mask, or None where the kernels do not serve."""
    key, stream, threshold = address
    place = layout("dropout", total.shape, slices=max(key.dim(), stream.dim()))
    division = divide(key, stream, threshold, place)
    return division if total.numel() and total.dtype in TYPES and not division.is_too_fine else None


def _launch(division: Division, address: tuple[Tensor, ...], total: Tensor, tile: int, warps: int) -> Launch:
    """Return how a kernel is run that has a program for every row.

    Args:
        division: Of the mask.
        address: Its key, stream and threshold.
        total: The sum.
        tile: Number of blocks in a tile.
        warps: About how many a program has.
    """
    rows, columns = total.numel() // total.shape[-1], total.shape[-1]
    key, stream, threshold = address
    found = launch(division, key, stream, threshold, total.device)
    lines = None if division.rows == rows else division.rows
    options = {"BLOCKS": tile, "IS_ALIGNED": columns % 8 == 0, "num_warps": min(max(warps, 1), 32)}
    return Launch(rows, (*found.arguments[:9], lines, columns, triton.cdiv(columns, 8)), options, total.device)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
