"""Which axis of which inputs holds the examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Examples", "Met", "SiteCall", "candidates"]

SiteCall = tuple[str, int]
"""A site's name, and how many times its module ran before in a forward."""


@dataclass(frozen=True)
class Met:
    """What a site drops.

    Args:
        shape: The shape of the tensor.
        shared: Axes along which one draw is shared.
    """

    shape: tuple[int, ...]
    shared: tuple[int, ...] = ()


_MOST = 8  # candidates, of a model with inputs of many lengths


@dataclass(frozen=True)
class Examples:
    """Where the examples of a forward lie.

    Args:
        axis: Along which axis.
        size: How many there are.
        which: Numbers of the tensors that have them, among the leaves of the inputs.
        is_alone: Whether no tensor has another length along the axis.
        axes: Along which axis they lie in what a site drops, where that is another.
        unsure: A site of which that is not known; empty if there is none.
    """

    axis: int
    size: int
    which: frozenset[int]
    is_alone: bool
    axes: Mapping[SiteCall, int] = field(default_factory=dict)
    unsure: str = ""

    def along(self, number: int) -> int | None:
        """Return the axis of examples of a tensor; None if it has none."""
        return self.axis if number in self.which else None


def candidates(tensors: Sequence[tuple[int, Tensor]], axis: int | None = None) -> list[Examples]:
    """Return where examples may lie: along axis 0, or along axis 1 as in sequences, in the order of likelihood.

    Of several lengths along an axis, that of most tensors is the likeliest; and a square matrix beside larger tensors
    may as well be a mask over pairs of places, which has no examples.

    Args:
        tensors: The inputs, with their numbers among the leaves.
        axis: The only axis that is possible; None if that is not known.
    """
    found = [each for one in ((0, 1) if axis is None else (axis,)) for each in _along(tensors, one)]
    return found[:_MOST]


def _along(tensors: Sequence[tuple[int, Tensor]], axis: int) -> Iterator[Examples]:
    lengths: dict[int, list[tuple[int, Tensor]]] = {}
    for number, tensor in tensors:
        if tensor.dim() > axis:
            lengths.setdefault(tensor.shape[axis], []).append((number, tensor))
    for size in sorted(lengths, key=lambda each: (each == 1, -len(lengths[each]))):
        those = lengths[size]
        yield _examples(axis, size, those, len(lengths) == 1)
        others = [(number, tensor) for number, tensor in those if tensor.shape != (size, size)]
        if len(others) < len(those) and any(tensor.dim() > 2 for _, tensor in others):  # than a matrix
            yield _examples(axis, size, others, len(lengths) == 1)


def _examples(axis: int, size: int, tensors: Sequence[tuple[int, Tensor]], is_alone: bool) -> Examples:
    return Examples(axis, size, frozenset(number for number, _ in tensors), is_alone)
