"""Calls that draw masks: what they draw, and the same calls with masks that are given, or with nothing dropped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.functional.address import draw_key
from dropkit.random import threshold
from dropkit.sites.calls.functions import INFERENCE, Call, find_call
from dropkit.sites.calls.replacement import replaced, replacement
from dropkit.sites.handwritten.applications import Application, Mask
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.handwritten.values import Discrete, Uniform, Values
from dropkit.sites.interception.interceptor import Handler, Interceptor
from dropkit.sites.interception.places import Place

__all__ = ["REMEDY", "Drawn", "Learner", "Name", "Replay"]

Name = tuple[str, int]  # of a site, and the number of the call

REMEDY = "Sample instead: dropkit.uncertainty.mc."

_DEPENDENT = ("drop_block1d", "drop_block2d", "drop_block3d")  # whose masks' elements fall together
_RECURRENT = {"lstm": "an LSTM", "gru": "a GRU", "rnn_tanh": "an RNN", "rnn_relu": "an RNN"}  # with one mask a layer


@dataclass(frozen=True)
class Drawn:
    """What a call has drawn.

    Args:
        mask: The mask, True = kept.
        rate: The realised rate.
        drops_least: Of a mask drawn by hand, whether it drops where the draw is least, and not where it is greatest.
    """

    mask: Tensor
    rate: float
    drops_least: bool = True


class _Calls(Handler):
    """Refuses noise that is no mask."""

    interceptor: Interceptor

    def __init__(self) -> None:
        self._masks = Masks(self, draw=self.draw, apply=self.apply)

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Let a call run that draws nothing, and follow draws by hand to where they drop."""
        if function is draw_key or find_call(function, args, kwargs, INFERENCE) is not None:
            _refuse(self.interceptor.place().name)
        return self._masks.call(function, args, kwargs)

    def draw(self, draw: Draw) -> Any:
        """Return what a random operator shall return."""

    def apply(self, application: Application) -> Any:
        """Return what the application of a mask drawn by hand shall return."""


def _refuse(site: str, kind: str = "") -> NoReturn:
    what = f"the noise of site {site!r} is no mask that is drawn unit by unit at one rate"
    if kind in _RECURRENT:
        what = f"site {site!r} is dropout between the layers of {_RECURRENT[kind]}, whose masks exact cannot give"
    raise UnsupportedError(f"exact: {what}. {REMEDY}")


def _refuse_by_hand(site: str) -> NoReturn:
    what = f"site {site!r} is a mask drawn by hand whose units, or their rate, cannot be told"
    raise UnsupportedError(
        f"exact: {what}. Drop by dropkit.nn.Dropout or dropkit.nn.DropPath in its place. Or sample: "
        "dropkit.uncertainty.mc."
    )


def _least_beyond(values: Values, chance: float) -> float:
    """Return the least value of a draw that is above others of some probability together."""
    if isinstance(values, Discrete):
        count = len(values.values)
        return values.values[1 if count == 2 else min(round(chance * count), count - 1)]
    return values.low + chance * (values.high - values.low)


