"""What the elements of a random tensor may be, and what a function of them may be: found by calling it on those few."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dropkit.sites.handwritten.operations import Operation, Rule

__all__ = ["Discrete", "Uniform", "Values", "constant", "image_of"]

Image = Callable[[Tensor], Tensor]

_MOST_STEPS = 256
_CASTS = (Rule.COPY, Rule.CAST)
_STEPS = (Rule.COMPARE, Rule.SIGN)
_PRODUCTS = (Rule.MULTIPLY, Rule.DIVIDE)
_MOST_IMAGES = 1024
_images: dict[Any, Any] = {}  # what functions have made of elements, for a model does the same at every step


def constant(value: Any) -> float | None:
    """Return a number, or the one that all elements of a tensor have; None of anything else."""
    if isinstance(value, Real):
        return float(value)
    if not isinstance(value, Tensor) or not value.numel() or value.is_complex() or value.is_meta:
        return None
    if value.requires_grad:  # what is learned, or computed from it, is no number, whatever it is now
        return None
    try:
        value = value.detach()
        first = value[(0,) * value.dim()]
        spread = any(length > 1 and stride for length, stride in zip(value.shape, value.stride(), strict=True))
        return float(first) if not spread or bool((value == first).all()) else None
    except RuntimeError:  # no values here: a transform, or a tensor of another kind
        return None


@dataclass(frozen=True)
class Discrete:
    """Elements of a few values.

    Args:
        values: The values; NaN for what is not known but is not 0.
        chances: Their probabilities; NaN where they are not known, or not the same for all elements.
    """

    values: tuple[float, ...]
    chances: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float], chances: Sequence[float]) -> "Discrete":
        """Return the same with every value named once, in the order in which they come first."""
        merged: dict[float, float] = {}
        unknown: list[float] = []
        for value, chance in zip(values, chances, strict=True):
            if math.isnan(value):
                unknown.append(chance)
            else:
                merged[value + 0.0] = merged.get(value + 0.0, 0.0) + chance  # -0.0 is 0.0
        if unknown:
            merged[math.nan] = sum(unknown)
        return Discrete(tuple(merged), tuple(merged.values()))

    @property
    def is_mask(self) -> bool:
        """Whether one of two values is 0, so that a product with it drops."""
        return len(self.values) == 2 and 0.0 in self.values

    @property
    def is_sure(self) -> bool:
        """Whether they all have one and the same of these values."""
        return 1.0 in self.chances

    @property
    def mean(self) -> float | None:
        """The mean; None where it is not known."""
        mean = sum(value * chance for value, chance in zip(self.values, self.chances, strict=True))
        return None if math.isnan(mean) else round(mean, 9)

    @property
    def survivor(self) -> float:
        """Of a mask, the value of what is kept; NaN where it is not known."""
        return self.values[1 - self.values.index(0.0)]

    def chance(self, number: int) -> float | None:
        """Return the probability of one of the values, to what single precision resolves; None if it is not known."""
        chance = self.chances[number]
        return None if math.isnan(chance) else float(f"{chance:.7g}")

    def unlike(self, survivor: float | None = None) -> "Discrete":
        """Return the same with probabilities that are not known, and another value of what is kept."""
        values = tuple(survivor if value and survivor is not None else value for value in self.values)
        return Discrete(values, (math.nan,) * len(values))

    def image(self, function: Image, dtype: torch.dtype) -> "Discrete":
        """Return what a function of these elements may be, which are of some type."""
        return Discrete.of(function(_tensor(self.values).to(_wide(dtype))).double().tolist(), self.chances)


@dataclass(frozen=True)
class Uniform:
    """Elements uniform between two values.

    Args:
        low: The value where the draw is least; it may be above the other.
        high: The value where it is greatest; NaN where what was added is not the same for all elements.
    """

    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether all elements are uniform between the same two values."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def mean(self) -> float | None:
        """The mean; None where it is not known."""
        return round((self.low + self.high) / 2, 9) if self.is_known else None

    def image(self, function: Image) -> "Uniform | None":
        """Return what a function without steps makes of these elements: None unless it is linear."""
        middle = (self.low + self.high) / 2
        low, high, between = function(_tensor((self.low, self.high, middle))).double().tolist()
        is_linear = math.isclose(between, (low + high) / 2, rel_tol=1e-9, abs_tol=1e-9) and low != high
        return Uniform(low, high) if is_linear and math.isfinite(low + high) else None

    def steps(self, function: Image, edges: Iterable[float]) -> Discrete:
        """Return what a function makes of these elements that is constant between the edges."""
        ends = sorted((self.low, self.high))
        inner = sorted({edge for edge in edges if ends[0] < edge < ends[1]})
        bounds = [ends[0], *inner, ends[1]]
        if self.low > self.high:
            bounds.reverse()
        middles = [(left + right) / 2 for left, right in pairwise(bounds)]
        chances = [abs(right - left) / (ends[1] - ends[0]) for left, right in pairwise(bounds)]
        return Discrete.of(function(_tensor(middles)).double().tolist(), chances)

    def rounding_edges(self) -> list[float] | None:
        """Return where rounding of these elements, of any kind, may step; None if in too many places."""
        first, last = math.floor(2 * min(self.low, self.high)), math.ceil(2 * max(self.low, self.high))
        return [half / 2 for half in range(first, last + 1)] if last - first <= _MOST_STEPS else None


Values = Discrete | Uniform


def _tensor(values: float | Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def image_of(operation: Operation, source: Tensor, values: Values, dtype: torch.dtype) -> Values | None:
    """Return what the elements of a function of a random tensor may be, or None where that is not followed.

    Args:
        operation: The call.
        source: The random tensor among its operands.
        values: What its elements may be.
        dtype: Type of the result.
    """
    rule = operation.rule
    if rule in (Rule.SAME, Rule.INDEX):
        return values
    if rule is Rule.POOL:
        return values.unlike() if isinstance(values, Discrete) else None
    stand_ins: dict[int, float | None] = {}
    if rule not in _CASTS:
        others = (one for one in operation.operands if isinstance(one, Tensor) and one is not source)
        stand_ins = {id(one): constant(one) if rule in _STEPS or one.numel() == 1 else None for one in others}
    if None not in stand_ins.values() and (isinstance(values, Discrete) or values.is_known):
        return _image(operation, source, values, dtype, stand_ins)
    if rule is not Rule.COMPARE:
        return _of_unlike(rule, values)
    # Both outcomes there are, whatever their probabilities.
    elements = Uniform(0.0, 1.0) if isinstance(values, Uniform) else values
    result = _image(operation, source, elements, dtype, dict.fromkeys(stand_ins, 0.5))
    return result.unlike() if isinstance(result, Discrete) else None


def _image(
    operation: Operation, source: Tensor, values: Values, dtype: torch.dtype, stand_ins: dict[int, Any]
) -> Values | None:
    """Return what the call makes of elements, with numbers in place of other tensors."""
    signature = _signature(operation, source, values, dtype, stand_ins)
    if signature in _images:
        return _images[signature]

    def image(elements: Tensor) -> Tensor:
        if operation.rule in _CASTS:
            return elements.to(dtype)
        others = {
            id(one): _tensor(stand_ins[id(one)]).to(_wide(one.dtype))
            for one in operation.operands
            if id(one) in stand_ins
        }
        return operation.substituted({**others, id(source): elements}).run()

    result: Values | None = None
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            if isinstance(values, Discrete):
                result = values.image(image, source.dtype)
            else:
                operands = [*operation.operands, *stand_ins.values()]
                result = _image_of_uniform(operation.rule, values, image, dtype, operands)
    except (RuntimeError, TypeError, ValueError):  # not a function of each element after all
        pass
    if signature is not None:
        if len(_images) >= _MOST_IMAGES:
            _images.clear()
        _images[signature] = result
    return result


def _signature(
    operation: Operation, source: Tensor, values: Values, dtype: torch.dtype, stand_ins: dict[int, Any]
) -> Any:
    """Return all that an image depends on; None if that has no hash."""
    others = tuple(
        one if not isinstance(one, Tensor) else "source" if one is source else (stand_ins[id(one)],)
        for one in (() if operation.rule in _CASTS else operation.operands)
    )
    signature = (operation.function, others, tuple(operation.kwargs), values, source.dtype, dtype)
    try:
        hash(signature)
    except TypeError:
        return None
    return signature


def _of_unlike(rule: Rule, values: Values) -> Values | None:
    """Return what arithmetic makes of elements together with others that differ."""
    if isinstance(values, Discrete):
        return values.unlike() if rule is Rule.LOGIC else None
    return Uniform(math.nan, math.nan) if rule in (Rule.PLAIN, Rule.SUBTRACT, *_PRODUCTS, Rule.CAST) else None


def _image_of_uniform(
    rule: Rule, values: Uniform, image: Image, dtype: torch.dtype, operands: Iterable[Any]
) -> Values | None:
    if rule is Rule.COMPARE:
        return values.steps(image, [float(one) for one in operands if isinstance(one, Real)])
    if rule is Rule.SIGN or dtype == torch.bool:
        return values.steps(image, [0.0])
    if rule is Rule.ROUND or not dtype.is_floating_point:
        edges = values.rounding_edges()
        return None if edges is None else values.steps(image, edges)
    return values.image(image)
