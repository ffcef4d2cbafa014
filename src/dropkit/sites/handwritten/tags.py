"""What is known of tensors that random numbers went into: their tags, and the tags of what functions make of them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dropkit.sites.handwritten.applications import Application, Mask
from dropkit.sites.handwritten.operations import Operation, Rule, is_odd
from dropkit.sites.handwritten.values import Discrete, Values, image_of

__all__ = ["Applied", "Count", "Difference", "Random", "Scaled", "Tag", "follow", "joined", "note_read"]


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
    """The tag of a count of what a mask keeps."""

    mask: Mask


@dataclass(frozen=True, eq=False)
class Applied:
    """The tag of what masks were applied to without scaling survivors, and of its products with numbers."""

    applications: tuple[Application, ...]
    base: Tensor | None = None  # what was multiplied with the numbers; None is the tensor itself
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Scaled:
    """The tag of a tensor's product with a number above 1, which may be the scale of survivors."""

    source: Tensor | None  # None where it was overwritten
    factor: float


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


def follow(operation: Operation, source: Tensor, tag: Any, result: Any) -> Any:
    """Return the tag of what a function makes of a tagged tensor, or None."""
    rule = operation.rule
    if isinstance(tag, Applied):
        for application in tag.applications:
            if rule in (Rule.PLAIN, Rule.SUBTRACT):
                application.mask.is_combined |= application.is_mixed_with(operation)
        return Applied(tag.applications) if rule in (Rule.SAME, Rule.CAST) and tag.factor == 1 else None
    if isinstance(tag, Count):
        return tag if rule not in (Rule.COUNT, Rule.COMPARE, Rule.LOGIC) else None
    if isinstance(tag, Scaled | Difference):
        return None
    if rule is Rule.COUNT:
        note_read(tag)
        return Count(tag.mask)
    if rule is Rule.POOL:
        tag.mask.is_pooled = True
    elif rule is Rule.LOGIC and len([one for one in operation.operands if isinstance(one, Tensor)]) > 1:
        tag.mask.is_combined = True
    if tag.values is None:
        return _of_noise(operation, tag)
    values = image_of(operation, source, tag.values, result.dtype if isinstance(result, Tensor) else source.dtype)
    return None if values is None else replace(tag, values=values)


def _of_noise(operation: Operation, tag: Random) -> Random | None:
    """Return the tag of a function of noise that no mask is made of, unless comparison makes one."""
    tensors = [one for one in operation.operands if isinstance(one, Tensor) and one.dim()]
    if operation.rule is Rule.COMPARE:
        return replace(tag, values=Discrete((0.0, 1.0), (math.nan, math.nan)), is_centred=False, is_data=False)
    if operation.rule in (Rule.PLAIN, Rule.SUBTRACT) and len(tensors) == 1 and not is_odd(operation):
        return replace(tag, is_centred=False)
    return tag if len(tensors) == 1 or operation.rule in (Rule.SAME, Rule.CAST, Rule.INDEX) else None
