"""Hand-written dropout masks: random tensors are followed from where they are drawn to where they drop something.

A mask cannot be told at its draw. So every result of a random operator is followed through comparisons, rounding,
casts, arithmetic with numbers, reshapes and pooling, with what its elements may be; it is a mask once a floating tensor
is multiplied with it, filled by it or chosen by it, and one of its two values drops.

What cannot be seen: masks of NumPy or Python's ``random``; those drawn outside a forward, before the handler came, in
compiled code or in ScriptModules; those made of shuffles or of the largest of random scores; noise that only weakens,
such as Gaussian or Concrete noise; and what goes through ``.item()``, ``out=`` or another library's operators.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dropkit.sites.applications import Application, Mask
from dropkit.sites.draws import Draw, find_draw
from dropkit.sites.interceptor import Handler, Place
from dropkit.sites.operations import Operation, Rule, find_rule
from dropkit.sites.values import Discrete, Values, constant, image_of

__all__ = ["Masks"]


@dataclass(frozen=True, eq=False)
class _Random:
    """The tag of a random tensor: its draw, None for noise that no mask is made of, and what its elements may be."""

    mask: Mask
    values: Values | None
    is_counted: bool = False  # survivors are scaled by their share


@dataclass(frozen=True, eq=False)
class _Count:
    """The tag of a count of what a mask keeps."""

    mask: Mask


@dataclass(frozen=True, eq=False)
class _Applied:
    """The tag of what a mask was applied to without scaling survivors, and of its products with numbers."""

    application: Application
    base: Tensor | None = None  # what was multiplied with the numbers; None is the tensor itself
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class _Scaled:
    """The tag of a tensor's product with a number above 1, which may be the scale of survivors."""

    source: Tensor | None  # None where it was overwritten
    factor: float


_Tag = _Random | _Count | _Applied | _Scaled


