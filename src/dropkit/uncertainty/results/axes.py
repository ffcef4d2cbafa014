"""Along which axis of each tensor of an output its examples lie, and those of several batches are joined."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropkit._checks import Integer, argument_error
from dropkit.errors import ArgumentError

__all__ = ["NO_AXIS", "Axis", "Leaf", "joined_leaves"]

NO_AXIS = -1  # of a tensor that says nothing of single examples

Axis = int | None
"""An axis of examples, not negative; `NO_AXIS` of a tensor without one; None where it is not known."""

_WHERE = "Result.concatenate"
_LOST = (
    "`squeeze()` removes the axis of a single example too: let the model name the axis that it removes, `squeeze(-1)`."
)
_CHOOSE = (
    "Say by mc's `batch_dim` along which axis of the inputs examples lie; or "
    "`Result.concatenate(list(predict.each(loader)), dim)` takes the axis of the examples of all tensors."
)


@dataclass(frozen=True)
class Leaf:
    """A tensor of an output, in several batches.

    Args:
        name: What it is called in messages.
        values: The tensor in each batch.
        known: Where its examples lie in each, as far as it is known.
        examples: How many there are in each, as far as it is known.
        before: How many axes come before the tensor's own, which are counted from there.
    """

    name: str
    values: Sequence[Tensor]
    known: Sequence[Axis]
    examples: Sequence[int | None]
    before: int = 0

    @property
    def shapes(self) -> list[torch.Size]:
        """The shapes, without what comes before."""
        return [value.shape[self.before :] for value in self.values]

    @property
    def rank(self) -> int:
        """The number of axes of the tensor; in a batch of one example it may have one less."""
        return max(map(len, self.shapes))

    def axis(self) -> int:
        """Return along which axis the batches are joined; `NO_AXIS` if the tensor is the same in all of them.

        Raises:
            ArgumentError: If that cannot be told, or they do not fit.
        """
        if not self.rank:
            return 0  # a number of each batch
        told = self._told() or self._candidates()
        if len(told) != 1:
            shown = " or ".join("none" if axis == NO_AXIS else f"axis {axis}" for axis in told)
            why = f"It may be {shown}." if told else "It is not known, and shapes do not tell."
            rule = f"results that tell along which axis the examples of {self.name} lie"
            raise self._error(rule, f"{why} {_CHOOSE}")
        self.check(told[0])
        return told[0]

    def along(self, dim: int) -> int:
        """Return the axis that is asked for, counted from the first.

        Raises:
            ArgumentError: If the tensor has no such axis, or the batches do not fit.
        """
        if not self.rank:
            return 0
        rule = Integer(-self.rank, self.rank - 1, remedy=f"{self.name} has {self.rank} axes.")
        axis = rule.check(_WHERE, "dim", dim) % self.rank
        self.check(axis)
        return axis

    def _told(self) -> list[int]:
        """Return where examples were found to lie; in a batch of one they may seem to lie where others' do not."""
        found = [
            (axis, examples)
            for axis, examples, shape in zip(self.known, self.examples, self.shapes, strict=True)
            if axis is not None and len(shape) == self.rank
        ]
        return sorted({axis for axis, examples in found if examples != 1} or {axis for axis, _ in found})

    def _candidates(self) -> list[int]:
        """Return the axes that are as long as the batches in all of them, as far as shapes tell."""
        whole = [(shape, n) for shape, n in zip(self.shapes, self.examples, strict=True) if len(shape) == self.rank]
        counted = [(shape, n) for shape, n in whole if n is not None]
        if not counted:
            return []
        axes = [axis for axis in range(self.rank) if all(shape[axis] == n for shape, n in counted)]
        axes = [axis for axis in axes if len({_without(shape, axis) for shape, _ in whole}) == 1]
        return axes + ([NO_AXIS] if self._is_same else [])

    @property
    def _is_same(self) -> bool:
        first = self.values[0]
        return all(value.shape == first.shape and _equal(first, value) for value in self.values[1:])

    def check(self, axis: int) -> None:
        """Check that the tensors of all batches can be joined along an axis.

        Raises:
            ArgumentError: If they cannot.
        """
        if axis == NO_AXIS:
            if not self._is_same:
                remedy = "Let the model leave it out, or take batches one by one, as `each` yields them."
                raise self._error(f"results of which {self.name} is the same, as it has no axis of examples", remedy)
            return
        shapes = self.shapes
        rest = _without(next(shape for shape in shapes if len(shape) == self.rank), axis)
        for shape, examples in zip(shapes, self.examples, strict=True):
            is_one = not shape or examples in (1, None)
            if not (tuple(shape) == rest and is_one if len(shape) < self.rank else _without(shape, axis) == rest):
                rule = f"results of which {self.name} differs in length along axis {axis} alone"
                raise self._error(rule, _LOST if len(shape) < self.rank else "")

    def _error(self, rule: str, remedy: str) -> ArgumentError:
        shapes: dict[tuple[int, ...], int] = {}
        for batch, shape in enumerate(self.shapes):
            shapes.setdefault(tuple(shape), batch)
        found = {f"batch {batch}": shape for shape, batch in shapes.items()}
        return argument_error(_WHERE, "results", rule, found, remedy)


def joined_leaves(values: Sequence[Tensor], axis: int, before: int = 0) -> Tensor:
    """Join a tensor of several batches along an axis, counted after those before; one of `NO_AXIS` is the first's."""
    if axis == NO_AXIS:
        return values[0]
    rank = max(1, *(value.dim() - before for value in values))
    place = axis + before
    return torch.cat([value if value.dim() - before == rank else value.unsqueeze(place) for value in values], place)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one != one) & (other != other)).all())
