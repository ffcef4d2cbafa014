"""The units that draw, and the masks of subnetworks, which are numbers whose bits are units: 1 = kept."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.uncertainty.subnetworks.calls import REMEDY, Drawn, Name

__all__ = ["TRIED", "Chunk", "Units", "spread"]

_ROWS = 2**13  # of one batch of subnetworks and examples
TRIED = 3  # of a trial
_GOLDEN = 0.6180339887498949  # multiples of which spread evenly, modulo 1


@dataclass(frozen=True)
class _Call:
    """Units of a call.

    Args:
        shape: Shape of its mask for all examples.
        axis: The axis of that along which examples lie; None if they share the mask.
        rate: The realised rate.
        device: Where the mask is.
    """

    shape: tuple[int, ...]
    axis: int | None
    rate: float
    device: torch.device

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of the mask of one example."""
        return tuple(length for axis, length in enumerate(self.shape) if axis != self.axis)

    @property
    def units(self) -> int:
        """How many units draw: none where all are dropped, or none ever is."""
        return math.prod(self.unit_shape) if 0 < self.rate < 1 else 0

    def kept(self, bits: Tensor) -> Tensor:
        """Return which units are kept, of shape (subnetworks, units), from the bits that are this call's."""
        if self.units:
            return bits == 1
        return torch.full((len(bits), math.prod(self.unit_shape)), self.rate == 0)

    def mask(self, kept: Tensor, examples: int) -> Tensor:
        """Return the mask of subnetworks, one after another, and of the examples in each."""
        if self.axis is None:
            return kept[0].reshape(self.shape).to(self.device)
        rows = kept.to(self.device).repeat_interleave(examples, 0)
        return rows.reshape(-1, *self.unit_shape).movedim(0, self.axis)


@dataclass(frozen=True)
class Chunk:
    """Subnetworks that run together.

    Args:
        codes: Their numbers.
        probabilities: Their probabilities, in float64.
        masks: Their masks, by site and number of the call.
    """

    codes: Tensor
    probabilities: Tensor
    masks: Mapping[Name, Tensor]


class Units:
    """All units of a model that draw for one example.

    Which axis of a mask is that of examples is told by how it grows with their number, and so is that a mask belongs to
    none, as one of weights does.

    Args:
        once: What a forward of all examples draws.
        twice: What one of all examples twice draws.
        examples: Their number.

    Raises:
        UnsupportedError: If the examples of a mask cannot be told.
    """

    def __init__(self, once: Mapping[Name, Drawn], twice: Mapping[Name, Drawn], examples: int) -> None:
        for name, _ in once.keys() ^ twice.keys():
            raise UnsupportedError(f"exact: how often {name!r} drops depends on the number of examples. {REMEDY}")
        calls = {name: _call(name[0], drawn, twice[name], examples) for name, drawn in once.items()}
        # Those that examples share have the highest bits, and change last: no two of their masks run together.
        self._calls = dict(sorted(calls.items(), key=lambda item: item[1].axis is None))
        self._examples = examples
        self.count = sum(call.units for call in calls.values())
        self._own = sum(call.units for call in calls.values() if call.axis is not None)
        self.together = 2 ** min(self._own, max(2, _ROWS // examples).bit_length() - 1)

    def chunks(self) -> Iterator[Chunk]:
        """Yield all subnetworks, some at a time."""
        for first in range(0, 2**self.count, self.together):
            yield self._chunk(torch.arange(first, first + self.together))

    def part(self, chunk: Chunk, positions: Sequence[int]) -> Chunk:
        """Return some subnetworks of a chunk."""
        return self._chunk(chunk.codes[list(positions)])

    def trial(self) -> Chunk:
        """Return subnetworks of all kinds, of which the first `TRIED` are to be compared with what they give alone.

        The first are two of which each has every second unit, and the whole network.
        """
        whole = 2**self._own - 1
        halves = [sum(1 << bit for bit in range(first, self._own, 2)) for first in (0, 1)]
        others = torch.arange(self.together) * (int(whole * _GOLDEN) | 1) & whole  # spread over all
        shared = 2**self.count - 2**self._own  # kept in all
        codes = torch.cat([torch.tensor([*halves, whole]), others]) + shared
        return self._chunk(codes)

    def _chunk(self, codes: Tensor) -> Chunk:
        probabilities, masks = torch.ones(len(codes), dtype=torch.float64), {}
        calls = self._calls.values()
        starts = accumulate((call.units for call in calls), initial=0)
        for (name, call), start in zip(self._calls.items(), starts, strict=False):
            kept = call.kept((codes[:, None] >> torch.arange(start, start + call.units)) & 1)
            if call.units:
                chances = torch.tensor([call.rate, 1 - call.rate], dtype=torch.float64)
                probabilities *= chances[kept.long()].prod(1)
            masks[name] = call.mask(kept, self._examples)
        return Chunk(codes, probabilities, masks)


def spread(number: int, length: int) -> int:
    """Return a position in a length, others for other numbers, and those of all numbers spread evenly."""
    return int((number + 1) * _GOLDEN % 1 * length)


def _call(site: str, once: Drawn, twice: Drawn, examples: int) -> _Call:
    one, two = tuple(once.mask.shape), tuple(twice.mask.shape)
    axes = [axis for axis, (length, longer) in enumerate(zip(one, two, strict=False)) if length != longer]
    is_known = len(one) == len(two) and all((one[axis], two[axis]) == (examples, 2 * examples) for axis in axes)
    if not is_known or len(axes) > 1:
        raise UnsupportedError(
            f"exact: a mask of site {site!r} is of shape {one} for {examples} examples and {two} for {2 * examples}, "
            f"so that no axis of it is that of examples. {REMEDY}"
        )
    return _Call(one, axes[0] if axes else None, once.rate, once.mask.device)
