"""Fields of uniform numbers on a GPU, the same as everywhere."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropkit.kernels import portable
from dropkit.kernels.native.division import divide
from dropkit.kernels.triton_address import launch
from dropkit.kernels.triton_bits import NOT_SPECIALIZED, integers_of, places
from dropkit.random.layout import Layout

__all__ = ["integers", "uniform"]

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _field(
    output,
    keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
    skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS: tl.constexpr, IS_ALIGNED: tl.constexpr,
):  # fmt: skip
    key, stream, _, row, block, offset, is_inside = places(
        keys, streams, thresholds, key_step, stream_step, threshold_step, first_row, begins, row_step, first_block,
        skipped, columns, blocks_per_row, blocks, tiles, size, BLOCKS, IS_ALIGNED,
    )  # fmt: skip
    found = integers_of(key, stream, row, block)
    if output.dtype.element_ty == tl.int64:
        found = found.to(tl.int64)
    elif output.dtype.element_ty == tl.float64:
        found = (found.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2**-32
    else:
        found = ((found >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23
    tl.store(output + offset, found.to(output.dtype.element_ty), mask=is_inside)


def integers(key: Tensor, stream: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Do what `dropkit.kernels.portable.integers` does."""
    return _drawn(key, stream, place, device, torch.int64)


def uniform(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Do what `dropkit.kernels.portable.uniform` does."""
    if dtype not in _TYPES:
        return portable.uniform(key, stream, place, device, dtype)
    return _drawn(key, stream, place, device, dtype)


def _drawn(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Any:
    never = torch.tensor(0, device="cpu")
    division = divide(key, stream, never, place)
    output = torch.empty(division.mask_shape, dtype=dtype, device=device)
    if output.numel():
        launch(division, key, stream, never, device).run(_field, output)
    return output