class Learner(_Calls):
    """Notes what every call of a forward draws."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[Name, Drawn] = {}
        self._results: dict[Name, tuple[Tensor, Values]] = {}  # of draws by hand, and what their elements may be
        self._by_hand: dict[Name, Mask] = {}

    def draw(self, draw: Draw) -> Any:
        """Draw, if a mask may come of it."""
        values = draw.values
        if values is None or not draw.has_address or (isinstance(values, Uniform) and not values.is_known):
            _refuse(draw.place.name)
        result = draw.run()
        self._results[draw.place.name, draw.place.run] = result.clone(), values
        return result

    def apply(self, application: Application) -> Any:
        """Apply a mask that was drawn by hand, and note its units and its rate."""
        mask, name = application.mask, (application.place.name, application.place.run)
        known, rate = self.drawn.get(name), application.p
        if rate is None or (known is not None and known.rate != rate) or name not in self._results:
            _refuse_by_hand(name[0])
        result, values = self._results[name]
        drops_least = 0 in mask.senses
        is_greatest = result >= _least_beyond(values, rate if drops_least else 1 - rate)
        self.drawn[name] = Drawn(is_greatest if drops_least else ~is_greatest, rate, drops_least)
        self._by_hand[name] = mask
        return application.run()

    @property
    def by_hand(self) -> bool:
        """Whether a mask was drawn by hand."""
        return bool(self._by_hand)

    def check(self) -> None:
        """Raise if a draw did not become a mask, or not surely dropout."""
        for name in self._results:
            if name not in self._by_hand:
                _refuse(name[0])
            if not self._by_hand[name].is_dropout:
                _refuse_by_hand(name[0])

    def dropout(self, place: Place, call: Call) -> Any:
        """Run a call, and note its mask and its rate."""
        if not call.is_active:
            return call.run()
        if not _has_mask(call):
            _refuse(place.name, call.function.kind)
        result, mask = replaced(call, return_mask=True, order=place.order)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            _refuse(place.name, call.function.kind)
        self.drawn[place.name, place.run] = Drawn(mask, threshold(float(call.p)) / 2**32)
        return result


def _has_mask(call: Call) -> bool:
    """Tell whether a call has a mask, of elements that are drawn one by one at one rate."""
    is_one_rate = not isinstance(call.p, Tensor) or call.p.numel() == 1
    own = replacement(call)
    return (
        own is not None
        and own.function.returned is not None
        and call.p is not None
        and is_one_rate
        and own.function.kind not in _DEPENDENT
    )


class Replay(_Calls):
    """Gives every call the mask of a subnetwork, or drops nothing.

    Args:
        drawn: What calls draw.

    Attributes:
        masks: Masks by site and number of the call; None to drop nothing.
    """

    def __init__(self, drawn: Mapping[Name, Drawn]) -> None:
        super().__init__()
        self.masks: Mapping[Name, Tensor] | None = None
        self._drawn = drawn
        self._unused: set[Name] = set()

    def start(self, masks: Mapping[Name, Tensor] | None) -> None:
        """Give other masks from the next forward on."""
        self.masks, self._unused = masks, set(masks or ())

    def draw(self, draw: Draw) -> Any:
        """Return the least or the greatest that a random operator draws, as the mask demands that is made of it."""
        name, result = (draw.place.name, draw.place.run), draw.run()
        if self.masks is None:
            return result
        mask, values = self.masks.get(name), draw.values
        if mask is None or values is None or mask.shape != result.shape:
            raise _varying(name[0])
        self._unused.discard(name)
        ends = (values.low, values.high) if isinstance(values, Uniform) else (values.values[0], values.values[-1])
        least, greatest = (torch.tensor(end, dtype=result.dtype, device=result.device) for end in ends)
        if isinstance(values, Uniform):
            greatest = torch.nextafter(greatest, least)
        is_greatest = mask if self._drawn[name].drops_least else ~mask
        return result.copy_(torch.where(is_greatest, greatest, least))

    def apply(self, application: Application) -> Any:
        """Apply a mask, or drop nothing."""
        if self.masks is None:
            return application.undropped()
        mask, kept = self.masks[application.place.name, application.place.run], application.kept
        if int(kept.sum()) * mask.numel() != int(mask.sum()) * kept.numel():  # of a mask that is not one of those ends
            _refuse_by_hand(application.place.name)
        return application.run()

    def dropout(self, place: Place, call: Call) -> Any:
        """Run a call as the subnetwork does."""
        if not call.is_active:
            return call.run()
        if self.masks is None:
            return call.switched(False).run()
        mask = self.masks.get((place.name, place.run))
        if mask is None:
            raise _varying(place.name)
        self._unused.discard((place.name, place.run))
        try:
            return replaced(call, mask=mask, order=place.order)
        except ArgumentError as error:
            raise _varying(place.name) from error

    def check(self) -> None:
        """Raise if a mask was not asked for."""
        for site, _ in sorted(self._unused):
            raise _varying(site)


def _varying(site: str) -> UnsupportedError:
    return UnsupportedError(
        f"exact: how often {site!r} drops, or what, depends on the data or on how many subnetworks run together. "
        f"{REMEDY}"
    )
