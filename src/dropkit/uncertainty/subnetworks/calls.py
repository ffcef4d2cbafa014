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
from dropkit.sites.handwritten.draws import find_draw
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
    """

    mask: Tensor
    rate: float


class _Calls(Handler):
    """Refuses noise that is no mask."""

    interceptor: Interceptor

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Let a call run that draws nothing."""
        if function is draw_key or find_call(function, args, kwargs, INFERENCE) is not None:
            _refuse(self.interceptor.place().name)
        draw = find_draw(function, args, kwargs, self.interceptor.random_place)
        return function(*args, **kwargs) if draw is None else _refuse(draw.place.name)


def _refuse(site: str, kind: str = "") -> NoReturn:
    what = f"the noise of site {site!r} is no mask that is drawn unit by unit at one rate"
    if kind in _RECURRENT:
        what = f"site {site!r} is dropout between the layers of {_RECURRENT[kind]}, whose masks exact cannot give"
    raise UnsupportedError(f"exact: {what}. {REMEDY}")


class Learner(_Calls):
    """Notes what every call of a forward draws."""

    def __init__(self) -> None:
        self.drawn: dict[Name, Drawn] = {}

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

    Attributes:
        masks: Masks by site and number of the call; None to drop nothing.
    """

    def __init__(self) -> None:
        self.masks: Mapping[Name, Tensor] | None = None
        self._unused: set[Name] = set()

    def start(self, masks: Mapping[Name, Tensor] | None) -> None:
        """Give other masks from the next forward on."""
        self.masks, self._unused = masks, set(masks or ())

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
