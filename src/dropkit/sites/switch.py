"""Switching sites on and off, whatever the mode of the model, and leaving everything else in its mode."""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import Module

from dropkit._checks import argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.nn.layer import SWITCH
from dropkit.sites.calls.functions import Call
from dropkit.sites.find import Site, Sites, _caller
from dropkit.sites.handwritten.applications import Application, Mask
from dropkit.sites.handwritten.draws import is_random
from dropkit.sites.interception.attachment import Attachment
from dropkit.sites.interception.names import runnable, unwrapped
from dropkit.sites.interception.places import Frame, Place
from dropkit.sites.interception.telling import warn
from dropkit.sites.interception.underneath import check_no_script
from dropkit.sites.switching.planning import planned
from dropkit.sites.switching.probe import Probe, renamed
from dropkit.sites.switching.rewriting import Plan, Rewriting
from dropkit.sites.switching.selection import Selection

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Switch", "switch"]


def switch(
    model: Module,
    mode: str,
    where: "str | Iterable[str] | Callable[[Site], bool] | None" = None,
    *,
    kind: str | Iterable[str] | None = None,
) -> "Switch":
    """Switch the dropout of a model on or off, or some of it, and leave all else in its mode.

    Every kind of site is reached: layers, functions, rates inside attention and recurrent networks, those of other
    libraries. Normalisation layers and everything else follow `train` and `eval` as before, so ``"on"`` in evaluation
    mode is Monte Carlo dropout, and ``"off"`` in training mode trains without noise.

    It holds at once, until it is closed: at the end of a ``with`` block, or by `Switch.close`. Of several that choose
    one site the one opened last decides, and ``"auto"`` there gives the site back to the model.

    The first forward runs the model three times more, on the same inputs, to learn its sites: once in training mode,
    once in evaluation mode, and once switched, to see that it works. A module that asks for no dropout in evaluation,
    such as one that calls attention with a rate of 0, then sees the wanted mode in its own forward; its children do
    not. That leaves the model and all random generators as they were. A module that first runs later is learned then.
    A rate that is 0 at that time is no site. Keep one switch open over a loop, rather than one for each pass.

    Args:
        model: The model, in either mode, wrapped or not.
        mode: ``"on"``, ``"off"``, or ``"auto"`` to leave sites to the model.
        where: Shell-style pattern, or several, of which one must match the name of the site, as `find` prints it, or
            that of its module; or a function that takes a `Site` and tells whether it is meant. Default: all sites.
        kind: The kind that a site must have, such as ``"lstm"``, or several. Default: any.

    Returns:
        The open switch, which is also a context manager.

    Raises:
        ArgumentError: If `mode` is unknown; at the first forward, if no site is chosen.
        ArgumentTypeError: If something has a wrong type.
        UnsupportedError: If the model is a TorchScript module that draws dropout; at the first forward, if a module
            cannot be switched without other effects.

    Examples:
        >>> import torch, dropkit
        >>> layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> x = torch.ones(2, 4)
        >>> with dropkit.sites.switch(model, "on"):
        ...     samples = torch.stack([model(x) for _ in range(100)])
        >>> bool((samples.std(0) > 0).all()), model.training, int(model[1].num_batches_tracked)
        (True, False, 0)

        >>> handle = dropkit.sites.switch(model.train(), "off", where="2")
        >>> bool((model(x) == 0).any())
        False
        >>> handle.close()

    References:
        Gal and Ghahramani (2016), "Dropout as a Bayesian approximation: representing model uncertainty in deep
        learning", section 4, for dropout that stays on when a model predicts.
    """
    if not isinstance(model, Module):
        raise argument_type_error("switch", "model", "a torch.nn.Module", model)
    mode, selection = SWITCH.check("switch", "mode", mode), Selection.of("switch", where, kind)
    check_no_script("switch", model, is_nested_allowed=True)  # of those its first forward tells
    return Switch(model, mode, selection)


