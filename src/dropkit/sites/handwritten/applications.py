"""Hand-written dropout masks: one draw and what became of it, and one application of it to a tensor."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.sites.handwritten.operations import Operation, Rule
from dropkit.sites.interception.places import Place

__all__ = ["Application", "Mask", "is_doubtful", "restores_mean"]


@dataclass(eq=False)
class Mask:
    """One draw of a random operator, and what has been seen of it so far.

    Args:
        place: Where it was drawn; its name is that of the site.
        p: Probability of dropping; None where it is not known, or not the same for all elements.
        is_scaled: Whether survivors are scaled so that the mean stays.
        is_known: Whether what it was applied to can be had as it would be without it, as far as that was seen.
        is_zero: Whether what is dropped becomes 0.
        is_whole: Whether it drops only whole examples.
        is_read: Whether it was counted or indexed with, and not only to scale survivors.
        is_combined: Whether it was combined with what is no draw, or put through what cannot be followed.
        is_pooled: Whether its dropped parts were grown to blocks.
        is_idle: Whether it was seen to have one outcome alone, as of a comparison with a rate of 0.
        senses: Which of the two outcomes of the draw it was seen to drop.
        scales: What stands for scales of what is kept that may be meant to make up for what is dropped, and do not.
    """

    place: Place
    p: float | None = None
    is_scaled: bool = False
    is_known: bool = True
    is_zero: bool = True
    is_whole: bool = False
    is_read: bool = False
    is_combined: bool = False
    is_pooled: bool = False
    is_idle: bool = False
    senses: set[int] = field(default_factory=set)
    scales: set[object] = field(default_factory=set)

    @property
    def is_switchable(self) -> bool:
        """Whether what it was applied to can be had as it would be without it, neither dropped nor scaled."""
        return self.is_known and not self.scales

    @property
    def is_dropout(self) -> bool:
        """Whether it surely is dropout.

        It is not where it only perhaps is: masks that mix two tensors, that put something else in place of what is
        dropped, whose rate differs between elements, that are counted, or that drop whole examples and do not scale
        the others, as labels are dropped for classifier-free guidance.
        """
        known = self.p is not None or self.is_pooled
        plain = self.is_zero and known and not self.is_combined and len(self.senses) == 1
        return plain and (self.is_scaled or not (self.is_whole or self.is_read))


@dataclass(eq=False)
class Application:
    """A mask that is being applied to a tensor.

    Args:
        mask: What has been seen of the draw, this application with it.
        operation: The call.
        input: The tensor.
        tensor: The mask as it is applied.
        survivor: Its value where the input is kept; NaN where it is not known.
        p: Probability of dropping; None where it is not known.
        base: What stands for the input where nothing is dropped; None where that is not known.
        difference: If the input is a difference, weak references to its parts.
        is_skipped: Whether the handler asked for that.
    """

    mask: Mask
    operation: Operation
    input: Tensor
    tensor: Tensor
    survivor: float
    p: float | None
    base: Tensor | None
    difference: tuple[Any, ...] = ()
    is_skipped: bool = False

    @property
    def place(self) -> Place:
        """Where the mask was drawn."""
        return self.mask.place

    @property
    def kept(self) -> Tensor:
        """What is kept, a bool tensor with the axes of the mask; True = kept."""
        return (self.tensor == 0) if self.survivor == 0 else (self.tensor != 0)

    @property
    def shared(self) -> tuple[int, ...]:
        """Axes of the input along which one draw is shared."""
        more = max(0, self.tensor.dim() - self.input.dim())  # axes of the result that the input has not
        # Nobody knows whether examples would share a draw where there is one; that they do is the exception.
        lengths = enumerate(self.input.shape)
        return tuple(axis for axis, length in lengths if axis + more not in self._own and (axis or length > 1))

    @property
    def is_whole(self) -> bool:
        """Whether it drops whole examples only: slices of axis 0."""
        return not self._own - {0}

    @property
    def _own(self) -> set[int]:
        """Axes of the result along which the mask has draws of their own."""
        axes = enumerate(zip(self.tensor.shape, self.tensor.stride(), strict=True), self._first_axis())
        return {axis for axis, (length, stride) in axes if length != 1 and stride != 0}

    def _first_axis(self) -> int:
        """Return the axis of the result to which axis 0 of the mask belongs."""
        if self.operation.rule is not Rule.ASSIGN:
            return max(0, self.input.dim() - self.tensor.dim())
        index = self.operation.args[1]
        return next(number for number, one in enumerate(index) if one is self.tensor) if isinstance(index, tuple) else 0

    def is_restored_by(self, factor: float) -> bool:
        """Tell whether a factor, after the mask, makes up for what it drops."""
        return restores_mean(factor * (self.survivor or 1.0), self.p)

    def is_mixed_with(self, operation: Operation) -> bool:
        """Tell whether a sum with the result chooses between two tensors: ``a + (b - a) * mask``, ``a - a * mask``."""
        parts = [part() for part in self.difference]
        if operation.rule is Rule.SUBTRACT:
            parts.append(self.input)
        return any(part is not None and part is one for part in parts for one in operation.operands)

    def run(self) -> Any:
        """Apply the mask."""
        return self.operation.run()

    def undropped(self) -> Any:
        """Return the same with nothing dropped or scaled; also where survivors are scaled only later.

        Raises:
            UnsupportedError: If it is not known what that is.
        """
        if self.base is None:
            remedy = "Scale survivors by 1 / (1 - p), or not at all, and not in place before they are dropped."
            raise UnsupportedError(f"dropkit.sites: the mask {self.place.name} cannot be switched off. {remedy}")
        self.is_skipped = True
        target = self.operation.target
        if target is not None:
            return target if self.base is target else target.copy_(self.base)
        tensors = [value for value in self.operation.operands if isinstance(value, Tensor)]
        dtype = self.base.dtype
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype) if tensor.dim() else dtype
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        return self.base.to(dtype).expand(shape).clone()  # a new tensor, as the model expects one

    def with_kept(self, kept: Tensor) -> Any:
        """Return the same under another mask; survivors are scaled as they were.

        Args:
            kept: Bool tensor that broadcasts to the axes of the mask; True = kept.

        Raises:
            UnsupportedError: If it is not known how survivors are scaled.
        """
        if math.isnan(self.survivor):
            raise UnsupportedError(f"dropkit.sites: how the mask {self.place.name} scales survivors is not known.")
        kept = kept.expand_as(self.tensor)
        other = ~kept if self.survivor == 0 else kept
        other = other if self.tensor.dtype == torch.bool else other.to(self.tensor.dtype) * (self.survivor or 1)
        return self.operation.substituted({id(self.tensor): other}).run()


_CLOSE = 0.01  # how far a scale may be from the one that keeps the mean, for rates are rounded, and types are narrow


def restores_mean(factor: float, p: float | None) -> bool:
    """Tell whether a factor of survivors makes up for what is dropped: almost, and rather that than nothing at all."""
    return p is not None and p < 1 and abs(factor * (1 - p) - 1) <= min(_CLOSE, p / 2)


def is_doubtful(factor: float, p: float | None) -> bool:
    """Tell whether a factor that does not quite make up for what is dropped may be meant to."""
    return p is not None and p < 1 and 1 < factor <= 1.25 / (1 - p)
