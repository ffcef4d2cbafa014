"""Where the mask of a call lies, as Triton's kernels are told.

A mask is lines of consecutive rows: the slices and places of `dropkit.kernels.native.division`, which have an address
each, side by side in one launch.
"""

import contextlib
import itertools
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dropkit.kernels.native.division import Division, remembered
from dropkit.kernels.native.packing import int64
from dropkit.kernels.portable import moved_to

__all__ = ["Launch", "launch", "launch_words", "on_device", "rates", "spread"]

_BLOCKS, _WORDS = 256, 256  # of eight and of thirty-two elements, in a tile


class Launch(NamedTuple):
    """The grid and the arguments of a kernel, but for the tensors that it maps.

    Args:
        programs: How many.
        arguments: Key, stream and rate of every line or of all, where its rows begin, and sizes.
        options: What is known when a kernel is compiled.
        device: Where it is run.
    """

    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    device: torch.device

    def run(self, kernel: Any, *tensors: Any, **options: Any) -> None:
        """Run a kernel, which takes some tensors before the address."""
        with on_device(self.device):
            kernel[(self.programs,)](*tensors, *self.arguments, **self.options, **options)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Let kernels run on a device: Triton asks PyTorch for it, not the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch(division: Division, key: Tensor, stream: Tensor, threshold: Tensor, device: torch.device) -> Launch:
    """Return how a kernel is run over a mask that is not empty.

    Args:
        division: What `dropkit.kernels.native.division.divide` has found for the address and the place.
        key: Int64 tensor of keys.
        stream: Int64 tensor of streams.
        threshold: Int64 tensor of rates' thresholds.
        device: Where it is run.
    """
    columns, skipped = division.columns, division.first_column & 7
    blocks_per_row = (skipped + columns + 7) >> 3
    blocks = division.rows * blocks_per_row
    tiles = triton.cdiv(blocks, _BLOCKS)
    lines, address = _address(division, key, stream, threshold, device)
    in_line, size = tiles if lines > 1 else None, division.rows * columns
    is_aligned = not skipped and columns % 8 == 0
    arguments = (*address, skipped, columns, blocks_per_row, blocks, in_line, size)
    return Launch(lines * tiles, arguments, {"BLOCKS": _BLOCKS, "IS_ALIGNED": is_aligned}, device)


def launch_words(
    division: Division, key: Tensor, stream: Tensor, threshold: Tensor, device: torch.device, words_per_row: int
) -> Launch:
    """Return how a kernel is run over the words of a mask that is not empty; arguments are those of `launch`."""
    words = division.rows * words_per_row
    tiles = triton.cdiv(words, _WORDS)
    lines, address = _address(division, key, stream, threshold, device)
    arguments = (*address, words_per_row, words, tiles if lines > 1 else None)
    return Launch(lines * tiles, arguments, {"WORDS": _WORDS}, device)


def _address(
    division: Division, key: Tensor, stream: Tensor, threshold: Tensor, device: torch.device
) -> tuple[int, tuple[Any, ...]]:
    """Return how many lines there are, and the arguments that say which draws are theirs."""
    axes = () if division.slices is None else (*division.places, division.slices)
    address = spread(key, axes, device), spread(stream, axes, device), rates(threshold, axes, device)
    several = [isinstance(value, Tensor) and value.numel() > 1 for value in address]
    lines = max(torch.Size(axes).numel(), 1)
    begins = _begins(axes, division.steps, device) if lines > 1 and len(axes) > 1 else None
    step = division.steps[-1] if len(axes) == 1 else 0
    first = int64(division.first_row), begins, step, division.first_column >> 3
    return lines, (*address, *map(int, several), *first)


def spread(value: Tensor, axes: tuple[int, ...], device: torch.device) -> Tensor | int:
    """Return a key or stream a line, or one for all, as a plain number where it can be read without waiting.

    That has its highest bit inverted, as `dropkit.kernels.triton_bits.read` takes it. So it always has 64 bits: Triton
    would compile kernels again for a key that fits into 32.
    """
    found = _spread(value, axes, device)
    return int64(found + 2**63) if isinstance(found, int) else found


def _spread(value: Tensor, axes: tuple[int, ...], device: torch.device) -> Tensor | int:
    if value.numel() == 1:
        return int(value) if value.device.type == "cpu" and device.type != "cpu" else value.reshape(1)
    value = value.reshape(value.shape + (1,) * (len(axes) - value.dim())).expand(axes)
    return moved_to(value.reshape(-1), device).contiguous()  # kernels read them one behind the other


def rates(threshold: Tensor, axes: tuple[int, ...], device: torch.device) -> Tensor | int:
    """Do what `spread` does, of thresholds; a plain number is what `dropkit.kernels.triton_bits.rate_of` returns.

    So it always has 64 bits, too.
    """
    found = _spread(threshold, axes, device)
    return _rate(found) if isinstance(found, int) else found


@lru_cache(maxsize=1024)
def _rate(threshold: int) -> int:
    scale = struct.pack("f", 2.0**32 / max(2**32 - threshold, 1))
    return int64(struct.unpack("i", scale)[0] << 33 | threshold)


@remembered
def _begins(axes: tuple[int, ...], steps: tuple[int, ...], device: torch.device) -> Tensor:
    """Return how many rows after the first every line begins."""
    places = itertools.product(*map(range, axes))
    begins = [int64(sum(i * step for i, step in zip(index, steps, strict=True)) % 2**64) for index in places]
    return torch.tensor(begins, dtype=torch.int64, device=device)
