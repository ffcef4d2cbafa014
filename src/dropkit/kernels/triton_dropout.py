"""Dropout on a GPU in one pass over memory, by Triton; the same masks as everywhere."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import operators, portable
from dropkit.kernels.bits import keep_bits
from dropkit.kernels.native.division import Division, divide
from dropkit.kernels.triton_address import launch
from dropkit.kernels.triton_bits import NOT_SPECIALIZED, keep, near, places, scaled
from dropkit.kernels.triton_keep_bits import select
from dropkit.kernels.triton_spread import spread
from dropkit.random.layout import Layout

__all__ = ["TYPES", "dropout", "keep_mask"]

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _dropout(
    input, output,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
    IS_SCALED: tl.constexpr,
):  # fmt: skip
    key, stream, rate, row, block, offset, is_inside = places(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
        skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS, IS_ALIGNED,
    )  # fmt: skip
    values = tl.load(input + offset, mask=is_inside)
    kept = keep(key, stream, rate, row, block, near(values))
    found = tl.where(kept, values, 0.0)
    if IS_SCALED:  # after that, for the compiler would select numbers of half types one by one
        found = scaled(found, rate)
    tl.store(output + offset, found.to(output.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _keep_mask(
    output,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    key, stream, rate, row, block, offset, is_inside = places(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
        skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS, IS_ALIGNED,
    )  # fmt: skip
    tl.store(output + offset, keep(key, stream, rate, row, block, True), mask=is_inside)


def dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, is_scaled: bool) -> Tensor:
    """Do what `dropkit.kernels.portable.dropout` does."""
    division = divide(key, stream, threshold, place)
    if division.is_too_fine:
        return portable.dropout(input, key, stream, threshold, place, is_scaled)
    if input.dtype in TYPES and input.is_contiguous() and input.shape == division.mask_shape:
        if _spans_draws(division) and threshold.numel() == 1 and input.numel():
            return select(input, keep_bits(key, stream, threshold, *place, input.device), threshold, place, is_scaled)
        output = torch.empty_like(input)
        if output.numel():
            launch(division, key, stream, threshold, input.device).run(_dropout, input, output, IS_SCALED=is_scaled)
        return output
    mask = operators.keep_mask(key, stream, threshold, *place, input.device)
    if input.dtype in TYPES and mask.dim() == input.dim():
        return spread(input, mask, threshold, is_scaled)
    return portable.select(input, mask, portable.survivor_scale(threshold) if is_scaled else None)


def _spans_draws(division: Division) -> bool:
    """Tell whether a thread's elements are of several draws, each of which would be drawn for one element alone."""
    return bool(division.columns % 8 or division.first_column % 8)


def keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.portable.keep_mask` does."""
    division = divide(key, stream, threshold, place)
    if division.is_too_fine:
        return portable.keep_mask(key, stream, threshold, place, device)
    mask = torch.empty(division.mask_shape, dtype=torch.bool, device=device)
    if mask.numel():
        launch(division, key, stream, threshold, device).run(_keep_mask, mask)
    return mask
