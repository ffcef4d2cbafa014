"""What is known of tensors that random numbers went into: their tags, and the tags of what functions make of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dropkit.sites.handwritten.applications import Application, Mask
from dropkit.sites.handwritten.operations import Operation, Rule, is_homogeneous, is_odd
from dropkit.sites.handwritten.values import Discrete, Values, image_of

__all__ = [
    "Applied",
    "Count",
    "Difference",
    "Random",
    "Scaled",
    "Tag",
    "follow",
    "follow_applied",
    "joined",
    "note_read",
]


@dataclass(frozen=True, eq=False)
class Random:
    """The tag of a random tensor: its draw, None for noise that no mask is made of, and what its elements may be."""

    mask: Mask
    values: Values | None
    is_counted: bool = False  # survivors are scaled by their share
    is_centred: bool = False  # of noise, whether its mean is 0, so that a product with it is noise alone
    is_data: bool = False  # whether it is noisy data, from which masks drop; only comparisons make masks of it

    @property
    def is_mask(self) -> bool:
        """Whether a product with the tensor drops."""
        return isinstance(self.values, Discrete) and self.values.is_mask

    def times(self, shape: torch.Size, result: Tensor) -> "Random":
        """Return the tag of its product, as noise, with a tensor of the model.

        Data remain data where they are multiplied with noise around another value than 0; what is only stretched to
        the axes of the noise is its scale.
        """
        is_centred = self.is_centred if self.values is None else self.values.mean in (0, None)
        return replace(self, values=None, is_centred=is_centred, is_data=not is_centred and shape == result.shape)


@dataclass(frozen=True, eq=False)
class Count:
    """The tag of a count of what a mask keeps, or of another summary of a draw.

    Args:
        mask: What is known of the draw.
        is_share: Whether it is a count, or the share that is kept.
    """

    mask: Mask
    is_share: bool = True


@dataclass(frozen=True, eq=False)
class Applied:
    """The tag of what masks were applied to without scaling survivors, and of what becomes of it.

    Args:
        applications: The applications, each of which may yet be followed by a scale.
        base: What was multiplied with numbers since; None is the tensor itself.
        factor: The product of those numbers.
        scale: What stands for them in what is known of the masks, if there is any that makes up for no mask.
        is_alone: Whether the masks were applied to all that is in the tensor.
        is_far: Whether more than a scale has become of it, so that other numbers than the inverse of a keep
            probability have nothing to do with the masks.
    """

    applications: tuple[Application, ...]
    base: Tensor | None = None
    factor: float = 1.0
    scale: object = None
    is_alone: bool = True
    is_far: bool = False

    def moved(self, is_far: bool = False) -> "Applied":
        """Return the tag of another tensor that has come of this one, and that numbers multiply anew."""
        return replace(self, base=None, factor=1.0, is_far=self.is_far or is_far)

    def times(self, factor: float, base: Tensor | None) -> "Applied":
        """Return the tag of a product with a number that makes up for no mask; without a base, one in place."""
        scale = self.scale or object()
        for application in self.applications:
            application.mask.scales.add(scale)
        if base is None:
            return replace(self.moved(), scale=scale)
        return replace(self, base=base if self.base is None else self.base, factor=self.factor * factor, scale=scale)

    def refuse(self) -> None:
        """Note that the masks cannot be left out, for then a scale of theirs would stay."""
        for application in self.applications:
            application.mask.is_known = False

    def meet(self, other: Any) -> None:
        """Note what a tensor is that this one is multiplied with: a scale may be hidden in it."""
        scales = [product for *_, product in other.steps] if isinstance(other, Scaled) else []
        if any(application.is_restored_by(scale) for application in self.applications for scale in scales):
            self.refuse()

    def settled(self, application: Application, base: Tensor) -> "Applied | None":
        """Return the tag of what one of the masks was made up for in, by a product with the base."""
        others = tuple(one for one in self.applications if one is not application)
        for one in self.applications if base is self.base else (application,):  # with all numbers since, or by one
            one.mask.scales.discard(self.scale)
        scale = None if base is self.base else self.scale
        return replace(self, applications=others, base=None, factor=1.0, scale=scale) if others else None


@dataclass(frozen=True, eq=False)
class Scaled:
    """The tag of a tensor's product with numbers, of which one may be the scale of survivors.

    Args:
        steps: What was multiplied, None where it cannot be had; the number; and the product of all from there on.
    """

    steps: tuple[tuple[Tensor | None, float, float], ...] = ()

    def times(self, source: Tensor | None, factor: float) -> "Scaled":
        """Return the tag of the product with another number."""
        return Scaled((*((one, own, product * factor) for one, own, product in self.steps), (source, factor, factor)))

    def moved(self) -> "Scaled":
        """Return the tag of another tensor that has come of this one."""
        return Scaled(tuple((None, own, product) for _, own, product in self.steps))


@dataclass(frozen=True, eq=False)
class Difference:
    """The tag of a difference of two tensors, with weak references to them."""

    parts: tuple[Any, ...]


Tag = Random | Count | Applied | Scaled | Difference


def note_read(tag: Any) -> None:
    """Note that a mask is counted, or that something is indexed with it."""
    if isinstance(tag, Random):
        tag.mask.is_read = True


def joined(tag: Any, survivor: float | None = None) -> Any:
    """Return the tag of a mask that was combined with what is no draw."""
    if not isinstance(tag, Random) or not isinstance(tag.values, Discrete):
        return None
    tag.mask.is_combined = True
    return replace(tag, values=tag.values.unlike(survivor))


def follow_applied(operation: Operation, tags: Sequence[Applied]) -> Applied | None:
    """Return the tag of what a function, other than a product, makes of tensors that masks were applied to."""
    rule = operation.rule
    for application in (one for tag in tags for one in tag.applications):
        if rule in (Rule.PLAIN, Rule.SUBTRACT):
            application.mask.is_combined |= application.is_mixed_with(operation)
    tensors = [one for one in operation.operands if isinstance(one, Tensor) and one.dim()]
    is_own = _keeps_multiples(operation)
    is_joined = rule in (Rule.JOIN, Rule.THROUGH) or operation.function is torch.einsum
    if not (is_own or is_joined or rule in (Rule.COUNT, Rule.SUMMARISE) or (rule is Rule.PLAIN and len(tensors) == 1)):
        return None
    masks = {id(one.mask) for tag in tags for one in tag.applications}
    is_alone = all(tag.is_alone for tag in tags)
    if rule is Rule.JOIN:  # of one mask that is applied to several tensors one application stands for all
        is_alone &= len(tensors) == len(tags) and (len(tags) == 1 or len(masks) == 1)
    elif is_joined:
        is_alone &= not isinstance(operation.operand(2, "bias"), Tensor)
    applications = tags[0].applications if len(masks) == 1 else tuple(one for tag in tags for one in tag.applications)
    is_far = not is_own or any(tag.is_far for tag in tags)
    return Applied(
        applications, scale=next((tag.scale for tag in tags if tag.scale), None), is_alone=is_alone, is_far=is_far
    )


def _keeps_multiples(operation: Operation) -> bool:
    """Tell whether a function makes of the multiple of a tensor the multiple of its result, and mixes no elements."""
    moves = operation.rule in (Rule.SAME, Rule.CAST, Rule.INDEX, Rule.JOIN, Rule.POOL)
    return moves or (operation.rule is Rule.PLAIN and is_homogeneous(operation))


def follow(operation: Operation, source: Tensor, tag: Any, result: Any, is_relative: bool = False) -> Any:
    """Return the tag of what a function makes of a tagged tensor, or None.

    Args:
        operation: The call.
        source: The tensor.
        tag: Its tag.
        result: What the call has returned.
        is_relative: Whether the tensor is compared with what was computed of a draw.
    """
    rule = operation.rule
    if isinstance(tag, Count):
        return tag if rule not in (Rule.COUNT, Rule.COMPARE, Rule.LOGIC) else None
    if isinstance(tag, Scaled):
        return tag.moved() if _keeps_multiples(operation) else None
    if isinstance(tag, Difference) or rule in (Rule.JOIN, Rule.THROUGH):
        return None
    if rule is Rule.SUMMARISE:
        note_read(tag)
        return Count(tag.mask, is_share=False)
    if rule is Rule.COUNT:
        note_read(tag)
        return Count(tag.mask)
    if rule is Rule.POOL:
        tag.mask.is_pooled = True
    elif rule is Rule.LOGIC and len([one for one in operation.operands if isinstance(one, Tensor)]) > 1:
        tag.mask.is_combined = True
    if tag.values is None:
        return _of_noise(operation, tag)
    return _of_values(operation, source, tag, tag.values, result, is_relative)


def _of_values(
    operation: Operation, source: Tensor, tag: Random, values: Values, result: Any, is_relative: bool
) -> Random | None:
    """Return the tag of a function of elements of which it is known what they may be."""
    image = image_of(operation, source, values, result.dtype if isinstance(result, Tensor) else source.dtype)
    if is_relative and isinstance(image, Discrete):
        image = image.unlike()
    tag.mask.is_idle |= isinstance(image, Discrete) and image.is_sure
    return None if image is None else replace(tag, values=image)


def _of_noise(operation: Operation, tag: Random) -> Random | None:
    """Return the tag of a function of noise that no mask is made of, unless comparison makes one."""
    tensors = [one for one in operation.operands if isinstance(one, Tensor) and one.dim()]
    if operation.rule is Rule.COMPARE:
        return replace(tag, values=Discrete((0.0, 1.0), (math.nan, math.nan)), is_centred=False, is_data=False)
    if operation.rule in (Rule.PLAIN, Rule.SUBTRACT) and len(tensors) == 1 and not is_odd(operation):
        return replace(tag, is_centred=False)
    return tag if len(tensors) == 1 or operation.rule in (Rule.SAME, Rule.CAST, Rule.INDEX) else None
