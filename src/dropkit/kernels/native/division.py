"""How a mask is divided into calls of the library: a matter of shapes alone, worked out once for each."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from dropkit.kernels.native.packing import PACKED, int64
from dropkit.random.layout import Layout, check_addressable

__all__ = ["Call", "Division", "divide", "remembered"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def remembered(function: _Function) -> _Function:
    """Return a function that remembers its results, but for the compiler, which looks behind caches and warns of them.

    The compiler may come upon the kernels' own code where it has broken a graph.
    """
    cached = lru_cache(maxsize=1024)(function)

    def call(*arguments: Any) -> Any:
        return function(*arguments) if torch.compiler.is_compiling() else cached(*arguments)

    return cast("_Function", call)


class Call(NamedTuple):
    """One call of the library.

    Args:
        offset: How many elements come before it.
        packed: What the library reads.
        kept: The tensors that `packed` points into.
    """

    offset: int
    packed: Any
    kept: tuple[Tensor, ...]


class Division(NamedTuple):
    """The calls that make up a mask.

    A call takes slices with a key, a stream and a rate each, and as many consecutive rows in every one of them. So the
    innermost axes whose rows are consecutive become the rows of a slice, the axis before them the slices, and every
    place on the axes before that is a call of its own.

    Args:
        mask_shape: The mask's shape: slices with keys or streams of their own, then the axes of the place.
        is_too_fine: Whether rates differ within a row, or where the draws are shared, which the kernels do not take.
        places: Lengths of the axes on which every place is a call of its own.
        slices: Number of slices in a call; None where one call takes a mask that has none.
        rows: Number of rows in a slice.
        columns: Number of columns.
        steps: How many rows apart neighbours are on the axes of places, then on that of slices.
        first_row: Number of the first row.
        first_column: Number of the first column.
    """

    mask_shape: torch.Size
    is_too_fine: bool
    places: tuple[int, ...]
    slices: int | None
    rows: int
    columns: int
    steps: tuple[int, ...]
    first_row: int
    first_column: int

    def calls(
        self, key: Tensor, stream: Tensor, threshold: Tensor, scaled: bool, numbers: tuple[Tensor, ...] = ()
    ) -> Iterator[Call]:
        """Yield the calls, of which an empty mask has none.

        Args:
            key: Int64 tensor of keys.
            stream: Int64 tensor of streams, with the same axes.
            threshold: Int64 tensor of rates' thresholds, over the leading axes of the mask.
            scaled: Whether survivors are scaled.
            numbers: Up to three contiguous float64 tensors of the shape of `threshold`, that a kernel reads as well.
        """
        if not self.mask_shape.numel():
            return
        address: tuple[Tensor, ...] = key, stream, threshold, *numbers
        if self.slices is None:
            yield Call(0, self._packed(scaled, 1, self.first_row, 0, address), address)
            return
        count, step = self.slices, self.steps[-1]
        if not self.places and all(value.dim() <= 1 for value in address):  # as is most common
            address = tuple(value.contiguous() for value in address)
            yield Call(0, self._packed(scaled, count, self.first_row, step, address), address)
            return
        axes = (*self.places, count)
        spread = [value.reshape(value.shape + (1,) * (len(axes) - value.dim())).expand(axes) for value in address]
        for number, index in enumerate(itertools.product(*map(range, self.places))):
            address = tuple(value[index].contiguous() for value in spread)
            first_row = self.first_row + sum(i * apart for i, apart in zip(index, self.steps, strict=False))
            offset = number * count * self.rows * self.columns
            yield Call(offset, self._packed(scaled, count, first_row, step, address), address)

    def _packed(self, scaled: bool, slices: int, first_row: int, row_step: int, address: tuple[Tensor, ...]) -> Any:
        sizes = scaled, slices, self.rows, self.columns, int64(first_row), int64(row_step), self.first_column
        places, has_several = [value.data_ptr() for value in address], [value.numel() > 1 for value in address]
        return PACKED(*sizes, *places[:3], *has_several[:3], *places[3:])


def divide(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout) -> Division:
    """Return the division of the mask at an address.

    Args:
        key: Int64 tensor of keys.
        stream: Int64 tensor of streams, with the same axes, on each of which both or one has a single value.
        threshold: Int64 tensor of rates' thresholds, over the leading axes of the mask.
        place: The places of the mask.

    Raises:
        ArgumentError: If an element has no address.
    """
    return _divide(key.shape, stream.shape, threshold.shape, place)


@remembered
def _divide(keys: torch.Size, streams: torch.Size, rates: torch.Size, place: Layout) -> Division:
    check_addressable("dropout", "input", place.shape)
    slices = tuple(n if m == 1 else m for m, n in zip(keys, streams, strict=True))
    mask_shape = torch.Size((*slices, *place.shape))
    most_axes = max(len(mask_shape), 1) - 1  # of rates: all but the last, that of columns
    is_too_fine = len(rates) > most_axes or any(rates[axis] > mask_shape[axis] for axis in range(len(rates)))
    lengths, steps = (*slices, *place.shape[:-1]), (*(0,) * len(slices), *place.row_strides)
    inner = len(lengths)  # the first axis of those whose rows are consecutive
    while inner > max(len(rates), len(slices)):
        if steps[inner - 1] != math.prod(lengths[inner:]) and lengths[inner - 1] > 1:
            break
        inner -= 1
    return Division(
        mask_shape,
        is_too_fine,
        places=lengths[: max(inner - 1, 0)],
        slices=lengths[inner - 1] if inner else None,
        rows=math.prod(lengths[inner:]),
        columns=place.shape[-1] if place.shape else 1,
        steps=steps[:inner],
        first_row=place.first_row,
        first_column=place.first_column,
    )
