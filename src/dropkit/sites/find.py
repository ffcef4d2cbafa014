"""Finding every site of a model by running it."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from os import sep
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import set_stance
from torch.nn import Module
from torch.nn.parameter import is_lazy

from dropkit._checks import argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.functional.address import draw_key
from dropkit.nn.recurrent_base import RecurrentBase
from dropkit.sites.calls.functions import Call
from dropkit.sites.handwritten.applications import Application, Mask
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.interceptor import Handler, Interceptor
from dropkit.sites.interception.names import runnable
from dropkit.sites.interception.places import Place
from dropkit.sites.interception.restoring import cloned, normalisation_layers, restored, set_mode
from dropkit.sites.interception.underneath import Operator, Underneath, scripts_followed

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Site", "Sites", "find"]


@dataclass(frozen=True)
class Site:
    """One place of a model that draws dropout.

    Args:
        name: Its name, as the mask definition spells it.
        path: Name of the module whose forward draws.
        kind: What draws: a function, such as ``"dropout"``, ``"lstm"`` or ``"scaled_dot_product_attention"``, or a
            hand-written ``"mask"``.
        p: Probability of dropping, at the first call; None where it is learned or not known.
        in_train: Whether it drops when the model is in training mode.
        in_eval: Whether it drops when the model is in evaluation mode, as it should not.
        file: File of the code that draws; of the model's own, not of PyTorch's.
        line: Line in that file.
        shape: Shape of the tensor that it drops from, at the first call; -1 is the length of a ragged axis.
        shared: Axes of that tensor along which one draw is shared.
        calls: How often it was called in one forward.
        is_rewritable: Whether it can be switched and replaced.
        is_certain: Whether it surely is dropout; hand-written masks may only look like it.
    """

    name: str
    path: str
    kind: str
    p: float | None
    in_train: bool
    in_eval: bool
    file: str
    line: int
    shape: tuple[int, ...]
    shared: tuple[int, ...]
    calls: int
    is_rewritable: bool = True
    is_certain: bool = True


class Sites(list[Site]):
    """Sites in the order in which a forward meets them; printed, a table.

    Args:
        sites: The sites.
        empty: What is printed if there are none.
    """

    def __init__(self, sites: Iterable[Site] = (), empty: str = "no site: nothing in this model draws dropout") -> None:
        super().__init__(sites)
        self.empty = empty

    def __getitem__(self, index: Any) -> Any:
        """Return a site, or those of a slice, which print as a table too."""
        found = super().__getitem__(index)
        return Sites(found, self.empty) if isinstance(index, slice) else found

    def __str__(self) -> str:
        heads = ("site", "kind", "p", "train", "eval", "calls", "shape", "shared", "where")
        rows = [heads, *map(_cells, self)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [note for sign, note in _NOTES.items() if any(sign in _signs(site) for site in self)]
        return "\n".join(lines) if self else self.empty


_NOTES = {
    "?": "?  perhaps dropout: it looks like it, but may be another random choice; it is never switched",
    "!": "!  not rewritable: it is seen, but cannot be replaced, nor switched unless its module asks for the mode",
}


def _signs(site: Site) -> str:
    return ("" if site.is_certain else "?") + ("" if site.is_rewritable else "!")


def _cells(site: Site) -> tuple[str, ...]:
    return (
        site.name,
        site.kind + _signs(site),
        "?" if site.p is None else f"{site.p:g}",
        "on" if site.in_train else "off",
        "ON" if site.in_eval else "off",
        str(site.calls),
        "x".join("?" if size < 0 else str(size) for size in site.shape),
        ",".join(map(str, site.shared)) or "-",
        f"{Path(site.file).name}:{site.line}",
    )


def find(model: Module, *args: Any, **kwargs: Any) -> Sites:
    """Find every site of a model, by one forward in training mode and one in evaluation mode.

    Whatever draws dropout is seen: layers, functions, the rates inside attention and recurrent networks, and those of
    other libraries' models. The model, the arguments and all random generators are left as they were, also where a
    forward raises. Fused ways through attention and encoders are not taken meanwhile. Where examples are too few for
    BatchNorm in training mode, as one may be, normalisation layers are in evaluation mode there.

    Args:
        model: The model, in either mode, wrapped or not.
        *args: What its forward takes.
        **kwargs: The same, by name.

    Returns:
        A list of `Site`, which prints as a table; a rate of 0 is no site.

    Raises:
        ArgumentTypeError: If `model` is no module.
        UnsupportedError: If it has weights or buffers that its first forward will make.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))
        >>> [site] = dropkit.sites.find(model, torch.ones(5, 4))
        >>> site.name, site.kind, site.p, site.in_train, site.in_eval
        ('1', 'dropout', 0.3, True, False)
    """
    if not isinstance(model, Module):
        raise argument_type_error("find", "model", "a torch.nn.Module", model)
    model = runnable(model)
    _check_initialised(model)
    return _merged(_recorded_in_training(model, args, kwargs), _recorded(model, False, args, kwargs))


def _check_initialised(model: Module) -> None:
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(value):
            remedy = "Run one forward first."
            raise UnsupportedError(f"find: {name!r} has no shape before the model's first forward. {remedy}")


def _recorded_in_training(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Site]:
    """Return every call of a forward in training mode; what that raises goes on as it is."""
    try:
        return _recorded(model, True, args, kwargs)
    except ValueError:  # which normalisation raises of too few examples
        with suppress(Exception):
            if normalisation_layers(model):
                return _recorded(model, True, args, kwargs, normalises=False)
        raise


def _recorded(
    model: Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any], *, normalises: bool = True
) -> list[Site]:
    """Return every call of one forward, also those that do not drop; perhaps without normalising the batch."""
    recorder = _Recorder()
    with restored(model), attached(model, recorder, is_eager=True) as interceptor:  # noqa: SIM117  # too long for one
        with scripts_followed(interceptor), Underneath(recorder.underneath), set_stance("force_eager"):
            set_mode(model, training)
            for layer in () if normalises else normalisation_layers(model):
                layer.training = False
            given, named = cloned((args, kwargs))
            model(*given, **named)
    return recorder.found()


_RUNNERS = {_recorded.__code__}  # what runs a model: whoever calls it is none of the model's code


def _merged(train: list[Site], evaluation: list[Site]) -> Sites:
    """Return the sites of both modes, each once.

    The number in a name is not enough to tell that two calls are one: it is another where calls before it are made in
    training alone. So they are compared by what they are and by where in the code, and in their order there.
    """
    in_eval: dict[Any, list[Site]] = {}
    for site in evaluation:
        in_eval.setdefault(_code(site), []).append(site)
    found = []
    for site in train:
        twins = in_eval.get(_code(site))
        twin = twins.pop(0) if twins else None
        drops = twin is not None and twin.in_train
        shown = twin if drops and twin is not None and not site.in_train else site
        found.append(replace(shown, name=site.name, in_train=site.in_train, in_eval=drops))
    left = [replace(site, in_train=False, in_eval=site.in_train) for twins in in_eval.values() for site in twins]
    return Sites(site for site in found + left if site.in_train or site.in_eval)


def _code(site: Site) -> tuple[Any, ...]:
    return site.path, site.kind, site.file, site.line


class _Recorder(Handler):
    """Notes every call that draws dropout or is asked not to, and lets it run."""

    interceptor: Interceptor

    def __init__(self) -> None:
        self.masks = Masks(self, apply=self._apply)
        self._sites: dict[str, Site] = {}
        self._applied: dict[str, list[Mask]] = {}
        self._depth = 0  # of calls that are known, underneath which nothing is left to find

    def found(self) -> list[Site]:
        """Return the calls, now that it is known what became of every mask."""
        for name, masks in self._applied.items():
            self._sites[name] = replace(
                self._sites[name],
                calls=len(masks),
                is_certain=all(mask.is_dropout for mask in masks),
                is_rewritable=all(mask.is_switchable for mask in masks),
            )
        return list(self._sites.values())

    def known(self, place: Place) -> Place:
        """Return a place by the name that its site goes by."""
        return place

    def dropout(self, place: Place, call: Call) -> Any:
        rate = call.p if not isinstance(call.p, Tensor) or call.p.numel() != 1 else float(call.p)
        rate = None if isinstance(rate, Tensor) else rate
        self._note(place, call.function.kind, rate, call.input, call.shared, is_active=call.is_active)
        with self._known():
            return call.run()

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if function is draw_key:
            self._note_network(args[2])
        with self._known():
            return self.masks.call(function, args, kwargs)

    def _apply(self, application: Application) -> Any:
        """Note a hand-written mask, and apply it."""
        mask, place = application.mask, self.known(application.place)
        if self.interceptor.is_resumed:
            return application.run()
        known = self._applied.setdefault(place.name, [])
        if not known:
            self._note(application.place, "mask", mask.p, application.input, application.shared)
        if not any(mask is one for one in known):
            known.append(mask)
        return application.run()

    def underneath(self, operator: Operator) -> None:
        """Note a random operator that no known call has run."""
        if self._depth or self.interceptor.is_muted() or not self.interceptor.frames:
            return
        place = self.interceptor.random_place()
        if operator.kind is not None and operator.input is not None:
            self._note(place, operator.kind, operator.p, operator.input, is_rewritable=False)

    def _note_network(self, input: Tensor) -> None:
        """Note a network of dropkit's, whose layers' noise is that of one key; other layers go on to call functions."""
        module = self.interceptor.frames[-1].module
        if isinstance(module, RecurrentBase):
            rates = {rate for rate in module.rates.values() if isinstance(rate, Tensor) or rate > 0}
            rate = rates.pop() if len(rates) == 1 else None
            place = self.interceptor.place()
            self._note(place, module.mode.lower(), None if isinstance(rate, Tensor) else rate, input)

    @contextmanager
    def _known(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _note(
        self,
        place: Place,
        kind: str,
        p: float | None,
        input: Tensor,
        shared: tuple[int, ...] = (),
        *,
        is_active: bool = True,
        is_rewritable: bool = True,
    ) -> None:
        if self.interceptor.is_resumed:  # a checkpoint is recomputed, for a backward pass inside the forward
            return
        place = self.known(place)
        known = self._sites.get(place.name)
        if known is not None and (known.in_train or not is_active):
            self._sites[place.name] = replace(known, calls=known.calls + 1)
            return
        calls = 1 if known is None else known.calls + 1
        file, line = _caller(place.module)
        own = Site(
            place.name, place.path, kind, p, is_active, False, file, line, _shape(input), shared, calls, is_rewritable
        )
        self._sites[place.name] = own


def _shape(input: Tensor) -> tuple[int, ...]:
    """Return a shape, with -1 for the length of a ragged axis."""
    if not input.is_nested:
        return tuple(input.shape)
    if input.layout is torch.jagged:
        return tuple(size if isinstance(size, int) else -1 for size in input.shape)
    sizes = input._nested_tensor_size()
    same = (sizes == sizes[:1]).all(0)
    return (len(sizes), *(int(size) if whole else -1 for size, whole in zip(sizes[0], same, strict=True)))


_LIBRARIES = tuple(f"{Path(str(file)).parent}{sep}" for file in (torch.__file__, sys.modules["dropkit"].__file__))


def _caller(module: Module) -> tuple[str, int]:
    """Return file and line of the innermost code that is the model's own; else where PyTorch's module draws."""
    frame: FrameType | None = sys._getframe(2)
    inside = "", 0
    while frame is not None and frame.f_code not in _RUNNERS:
        place = frame.f_code.co_filename, frame.f_lineno
        if not place[0].startswith((*_LIBRARIES, "<")):
            return place
        if not inside[0] and frame.f_locals.get("self") is module:
            inside = place
        frame = frame.f_back
    return inside