class Switch(Rewriting):
    """The handle of a switch: it holds until it is closed, and closes at the end of a ``with`` block.

    It is made by `switch`.
    """

    def __init__(self, model: Module, mode: str, selection: Selection) -> None:
        super().__init__(mode)
        self._selection, self._inner = selection, weakref.ref(unwrapped(model))
        self._runnable = weakref.ref(runnable(model))
        self._probed: set[str] = set()
        self._has_drawn = False
        self._late: dict[str, tuple[Mask, Site]] = {}  # masks of the forward that runs, which no probe has met
        self._newer: list[Switch] = []
        self._attachment = Attachment(unwrapped(model), self)
        self._names = self._attachment.interceptor.names
        self._parts = {name: part for part, name in self._names.items()}
        self._hook = None
        if model is not self._runnable():  # a compiled model runs hooks of its own outside of what is compiled
            hook = _Learning(self._learn_first)
            self._hook = model.register_forward_pre_hook(hook, with_kwargs=True)
        self._is_open = True
        for older in list(_open.values()):
            if older._inner() is not None and not older._names.keys().isdisjoint(self._names):
                older._newer.append(self)
        self._number = next(_numbers)
        _open[self._number] = self

    @property
    def sites(self) -> Sites:
        """The sites that it switches, as far as they are known: none before the first forward."""
        found = (site for name, site in self.known.items() if name in self.chosen - self.plan.stuck)
        return Sites(found, "no site is switched" if self._probed else _UNKNOWN)

    @property
    def unswitched(self) -> Sites:
        """The sites that it was asked to switch, and cannot."""
        found = (site for name, site in self.known.items() if name in self.plan.stuck)
        return Sites(found, "every site that was chosen is switched" if self._probed else _UNKNOWN)

    def learn(self, *args: Any, **kwargs: Any) -> None:
        """Run the model on inputs of your choice to learn its sites, which else its first forward does on its own.

        Args:
            *args: What its forward takes, in training and in evaluation mode.
            **kwargs: The same, by name.

        Raises:
            ArgumentError: If no site is chosen.
            UnsupportedError: If the switch is closed, or a module cannot be switched without other effects.
        """
        model = self._runnable()
        if not self._is_open or model is None:
            raise _closed("learn")
        self._learn(model, args, kwargs)

    def close(self) -> None:
        """Give the sites back to the model, or to the switches that were opened before and are open still."""
        if not self._is_open:
            return
        self._is_open = False
        self._attachment.remove()
        if self._hook is not None:
            self._hook.remove()
        _open.pop(self._number, None)
        for older in list(_open.values()):
            if self in older._newer:
                older._newer.remove(self)

    def __enter__(self) -> Self:
        """Return the open switch."""
        if not self._is_open:
            raise _closed("a with block")
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def decides(self, name: str) -> bool:
        """Whether it switches a site: if it chose it, and no switch that was opened later did."""
        if name not in self.chosen:
            return False
        path = self.known[name].path
        part, suffix = self._parts[path], name.removeprefix(path)
        return not any(other.covers(part, suffix) for other in self._newer)

    def covers(self, part: int, suffix: str) -> bool:
        """Whether it chose a site of a module, whatever that is called in another model that it is part of."""
        path = self._names.get(part)
        return path is not None and path + suffix in self.chosen

    def dropout(self, place: Place, call: Call) -> Any:
        """Run a call as it is wanted."""
        if renamed(place, self.plan.names) not in self.known and call.switched(True).is_active:
            self._meet(place, call)
        return call.run() if self.mode == "auto" else super().dropout(place, call)

    @_disable_dynamo
    def _meet(self, place: Place, call: Call) -> None:
        """Note a site that no probe has met, as in a branch that is taken seldom."""
        if _is_compiled():  # and has been switched when it was traced
            return
        file, line = _caller(place.module)
        p = None if isinstance(call.p, Tensor) else call.p
        shape, kind = tuple(call.input.shape), call.function.kind
        site = Site(place.name, place.path, kind, p, True, False, file, line, shape, call.shared, 1)
        self.known[site.name] = site
        if site in self._selection:
            self.chosen.add(site.name)

    def _follows(self, function: Callable[..., Any]) -> bool:
        """Follow masks that are to be off from the first draw on, to tell those that begin to drop later."""
        if self.mode != "off" or torch.compiler.is_compiling():
            return False
        self._has_drawn = self._has_drawn or is_random(function)
        return self._has_drawn

    def _apply(self, application: Application) -> Any:
        place = application.place
        name = renamed(place, self.plan.names)
        if self.mode == "off" and name not in self.known and name not in self._late:
            file, line = _caller(place.module)
            shape, mask = tuple(application.input.shape), application.mask
            site = Site(name, place.path, "mask", mask.p, True, False, file, line, shape, application.shared, 1)
            self._late[name] = mask, site
        return super()._apply(application)

    def left(self, frame: Frame, output: Any) -> None:
        """Let modules see their mode again; after the outermost, tell of masks that have begun to drop."""
        super().left(frame, output)
        if self._flips or not self._late:
            return
        sites = [site for mask, site in self._late.values() if mask.is_dropout and site in self._selection]
        self._late.clear()
        if sites:
            self.known |= {site.name: site for site in sites}
            self.chosen |= {site.name for site in sites}
            self.plan = replace(self.plan, stuck=self.plan.stuck | {site.name for site in sites})
            names = ", ".join(site.name for site in sites)
            remedy = "Call the switch's `learn`, or open a new one."
            message = f"switch: these masks began to drop after it learned their modules, and are not off: {names}."
            warn(f"{message} {remedy}")

    def begin(self, module: Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Learn what a module does, before it runs for the first time."""
        if self._names[id(module)] not in self._probed:
            self._learn(module, inputs, named)

    @_disable_dynamo
    def _learn_first(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        model = self._runnable()
        if model is not None and "" not in self._probed:
            self._learn(model, inputs, named)

    @_disable_dynamo
    def _learn(self, module: Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        model = self._inner()
        if model is None:  # a part of it, which somebody still has
            return
        probe = Probe(model, module, inputs, named)
        sites = {name: site for name, site in probe.sites.items() if site.is_certain}
        chosen = {name for name, site in sites.items() if site in self._selection}
        if unwrapped(module) is model and not chosen:
            if not self._selection.is_all:
                raise self._selection.mismatch("switch", sites.values())
            if self.mode == "on":
                warn("switch: nothing in this model drops, so there is nothing to switch on.")
            elif self.mode == "off" and probe.sites:
                names = ", ".join(probe.sites)
                warn(f"switch: nothing in this model surely is dropout; what only may be is left alone: {names}.")
        plan = planned(probe, self.mode, chosen) if chosen and self.mode != "auto" else Plan(names=probe.names)
        if plan.stuck:
            names = ", ".join(f"{name} ({sites[name].kind})" for name in sites if name in plan.stuck)
            message = f"switch: these sites cannot be switched {self.mode!r} and stay as they are: {names}."
            warn(message)
        self.known |= probe.sites
        self.chosen |= chosen
        self.plan = replace(self.plan, stuck=self.plan.stuck - sites.keys()).joined(plan)
        self._probed |= probe.known

    def __repr__(self) -> str:
        """Show the mode, and how many sites are known to be switched."""
        return f"Switch({self.mode!r}, {len(self.sites)} sites{'' if self._is_open else ', closed'})"


_UNKNOWN = "no site is known before the first forward"
_numbers = count()
_open: "weakref.WeakValueDictionary[int, Switch]" = weakref.WeakValueDictionary()


def _is_compiled() -> bool:
    """Tell whether the call is one of a graph that a compiler has written."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith("<eval_with_key>"):
        frame = frame.f_back
    return frame is not None


def _closed(what: str) -> UnsupportedError:
    remedy = "Open another."
    return UnsupportedError(f"switch: {what} was asked of a switch that is closed, or whose model is gone. {remedy}")


class _Learning:
    """A hook that lets a switch learn outside of compiled code; a copy of the model does without."""

    def __init__(self, act: Callable[..., None] | None) -> None:
        self.act = act

    def __call__(self, module: Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        if self.act is not None:
            self.act(inputs, named)

    def __deepcopy__(self, memo: Any) -> "_Learning":
        return _Learning(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Learning, (None,)