class Masks:
    """Follows random tensors for a handler, and asks it about draws and about masks that are applied.

    The handler gives it every call that it is given by ``other``, and returns what that returns. It lives as long as
    the handler, for a model may keep a mask over several forwards. Of a model that drops a mask named ``"~0"``, this
    leaves that out, in training as in evaluation::

        class Off(Handler):
            def __init__(self):
                self.masks = Masks(self, self.draw, self.apply)

            def other(self, function, args, kwargs):
                return self.masks.call(function, args, kwargs)

            def draw(self, draw):
                return draw.aside() if draw.place.name == "~0" else draw.run()

            def apply(self, application):
                return application.undropped() if application.place.name == "~0" else application.run()

    Args:
        handler: The handler, whose interceptor numbers draws.
        draw: What decides of draws of random operators, masks or not; by default each runs.
        apply: What decides of masks that are applied, surely dropout or not; by default each runs.
    """

    def __init__(
        self,
        handler: Handler,
        draw: Callable[[Draw], Any] = Draw.run,
        apply: Callable[[Application], Any] = Application.run,
    ) -> None:
        self._handler = handler
        self._draw = draw
        self._apply = apply
        self._tags: Any = WeakTensorKeyDictionary()
        self._places: dict[int, Any] = {}  # in memory, of random tensors

    def _place(self) -> Place:
        interceptor = self._handler.interceptor
        assert interceptor is not None  # noqa: S101  # whatever gives it calls is attached
        return interceptor.random_place()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what a call of any function, other than one that draws dropout, shall return."""
        if torch.compiler.is_compiling():  # where what is drawn inside an expression is not seen
            return function(*args, **kwargs)
        draw = find_draw(function, args, kwargs, self._place)
        if draw is not None:
            result = self._draw(draw)
            self._tag(result, _Random(Mask(draw.place), draw.values))
            return result
        rule = find_rule(function)
        if rule is None or kwargs.get("out") is not None:
            return function(*args, **kwargs)
        return self._followed(Operation(function, rule, args, kwargs))

    def _tag(self, result: Any, tag: _Tag | None) -> None:
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tag is not None:
                self._tags[tensor] = _version(tensor), tag
                if isinstance(tag, _Random) and type(tensor) is Tensor:
                    self._places = {place: known for place, known in self._places.items() if known() is not None}
                    self._places[tensor.data_ptr()] = weakref.ref(tensor)

    def _tag_of(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        version, tag = self._tags.get(value, (None, None))
        if tag is None and self._places and type(value) is Tensor:
            return self._tag_of_twin(value)
        return tag if version == _version(value) else None

    def _tag_of_twin(self, value: Tensor) -> Any:
        """Return the tag of a tensor that `torch.autograd.Variable`, which no mode sees, has made another one of."""
        known = self._places.get(value.data_ptr(), _nothing)()
        return (
            None if known is None or known.shape != value.shape or known.dtype != value.dtype else self._tag_of(known)
        )

    def _followed(self, operation: Operation) -> Any:
        """Run a call that random tensors are followed through, and tag its result."""
        tags = {id(value): tag for value in operation.operands if (tag := self._tag_of(value)) is not None}
        if operation.rule in (Rule.MULTIPLY, Rule.DIVIDE):
            return self._product(operation, tags)
        if not tags:
            return operation.run()
        choice = _CHOICES.get(operation.rule)
        chosen = None if choice is None else choice(operation, tags)
        if chosen is not None:
            return self._applied(operation, tags, chosen)
        result = operation.run()
        source = next(value for value in operation.operands if id(value) in tags)
        tag = tags[id(source)]
        if operation.rule is Rule.INDEX and source is not operation.args[0]:
            _note_read(tag)
        elif operation.rule is Rule.ASSIGN:
            self._tag(operation.args[0], _joined(tags.get(id(operation.args[0]))))
        elif not (operation.rule is Rule.SAME and source is not operation.args[0]):
            self._tag(result, _followed(operation, source, tag, result))
        return result

    def _product(self, operation: Operation, tags: Mapping[int, Any]) -> Any:
        """Run a product or a quotient: of a mask and a tensor, of what a mask was applied to, or of anything."""
        first, second = operation.operands[:2]
        pairs = [(second, first), (first, second)] if operation.rule is Rule.MULTIPLY else [(first, second)]
        for factor, other in pairs:
            tag, of_other = tags.get(id(factor)), tags.get(id(other))
            if isinstance(tag, _Random) and not (of_other is None and _is_number(other, factor)):
                return self._masked(operation, tags, factor, other)
            if isinstance(tag, _Applied):
                return self._rescaled(operation, factor, other, tag, isinstance(of_other, _Count))
        result = operation.run()
        for factor, other in ((first, second), (second, first)):
            if id(factor) in tags:
                self._tag(result, _followed(operation, factor, tags[id(factor)], result))
                return result
            if isinstance(factor, Tensor) and factor.is_floating_point():
                number = constant(other) if _is_number(other, factor) else None
                self._tag(result, _scaled(operation, factor, number))
                return result
        return result

    def _masked(self, operation: Operation, tags: Mapping[int, Any], factor: Tensor, other: Tensor) -> Any:
        """Run a product of a random tensor with a tensor."""
        tag, of_other = tags[id(factor)], tags.get(id(other))
        is_mask = isinstance(tag.values, Discrete) and tag.values.is_mask
        if not is_mask:
            result = operation.run()
            self._tag(result, replace(tag, values=None))  # noise, as it is in a reparameterisation
            return result
        if isinstance(of_other, _Count):
            tag.mask.is_read = False
            result = operation.run()
            self._tag(result, replace(tag, is_counted=True))
            return result
        if isinstance(of_other, _Random) and of_other.values is None:
            result = operation.run()
            self._tag(result, of_other)
            return result
        if operation.rule is Rule.DIVIDE or not (other.is_floating_point() or other.is_complex()):
            result = operation.run()
            self._tag(result, _joined(tag, math.nan if operation.rule is Rule.DIVIDE else None))
            return result
        return self._applied(operation, tags, _Choice(other, factor, tag.values.survivor))

    def _applied(self, operation: Operation, tags: Mapping[int, Any], choice: "_Choice") -> Any:
        """Let the handler decide of a mask that is applied."""
        tag, of_input = tags[id(choice.tensor)], tags.get(id(choice.input))
        values, mask = tag.values, tag.mask
        dropped = values.values.index(1.0 if choice.survivor == 0 else 0.0)
        p = values.chance(dropped)
        if p == 0:
            return operation.run()
        mask.p = p
        mask.senses.add(dropped)
        mask.is_zero &= choice.is_zero
        mask.is_combined |= choice.is_mixed
        base, is_scaled = _base(choice, p, of_input, tag.is_counted)
        mask.is_scaled |= is_scaled
        mask.is_switchable &= base is not None
        application = Application(mask, operation, choice.input, choice.tensor, choice.survivor, base)
        mask.is_whole |= not any(axis and axis not in application.shared for axis in application.long_axes)
        result = self._apply(application)
        target = operation.target if operation.target is not None else result
        if isinstance(of_input, _Random):  # a mask of masks
            self._tag(target, of_input if application.is_skipped else _joined(of_input))
        elif not is_scaled:
            self._tag(target, _Applied(application))
        return result

    def _rescaled(self, operation: Operation, value: Tensor, other: Any, tag: "_Applied", is_count: bool) -> Any:
        """Run a product of what a mask was applied to: the scale of survivors is left out where nothing is dropped."""
        application, mask = tag.application, tag.application.mask
        number = None if is_count or not _is_number(other, value) else constant(other)
        if number is None and not is_count:
            return operation.run()
        factor = tag.factor * _power(operation, number or 1.0)
        if not is_count and not _restores_mean(factor * (application.survivor or 1.0), mask.p):
            result = operation.run()
            if operation.target is None:
                base = value if tag.base is None else tag.base
                self._tag(result, replace(tag, base=base, factor=factor))
            elif not application.is_skipped:
                self._tag(result, replace(tag, factor=factor))
            return result
        mask.is_scaled = True
        mask.is_read &= not is_count
        if not application.is_skipped:
            return operation.run()
        base, target = value if tag.base is None else tag.base, operation.target
        if target is None:
            return base.clone()
        return target if base is target else target.copy_(base)


@dataclass(frozen=True, eq=False)
class _Choice:
    """How a mask is applied: to which tensor, as which, with which value where the input is kept."""

    input: Tensor
    tensor: Tensor
    survivor: float
    is_zero: bool = True  # whether what is dropped becomes 0
    is_mixed: bool = False  # whether it is not known what the input would be without


def _mask_among(operands: Any, tags: Mapping[int, Any]) -> Tensor | None:
    for value in operands:
        tag = tags.get(id(value))
        if isinstance(tag, _Random) and isinstance(tag.values, Discrete) and tag.values.is_mask:
            return value
    return None


def _filled(operation: Operation, tags: Mapping[int, Any]) -> _Choice | None:
    source, tensor = operation.operand(0, "input"), operation.operand(1, "mask")
    if _mask_among((tensor,), tags) is None or not source.is_floating_point():
        return None
    return _Choice(source, tensor, 0.0, constant(operation.operand(2, "value")) == 0)


def _chosen(operation: Operation, tags: Mapping[int, Any]) -> _Choice | None:
    is_method = operation.function == Tensor.where
    tensor, first = operation.operand(is_method, "condition"), operation.operand(not is_method, "input", "self")
    second = operation.operand(2, "other")
    if _mask_among((tensor,), tags) is None:
        return None
    numbers = constant(first), constant(second)
    tensors = [isinstance(one, Tensor) and one.is_floating_point() and one.dim() > 0 for one in (first, second)]
    if tensors[0] and (numbers[1] == 0 or (numbers[1] is not None and not tensors[1])):
        return _Choice(first, tensor, 1.0, numbers[1] == 0)
    if tensors[1] and (numbers[0] == 0 or (numbers[0] is not None and not tensors[0])):
        return _Choice(second, tensor, 0.0, numbers[0] == 0)
    return _Choice(first, tensor, 1.0, is_zero=False, is_mixed=True) if all(tensors) else None


def _assigned(operation: Operation, tags: Mapping[int, Any]) -> _Choice | None:
    source, index, value = operation.args
    tensor = _mask_among(index if isinstance(index, tuple) else (index,), tags)
    if tensor is None or tensor.dtype != torch.bool or not source.is_floating_point():
        return None
    is_number = not isinstance(value, Tensor) or value.dim() == 0
    return _Choice(source, tensor, 0.0, is_number and constant(value) == 0, not is_number)


def _mixed(operation: Operation, tags: Mapping[int, Any]) -> _Choice | None:
    tensor = _mask_among(operation.operands, tags)
    others = [one for one in operation.operands if isinstance(one, Tensor) and id(one) not in tags]
    source = next((one for one in others if one.is_floating_point()), None)
    return None if tensor is None or source is None else _Choice(source, tensor, 1.0, is_mixed=True)


_CHOICES: Mapping[Rule, Callable[[Operation, Mapping[int, Any]], _Choice | None]] = {
    Rule.FILL: _filled,
    Rule.CHOOSE: _chosen,
    Rule.ASSIGN: _assigned,
    Rule.MIX: _mixed,
}


def _base(choice: _Choice, p: float | None, of_input: Any, is_counted: bool) -> tuple[Tensor | None, bool]:
    """Return what stands for the input where nothing is dropped, and whether survivors are scaled."""
    factor = choice.survivor or 1.0
    if is_counted or _restores_mean(factor, p):
        return choice.input, True
    if isinstance(of_input, _Scaled) and _restores_mean(factor * of_input.factor, p):
        return of_input.source, True
    return choice.input if factor == 1 and not choice.is_mixed else None, False


def _restores_mean(factor: float, p: float | None) -> bool:
    return p is not None and p < 1 and math.isclose(factor * (1 - p), 1, rel_tol=1e-3)


def _is_number(value: Any, beside: Tensor) -> bool:
    return not isinstance(value, Tensor) or value.dim() == 0 or (value.numel() == 1 < beside.numel())


def _power(operation: Operation, number: float) -> float:
    """Return the factor that a product, or a quotient by a number, multiplies with."""
    if operation.rule is Rule.MULTIPLY:
        return number
    return 1 / number if number else math.inf


def _scaled(operation: Operation, source: Tensor, number: float | None) -> _Scaled | None:
    if number is None or (source is not operation.operands[0] and operation.rule is Rule.DIVIDE):
        return None
    factor = _power(operation, number)
    return _Scaled(source if operation.target is None else None, factor) if 1 < factor < math.inf else None


def _note_read(tag: Any) -> None:
    if isinstance(tag, _Random):
        tag.mask.is_read = True


def _joined(tag: Any, survivor: float | None = None) -> Any:
    """Return the tag of a mask that was combined with what is no draw."""
    if not isinstance(tag, _Random) or not isinstance(tag.values, Discrete):
        return None
    tag.mask.is_combined = True
    return replace(tag, values=tag.values.unlike(survivor))


def _followed(operation: Operation, source: Tensor, tag: Any, result: Any) -> Any:
    """Return the tag of what a function makes of a tagged tensor, or None."""
    rule = operation.rule
    if isinstance(tag, _Applied):
        return _Applied(tag.application) if rule in (Rule.SAME, Rule.CAST) and tag.factor == 1 else None
    if isinstance(tag, _Count):
        return tag if rule in (Rule.SAME, Rule.CAST, Rule.PLAIN, Rule.MULTIPLY, Rule.DIVIDE) else None
    if isinstance(tag, _Scaled):
        return None
    if rule is Rule.COUNT:
        _note_read(tag)
        return _Count(tag.mask)
    if rule is Rule.POOL:
        tag.mask.is_pooled = True
    elif rule is Rule.LOGIC and len([one for one in operation.operands if isinstance(one, Tensor)]) > 1:
        tag.mask.is_combined = True
    if tag.values is None:
        return _of_noise(operation, tag)
    values = image_of(operation, source, tag.values, result.dtype if isinstance(result, Tensor) else source.dtype)
    return None if values is None else replace(tag, values=values)


def _of_noise(operation: Operation, tag: _Random) -> _Random | None:
    """Return the tag of a function of noise that no mask is made of, unless comparison makes one."""
    tensors = [one for one in operation.operands if isinstance(one, Tensor) and one.dim()]
    if operation.rule is Rule.COMPARE:
        return replace(tag, values=Discrete((0.0, 1.0), (math.nan, math.nan)))
    return tag if len(tensors) == 1 or operation.rule in (Rule.SAME, Rule.CAST, Rule.INDEX) else None


def _nothing() -> None:
    return None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
