"""Rates that change over training: pure schedules, from a step to a rate, and the handle that moves layers by them.

A schedule is any function of the step, and the classes here are such functions. The handle owns the step and is
saved apart: a model has the same `state_dict` with it and without.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Choice, Integer, Number, argument_error, argument_type_error
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.functional import linear_rates
from dropkit.nn.layer import RateMixin
from dropkit.nn.rates import RatesMixin

__all__ = ["Constant", "Early", "Late", "Linear", "RateScheduler", "Schedule", "linear_rates"]

Schedule = Callable[[int], float]
_Layer = RateMixin | RatesMixin

_STEPS = Integer(1, 2**53, "[1, 2**53]")
_STEP = Integer(0, 2**53, "[0, 2**53]")
_WHERE = "RateScheduler"
_LAYERS = "a module with layers of dropkit.nn, or several such layers"


def _settle(schedule: object, **fields: Number | Integer) -> None:
    """Check the fields of a schedule that is being made, and keep them as plain numbers."""
    for name, constraint in fields.items():
        value = constraint.check(type(schedule).__name__, name, getattr(schedule, name))
        object.__setattr__(schedule, name, value)


@dataclass(frozen=True)
class Constant:
    """One rate at all steps.

    Args:
        p: The rate, in ``[0, 1]``.

    Raises:
        ArgumentError: If the rate is no number in ``[0, 1]``.

    Examples:
        >>> from dropkit.schedules import Constant
        >>> [Constant(0.5)(step) for step in range(3)]
        [0.5, 0.5, 0.5]
    """

    p: float

    def __post_init__(self) -> None:
        _settle(self, p=PROBABILITY)

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0."""
        _STEP.check("Constant", "step", step)
        return self.p


@dataclass(frozen=True)
class Linear:
    """From one rate to another in equal steps, both reached exactly, and constant from there on.

    The rates of the first `steps` steps are those of ``numpy.linspace(start, stop, steps)``.

    Args:
        start: The rate of step 0, in ``[0, 1]``.
        stop: The rate of step ``steps - 1`` and of all later ones, in ``[0, 1]``.
        steps: How many steps the way takes, 1 or more. One step has `start`, and all later ones `stop`.

    Raises:
        ArgumentError: If a rate is no number in ``[0, 1]`` or `steps` is not positive.
        ArgumentTypeError: If `steps` is no integer.

    Examples:
        >>> from dropkit.schedules import Linear
        >>> [Linear(0.0, 0.5, steps=3)(step) for step in range(5)]
        [0.0, 0.25, 0.5, 0.5, 0.5]
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _settle(self, start=PROBABILITY, stop=PROBABILITY, steps=_STEPS)

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0."""
        step = _STEP.check("Linear", "step", step)
        if step == 0:
            return self.start
        if step >= self.steps - 1:
            return self.stop
        return step * ((self.stop - self.start) / (self.steps - 1)) + self.start


@dataclass(frozen=True)
class Early:
    """A rate that falls linearly to 0 over the first steps; then dropout is off, and the network fits freely.

    For networks that underfit: less noise between the gradients of batches while training begins.

    Args:
        p: The rate of step 0, in ``[0, 1]``.
        steps: How many steps have dropout, 1 or more; of two and more the last has the rate 0 already, as in the
            authors' code.

    Raises:
        ArgumentError: If the rate is no number in ``[0, 1]`` or `steps` is not positive.
        ArgumentTypeError: If `steps` is no integer.

    Examples:
        >>> from dropkit.schedules import Early
        >>> [Early(0.5, steps=3)(step) for step in range(5)]
        [0.5, 0.25, 0.0, 0.0, 0.0]

    References:
        Liu, Xu, Jin, Shen and Darrell (2023), "Dropout reduces underfitting", section 4, early dropout, with the linear
        decrease of the authors' code; there 50 of 300 epochs, a rate a step.
    """

    p: float
    steps: int

    def __post_init__(self) -> None:
        _settle(self, p=PROBABILITY, steps=_STEPS)

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0."""
        return Linear(self.p, 0.0, self.steps)(_STEP.check("Early", "step", step))


@dataclass(frozen=True)
class Late:
    """No dropout in the first steps, then a constant rate.

    For networks that overfit late: they find their way undisturbed, and are regularised from then on.

    Args:
        p: The rate of step `steps` and of all later ones, in ``[0, 1]``.
        steps: How many steps have no dropout, 1 or more.

    Raises:
        ArgumentError: If the rate is no number in ``[0, 1]`` or `steps` is not positive.
        ArgumentTypeError: If `steps` is no integer.

    Examples:
        >>> from dropkit.schedules import Late
        >>> [Late(0.5, steps=3)(step) for step in range(5)]
        [0.0, 0.0, 0.0, 0.5, 0.5]

    References:
        Liu, Xu, Jin, Shen and Darrell (2023), "Dropout reduces underfitting", section 4, late dropout.
    """

    p: float
    steps: int

    def __post_init__(self) -> None:
        _settle(self, p=PROBABILITY, steps=_STEPS)

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0."""
        return 0.0 if _STEP.check("Late", "step", step) < self.steps else self.p


