"""Which axis of which inputs holds the examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from dropkit._checks import argument_error

__all__ = ["Examples", "Met", "Said", "SiteCall", "candidates"]

Said = int | tuple[int | None, ...] | None
"""The axis of examples that somebody has named: of all tensors, or of each, None of one that has none."""

SiteCall = tuple[str, int]
"""A site's name, and how many times its module ran before in a forward."""


@dataclass(frozen=True)
class Met:
    """What a site drops.

    Args:
        shape: The shape of the tensor.
        shared: Axes along which one draw is shared.
        heads: How many heads have masks of their own, of attention that splits its queries itself; 0 where masks do
            not depend on how long a sequence is, as in recurrent networks.
    """

    shape: tuple[int, ...]
    shared: tuple[int, ...] = ()
    heads: int = 1


_MOST = 8  # candidates, of a model with inputs of many lengths


@dataclass(frozen=True)
class Examples:
    """Where the examples of a forward lie.

    Args:
        axis: Along which axis; of several, that of the first tensor.
        size: How many there are.
        which: The axes of the tensors that have them, by their numbers among the leaves of the inputs.
        is_alone: Whether no tensor has another length along the axis.
        axes: Along which axis they lie in what a site drops, where that is another.
        unsure: A site of which that is not known; empty if there is none.
    """

    axis: int
    size: int
    which: Mapping[int, int]
    is_alone: bool
    axes: Mapping[SiteCall, int] = field(default_factory=dict)
    unsure: str = ""

    def along(self, number: int) -> int | None:
        """Return the axis of examples of a tensor; None if it has none."""
        return self.which.get(number)


def candidates(tensors: Sequence[tuple[int, Tensor]], said: Said = None) -> list[Examples]:
    """Return where examples may lie: along axis 0, or along axis 1 as in sequences, in the order of likelihood.

    Of several lengths along an axis, that of most tensors is the likeliest; and a square matrix beside larger tensors
    may as well be a mask over pairs of places, which has no examples. At last, where sequences have their examples
    along axis 1, others may have them along axis 0, as their lengths and masks of padding do.

    Args:
        tensors: The inputs, with their numbers among the leaves.
        said: What is known of the axis.
    """
    if isinstance(said, tuple):
        return [_said(tensors, said)]
    found = [each for one in ((0, 1) if said is None else (said,)) for each in _along(tensors, one)]
    mixed = _mixed(tensors) if said in (None, 1) else ()
    return [*found[:_MOST], *islice(mixed, _MOST)]


def _said(tensors: Sequence[tuple[int, Tensor]], axes: tuple[int | None, ...]) -> Examples:
    """Return the examples along the axes that are said of each tensor."""
    if len(axes) != len(tensors):
        remedy = f"These have {len(tensors)}."
        raise argument_error("mc", "batch_dim", "one axis, or one for each tensor of the inputs", axes, remedy)
    which = {number: axis for (number, _), axis in zip(tensors, axes, strict=True) if axis is not None}
    lengths = [tensor.shape[which[number]] if which[number] < tensor.dim() else None
               for number, tensor in tensors if number in which]  # fmt: skip
    if None in lengths or len(set(lengths)) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for _, tensor in tensors)
        rule = "axes along which the tensors of the inputs have one length"
        raise argument_error("mc", "batch_dim", rule, axes, f"Their shapes are {shapes}.")
    return Examples(next(iter(which.values())), lengths[0] or 0, which, len(which) == len(tensors))


def _along(tensors: Sequence[tuple[int, Tensor]], axis: int) -> Iterator[Examples]:
    lengths = _by_length(tensors, axis)
    for size in sorted(lengths, key=lambda each: (each == 1, -len(lengths[each]))):
        those = lengths[size]
        yield _examples(axis, size, those, len(lengths) == 1)
        others = [(number, tensor) for number, tensor in those if tensor.shape != (size, size)]
        if len(others) < len(those) and any(tensor.dim() > 2 for _, tensor in others):  # than a matrix
            yield _examples(axis, size, others, len(lengths) == 1)


def _mixed(tensors: Sequence[tuple[int, Tensor]]) -> Iterator[Examples]:
    """Yield examples along axis 1 of some tensors, all that can or the first of them, and along axis 0 of others."""
    for size, those in _by_length(tensors, 1).items():
        numbers = [number for number, _ in those]
        for own in dict.fromkeys((tuple(numbers), tuple(numbers[:1]))):
            rest = [number for number, tensor in tensors if number not in own and tensor.shape[:1] == (size,)]
            if rest:
                which = {**dict.fromkeys(own, 1), **dict.fromkeys(rest, 0)}
                yield Examples(1, size, which, len(which) == len(tensors))


def _by_length(tensors: Sequence[tuple[int, Tensor]], axis: int) -> dict[int, list[tuple[int, Tensor]]]:
    """Return the tensors by their lengths along an axis, those that have it."""
    lengths: dict[int, list[tuple[int, Tensor]]] = {}
    for number, tensor in tensors:
        if tensor.dim() > axis:
            lengths.setdefault(tensor.shape[axis], []).append((number, tensor))
    return lengths


def _examples(axis: int, size: int, tensors: Sequence[tuple[int, Tensor]], is_alone: bool) -> Examples:
    return Examples(axis, size, dict.fromkeys((number for number, _ in tensors), axis), is_alone)
