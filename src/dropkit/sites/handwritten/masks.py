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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dropkit.sites.handwritten.applications import Application, Mask, is_doubtful, restores_mean
from dropkit.sites.handwritten.choices import Choice, find_choice
from dropkit.sites.handwritten.draws import Draw, find_draw
from dropkit.sites.handwritten.gradients import GRADIENT_HOOKS, has_own_gradient, held
from dropkit.sites.handwritten.operations import Operation, Rule, find_rule
from dropkit.sites.handwritten.tags import (
    Applied,
    Count,
    Difference,
    Random,
    Scaled,
    Tag,
    follow,
    follow_applied,
    joined,
    note_read,
)
from dropkit.sites.handwritten.values import Discrete, constant
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.places import Place

__all__ = ["Masks"]

_PRODUCTS = (Rule.MULTIPLY, Rule.DIVIDE)
_TAGGING = (*_PRODUCTS, Rule.SUBTRACT)  # which are noted of any tensor


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
        self.drawn: dict[str, Mask] = {}  # the last draw of each name
        self._places: dict[int, Any] = {}  # in memory, of random tensors
        self._halves: Any = WeakTensorKeyDictionary()  # what half of a tensor was dropped from, with that tensor

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
            values = draw.values
            mask = Mask(draw.place, is_idle=isinstance(values, Discrete) and values.is_sure)
            self.drawn[draw.place.name] = mask
            self._tag(result, Random(mask, values, False, draw.is_centred, draw.is_data))
            return result
        if function in GRADIENT_HOOKS:
            self._note_held(args[1:] or kwargs.values())
        rule = find_rule(function)
        if rule is None or not (self._tags.data or rule in _TAGGING) or kwargs.get("out") is not None:
            return function(*args, **kwargs)
        return self._followed(Operation(function, rule, args, kwargs))

    def _note_held(self, hooks: Iterable[Any]) -> None:
        """Note of masks that a hook on a gradient holds them, and may drop from that as well."""
        for tag in (self._tag_of(value) for hook in hooks for value in held(hook)):
            if isinstance(tag, Random):
                tag.mask.is_known = False

    def _tag(self, result: Any, tag: Tag | None) -> None:
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tag is not None:
                self._tags[tensor] = _version(tensor), tag
                if isinstance(tag, Random) and (place := _place(tensor)):
                    self._places = {place: known for place, known in self._places.items() if known() is not None}
                    self._places[place] = weakref.ref(tensor)

    def _tag_of(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        version, tag = self._tags.get(value, (None, None))
        if tag is None and self._places and (place := _place(value)):
            return self._tag_of_twin(value, place)
        return tag if version == _version(value) else None

    def _tag_of_twin(self, value: Tensor, place: int) -> Any:
        """Return the tag of a tensor that `torch.autograd.Variable`, which no mode sees, has made another one of."""
        known = self._places.get(place, _nothing)()
        if known is None or known.shape != value.shape or known.dtype != value.dtype:
            return None
        return self._tag_of(known)

    def _followed(self, operation: Operation) -> Any:
        """Run a call that random tensors are followed through, and tag its result."""
        tags = {id(value): tag for value in operation.operands if (tag := self._tag_of(value)) is not None}
        noisy = [one for one in operation.operands if isinstance(tag := tags.get(id(one)), Random) and tag.is_data]
        if operation.rule is Rule.SUBTRACT:
            self._note_flips(operation)
        if not noisy or operation.rule is Rule.COMPARE:
            return self._followed_by(operation, tags)
        known = {id(one): tags.pop(id(one)) for one in noisy if id(one) in tags}  # they are tensors of the model
        result = self._followed_by(operation, tags)
        if self._tag_of(result) is None:
            self._tag(result, follow(operation, noisy[0], known[id(noisy[0])], result))
        return result

    def _followed_by(self, operation: Operation, tags: dict[int, Any]) -> Any:
        """Run such a call, given the tags of its operands by their ids."""
        if operation.rule in _PRODUCTS:
            return self._product(operation, tags)
        if not tags:
            result = operation.run()
            self._tag(result, _difference(operation))
            return result
        choice = find_choice(operation, tags)
        if choice is not None:
            return self._applied(operation, tags, choice)
        result = operation.run()
        tagged = [value for value in operation.operands if id(value) in tags]
        source = next((value for value in tagged if isinstance(tags[id(value)], Random)), tagged[0])
        tag = tags[id(source)]
        if isinstance(tag, Applied):
            applied = [tags[id(value)] for value in tagged if isinstance(tags[id(value)], Applied)]
            for value in tagged:
                tag.meet(tags[id(value)])
            self._tag(result, follow_applied(operation, applied))
            return result
        if operation.rule is Rule.INDEX and source is not operation.args[0]:
            note_read(tag)
        elif operation.rule is Rule.ASSIGN:
            self._tag(operation.args[0], joined(tags.get(id(operation.args[0]))))
        elif not (operation.rule is Rule.SAME and source is not operation.args[0]):
            is_relative = any(isinstance(tags[id(value)], Count) for value in tagged)
            self._tag(result, follow(operation, source, tag, result, is_relative))
        return result

    def _note_halved(self, result: Any, mask: Mask, source: Tensor | None) -> None:
        """Note that half of a tensor was dropped and the other half doubled: less the tensor, that flips signs."""
        if mask.p == 0.5 and source is not None and isinstance(result, Tensor):
            self._halves[result] = _version(result), mask, weakref.ref(source)

    def _note_flips(self, operation: Operation) -> None:
        """Note of masks that they flip signs: ``x * mask * 2 - x``, which is no dropout of x."""
        tensors = [one for one in operation.operands if isinstance(one, Tensor)]
        for tensor in tensors if self._halves.data else ():
            version, mask, source = self._halves.get(tensor, (None, None, _nothing))
            if mask is not None and version == _version(tensor):
                mask.is_combined |= any(one is source() for one in tensors)

    def _product(self, operation: Operation, tags: Mapping[int, Any]) -> Any:
        """Run a product or a quotient: of a mask and a tensor, of what a mask was applied to, or of anything."""
        first, second = operation.operands[:2]
        pairs = [(second, first), (first, second)] if operation.rule is Rule.MULTIPLY else [(first, second)]
        for factor, other in pairs:
            if isinstance(tags.get(id(factor)), Random) and (id(other) in tags or not _is_number(other, factor)):
                return self._masked(operation, tags, factor, other)
        for factor, other in pairs:
            if isinstance(tag := tags.get(id(factor)), Applied):
                return self._rescaled(operation, factor, other, tag, tags.get(id(other)))
        result = operation.run()
        for factor, other in ((first, second), (second, first)):
            tag = tags.get(id(factor))
            if tag is not None and not isinstance(tag, Scaled):
                self._tag(result, follow(operation, factor, tag, result))
                return result
            is_source = factor is first or operation.rule is Rule.MULTIPLY
            if is_source and isinstance(factor, Tensor) and factor.is_floating_point():
                self._tag(result, _scaled(operation, factor, _factor(other, factor), tag))
        return result

    def _masked(self, operation: Operation, tags: Mapping[int, Any], factor: Tensor, other: Tensor) -> Any:
        """Run a product of a random tensor with a tensor."""
        tag, of_other = tags[id(factor)], tags.get(id(other))
        if not tag.is_mask:
            result = operation.run()
            is_data = operation.rule is Rule.MULTIPLY and not isinstance(of_other, Random | Count)
            of_noise = tag.times(other.shape, result) if is_data else replace(tag, values=None)
            self._tag(result, of_noise)  # noise, as it is in a reparameterisation, or noisy data
            return result
        if isinstance(of_other, Count) and of_other.is_share and of_other.mask is tag.mask:
            tag.mask.is_read = False
            result = operation.run()
            self._tag(result, replace(tag, is_counted=True))
            return result
        if isinstance(of_other, Random) and of_other.values is None:
            result = operation.run()
            self._tag(result, of_other)
            return result
        if operation.rule is Rule.DIVIDE or not (other.is_floating_point() or other.is_complex()):
            result = operation.run()
            self._tag(result, joined(tag, math.nan if operation.rule is Rule.DIVIDE else None))
            return result
        return self._applied(operation, tags, Choice(other, factor, tag.values.survivor))

    def _applied(self, operation: Operation, tags: Mapping[int, Any], choice: Choice) -> Any:
        """Let the handler decide of a mask that is applied."""
        tag, of_input = tags[id(choice.tensor)], tags.get(id(choice.input))
        values, mask = tag.values, tag.mask
        # Noise is no tensor of the model: a mask may be in the making.
        if isinstance(of_input, Random) and not (of_input.is_mask or choice.is_mixed):
            return operation.run()
        dropped = values.values.index(1.0 if choice.survivor == 0 else 0.0)
        p = values.chance(dropped)
        if p == 0:
            mask.is_idle = True
            return operation.run()
        mask.p = p
        mask.senses.add(dropped)
        mask.is_zero &= choice.is_zero
        mask.is_combined |= choice.is_mixed
        base, is_scaled = _base(choice, p, of_input, tag.is_counted)
        mask.is_scaled |= is_scaled
        mask.is_known &= base is not None and not has_own_gradient()
        difference = of_input.parts if isinstance(of_input, Difference) else ()
        application = Application(mask, operation, choice.input, choice.tensor, choice.survivor, p, base, difference)
        mask.is_whole |= application.is_whole
        result = self._apply(application)
        target = operation.target if operation.target is not None else result
        if is_scaled:
            self._note_halved(target, mask, base)
        if isinstance(of_input, Random):  # a mask of masks
            self._tag(target, of_input if application.is_skipped else joined(of_input))
        else:
            self._tag(target, _pending(of_input, None if is_scaled else application))
        return result

    def _rescaled(self, operation: Operation, value: Tensor, other: Any, tag: Applied, of_other: Any) -> Any:
        """Run a product of what a mask was applied to: the scale of survivors is left out where nothing is dropped."""
        counted = of_other.mask if isinstance(of_other, Count) and of_other.is_share else None
        number = None if isinstance(of_other, Applied | Count) else _factor(other, value)
        if not number and counted is None:
            tag.meet(of_other)
            result = operation.run()
            self._tag(result, tag.moved(is_far=True))
            return result
        factor, target = _power(operation, number or 1.0), operation.target
        if abs(factor) == 1 and counted is None:
            result = operation.run()
            self._tag(result, tag.moved())
            return result
        application, base = _restored(tag, value, factor, counted)
        if application is None or not tag.is_alone:
            result = operation.run()
            if application is not None:
                tag.refuse()
            else:
                self._tag(
                    result, tag.moved() if tag.is_far else tag.times(factor, None if target is not None else value)
                )
            return result
        application.mask.is_scaled = True
        application.mask.is_read &= counted is None
        if not application.is_skipped:
            result = operation.run()
        elif target is None:
            dtype = (
                torch.promote_types(base.dtype, other.dtype)
                if isinstance(other, Tensor) and other.dim()
                else base.dtype
            )
            result = base.to(dtype, copy=True)
        else:
            result = target if base is target else target.copy_(base)
        self._tag(result, tag.settled(application, base))
        self._note_halved(result, application.mask, application.base)
        return result


def _difference(operation: Operation) -> Difference | None:
    parts = [one for one in operation.operands if isinstance(one, Tensor) and one.dim()]
    if operation.rule is not Rule.SUBTRACT or operation.target is not None or len(parts) < 2:
        return None
    return Difference(tuple(map(weakref.ref, parts)))


def _pending(of_input: Any, application: Application | None) -> Applied | None:
    """Return the tag of what a mask was applied to, after others perhaps; None for one that scales by itself."""
    earlier = of_input if isinstance(of_input, Applied) and not of_input.is_far else Applied(())
    applications = earlier.applications if application is None else (*earlier.applications, application)
    return replace(earlier, applications=applications, base=None, factor=1.0) if applications else None


def _restored(tag: Applied, value: Tensor, factor: float, counted: Mask | None) -> tuple[Application | None, Any]:
    """Return the application that a factor makes up for, alone or with those before it, and what it would then be."""
    is_product = tag.base is not None
    for one in tag.applications:
        if counted is not None and one.mask is counted and not tag.is_far:
            return one, tag.base if is_product and tag.factor.is_integer() else value  # that many elements there are
        if counted is None and one.is_restored_by(factor):
            return one, value
    for one in tag.applications if is_product and counted is None else ():
        if one.is_restored_by(tag.factor * factor):
            return one, tag.base
    return None, None


def _base(choice: Choice, p: float | None, of_input: Any, is_counted: bool) -> tuple[Tensor | None, bool]:
    """Return what stands for the input where nothing is dropped, and whether survivors are scaled."""
    factor = choice.survivor or 1.0
    if is_counted or restores_mean(factor, p):
        return choice.input, True
    steps = of_input.steps if isinstance(of_input, Scaled) else ()
    for source, _, product in steps:
        if restores_mean(factor * product, p):
            return source, True
    if any(restores_mean(own, p) or is_doubtful(factor * product, p) for _, own, product in steps):
        return None, False
    return choice.input if factor == 1 and not choice.is_mixed else None, False


def _is_number(value: Any, beside: Tensor) -> bool:
    if not isinstance(value, Tensor):
        return True
    return not value.requires_grad and (value.dim() == 0 or value.numel() == 1 < beside.numel())


def _factor(value: Any, beside: Tensor) -> float | None:
    """Return the number that a tensor is multiplied with, also in all elements of a smaller one; None of others."""
    if not isinstance(value, Tensor) or _is_number(value, beside):
        return constant(value)
    is_wider = value.numel() >= beside.numel() or torch.broadcast_shapes(value.shape, beside.shape) != beside.shape
    return None if is_wider or isinstance(value, torch.nn.Parameter) else constant(value)


def _power(operation: Operation, number: float) -> float:
    """Return the factor that a product, or a quotient by a number, multiplies with."""
    if operation.rule is Rule.MULTIPLY:
        return number
    return 1 / number if number else math.inf


def _scaled(operation: Operation, source: Tensor, number: float | None, tag: Scaled | None) -> Scaled | None:
    """Return the tag of the product of a tensor with a number, or, if it has been scaled, with anything."""
    if number is None:
        return None if tag is None else tag.moved()
    factor, known = _power(operation, number), tag or Scaled()
    if not (known.steps or factor > 1) or math.isinf(factor) or not factor:
        return None
    return known.times(source if operation.target is None else None, factor)


def _nothing() -> None:
    return None


def _place(tensor: Tensor) -> int:
    """Return where in memory a tensor is; 0 of one that has no such place."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