class RateScheduler:
    """Moves the rates of layers by a schedule, and is stepped like a learning-rate scheduler of PyTorch.

    Of a layer that has several rates, such as `dropkit.nn.LSTM`, those move that are not 0, or the one that is named.

    Making one sets the rates of step 0. From then on the layers keep their rates in tensors, so that `torch.compile`
    compiles one graph for all steps: make it before the first compiled call. The model's `state_dict` neither gains
    nor loses a key; the handle has its own, and a run that loads both goes on as if it had never stopped. A deep copy
    of the model keeps the rates it had and is moved by no handle; copy both at once to copy the link.

    Args:
        layers: A module, all of whose layers of `dropkit.nn` follow; or several layers, each alone or in a pair with
            the name of its rate, such as ``(lstm, "recurrent_p")``.
        schedule: From a step, counted from 0, to a rate: a class of this file, or any function. Or several, one a
            rate in order, such as ``[Linear(0.0, p, 1000) for p in linear_rates(0.2, depth=12)]``.

    Raises:
        ArgumentError: If there are no such layers, a rate comes twice, schedules are not as many as rates, or a rate
            is none that its layer takes. Nothing has changed then.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch
        >>> from dropkit.nn import Dropout
        >>> from dropkit.schedules import Linear, RateScheduler
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), Dropout(), torch.nn.Linear(8, 8), Dropout())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scheduler = RateScheduler(model, Linear(0.0, 0.5, steps=3))
        >>> for step in range(2):
        ...     model(torch.ones(2, 4)).sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> scheduler.last_step, scheduler.rates()
        (2, [0.5, 0.5])
        >>> scheduler.state_dict()
        {'last_step': 2}

        An optimizer can step it too, once for each update that is really applied:

        >>> hook = optimizer.register_step_post_hook(lambda *_: scheduler.step())
    """

    def __init__(
        self,
        layers: torch.nn.Module | Iterable[torch.nn.Module | tuple[torch.nn.Module, str]],
        schedule: Schedule | Sequence[Schedule],
    ) -> None:
        self._rates = _find_rates(layers)
        self._schedules = _find_schedules(schedule, len(self._rates))
        self._attached = True
        self._move(0)

    @property
    def last_step(self) -> int:
        """The step whose rates the layers have."""
        return self._last_step

    @property
    def targets(self) -> tuple[tuple[torch.nn.Module, str], ...]:
        """What is moved, in order: layers and the names of their rates."""
        return self._rates

    def rates(self) -> list[float]:
        """Return the rates, in the order of `targets`, each a multiple of ``2**-32``."""
        return [getattr(layer, name) for layer, name in self._rates]

    def step(self) -> None:
        """Set the rates of the next step, to be called once for each update of the weights.

        Raises:
            ArgumentError: If the schedule gives a rate that its layer does not take; nothing has changed then.
            UnsupportedError: After `detach`.
        """
        self._move(self._last_step + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be saved to go on: the step. The schedule is code, and is given again."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the rates of a saved step.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ArgumentError: If it has other keys, or a rate does not fit; nothing has changed then.
            ArgumentTypeError: If it is no mapping, or the step is no integer.
            UnsupportedError: After `detach`.
        """
        where, rule = "RateScheduler.load_state_dict", "what RateScheduler.state_dict returned"
        if not isinstance(state_dict, Mapping):
            raise argument_type_error(where, "state_dict", rule, state_dict)
        if set(state_dict) != {"last_step"}:
            remedy = "It has the one key 'last_step'; a model's own belongs to the model."
            raise argument_error(where, "state_dict", rule, sorted(map(str, state_dict)), remedy)
        self._move(_STEP.check(where, "state_dict['last_step']", state_dict["last_step"]))

    def detach(self) -> None:
        """Let the layers go: each keeps the rate it has, as a number again, and no step moves it any more."""
        for layer, name in self._rates if self._attached else ():
            layer.unfollow(*_names(layer, name))
        self._attached = False

    def _move(self, step: int) -> None:
        if not self._attached:
            raise UnsupportedError("RateScheduler: it was detached from its layers. Make a new one for them.")
        found = [_checked(schedule, step, *rate) for schedule, rate in zip(self._schedules, self._rates, strict=True)]
        for (layer, name), rate in zip(self._rates, found, strict=True):
            layer.follow(*_names(layer, name))
            setattr(layer, name, rate)
        self._last_step = step


def _names(layer: _Layer, name: str) -> tuple[str, ...]:
    """Return what `follow` and `unfollow` take: nothing, where a layer has one rate."""
    return () if isinstance(layer, RateMixin) else (name,)


def _checked(schedule: Schedule, step: int, layer: _Layer, name: str) -> float:
    """Return the rate of a step, which the layer must take."""
    domain = layer.RATE if isinstance(layer, RateMixin) else PROBABILITY
    return domain.check(type(layer).__name__, f"{name} at step {step}", schedule(step))


def _rates_of(layer: _Layer) -> list[tuple[_Layer, str]]:
    """Return a layer with each of its rates that are not 0, or follow already; one rate alone may be 0."""
    if isinstance(layer, RateMixin):
        return [(layer, "p")]
    return [(layer, name) for name, rate in layer.rates.items() if isinstance(rate, Tensor) or rate > 0]


def _find_rates(given: object) -> tuple[tuple[_Layer, str], ...]:
    """Return layers and the names of their rates, each once, or raise."""
    if isinstance(given, torch.nn.Module):
        layers = [module for module in given.modules() if isinstance(module, RateMixin | RatesMixin)]
        found = [rate for layer in layers for rate in _rates_of(layer)]
        if not found:
            plain = sum(isinstance(module, torch.nn.modules.dropout._DropoutNd) for module in given.modules())
            has = f"It has {plain} of torch.nn, which no schedule can move: use" if plain else "Give it"
            raise ArgumentError(
                f"{_WHERE}: `layers` must be {_LAYERS}, got a {type(given).__name__} that has none with a rate. {has} "
                "dropkit.nn.Dropout and its like, which take the same arguments."
            )
        return tuple(found)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise argument_type_error(_WHERE, "layers", _LAYERS, given)
    found = [rate for each in given for rate in _of_one(each)]
    if not found or len({(id(layer), name) for layer, name in found}) < len(found):
        raise argument_error(_WHERE, "layers", "one or more distinct layers that have a rate", given)
    return tuple(found)


def _of_one(given: object) -> list[tuple[_Layer, str]]:
    """Return the rates of a layer, or the one that a pair names."""
    layer, *names = given if isinstance(given, tuple) and len(given) == 2 else (given,)
    if not isinstance(layer, RateMixin | RatesMixin):
        remedy = "Layers of torch.nn cannot be moved: use those of dropkit.nn, which take the same arguments."
        raise argument_type_error(_WHERE, "layers", _LAYERS, layer, remedy)
    known = Choice(("p",) if isinstance(layer, RateMixin) else layer.RATES)
    found = [(layer, known.check(_WHERE, "layers", name)) for name in names] or _rates_of(layer)
    if not found:
        rule = "layers of which a rate is not 0, or is named"
        remedy = f"Name one in a pair, such as (layer, {known.options[-1]!r}): it has {', '.join(known.options)}."
        raise argument_error(_WHERE, "layers", rule, layer, remedy)
    return found


def _find_schedules(given: Schedule | Sequence[Schedule], count: int) -> tuple[Schedule, ...]:
    """Return one schedule a rate, or raise."""
    if callable(given):
        return (given,) * count
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or not all(map(callable, given)):
        remedy = "Such as Linear(0.0, 0.5, steps=1000), or lambda step: 0.5."
        raise argument_type_error(_WHERE, "schedule", "a function from a step to a rate, or one a rate", given, remedy)
    if len(given) != count:
        rule = f"one schedule, or {count}, one a rate"
        raise argument_error(_WHERE, "schedule", rule, given, f"There are {len(given)}.")
    return tuple(given)
