"""Tensors whose elements lie in another order than the places of their mask, or share them."""

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dropkit.kernels.native.division import remembered

__all__ = ["MemoryAxes", "bit_steps", "is_laid_out_like", "memory_axes"]

_MOST_AXES = 32  # that the library takes


class MemoryAxes(NamedTuple):
    """Axes of a dense tensor from the outermost in memory to the innermost, as the library takes them."""

    lengths: Any  # an array of int64
    bit_steps: Any  # how many bits of the mask apart neighbours are, 0 where they share one

    def __len__(self) -> int:
        return len(self.lengths)


def is_laid_out_like(input: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape have their elements in the same order, as far apart."""
    axes = zip(input.shape, input.stride(), other.stride(), strict=True)
    return all(length <= 1 or stride == wanted for length, stride, wanted in axes)


def bit_steps(mask_shape: Sequence[int]) -> tuple[int, ...]:
    """Return how many bits apart neighbours are in a mask that is packed in row-major order, 0 along a shared axis."""
    steps = [math.prod(mask_shape[axis + 1 :]) for axis in range(len(mask_shape))]
    return tuple(step if length > 1 else 0 for step, length in zip(steps, mask_shape, strict=True))


@remembered
def memory_axes(shape: tuple[int, ...], strides: tuple[int, ...], steps: tuple[int, ...]) -> MemoryAxes | None:
    """Return the axes of a tensor as they lie in memory, or None if there are gaps between its elements.

    Args:
        shape: The tensor's shape, of no length 0.
        strides: Its strides, in elements.
        steps: For each of its axes, how many bits of the mask apart neighbours are.
    """
    found: list[tuple[int, int]] = []  # from the innermost on; axes that go on where the one before ended are one
    elements = 1
    for stride, length, step in sorted(zip(strides, shape, steps, strict=True)):
        if length == 1:
            continue
        if stride != elements:
            return None
        elements *= length
        if found and step == found[-1][0] * found[-1][1]:
            found[-1] = (found[-1][0] * length, found[-1][1])
        else:
            found.append((length, step))
    found = found[::-1] or [(1, 0)]
    if len(found) > _MOST_AXES:
        return None
    of_axes = ctypes.c_int64 * len(found)
    return MemoryAxes(of_axes(*(length for length, _ in found)), of_axes(*(step for _, step in found)))
