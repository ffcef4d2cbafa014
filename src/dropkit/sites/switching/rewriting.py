"""The handler that switches sites: it rewrites calls, and lets modules that gate their sites see another mode."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module

from dropkit.errors import UnsupportedError
from dropkit.nn.layer import NoiseMixin
from dropkit.sites.calls.functions import Call
from dropkit.sites.find import Site
from dropkit.sites.handwritten.applications import Application
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.places import Frame, Place
from dropkit.sites.switching.probe import renamed

__all__ = ["Plan", "Rewriting"]


@dataclass(frozen=True)
class Flip:
    """A module that sees another mode, until its forward ends.

    Args:
        module: The module.
        attribute: Its attribute that tells it whether to drop.
        before: What that was.
        wanted: What it is meanwhile.
    """

    module: Module
    attribute: str
    before: Any
    wanted: Any

    @classmethod
    def of(cls, module: Module, attribute: str, wanted: Any) -> "Flip":
        """Let a module see a mode."""
        flip = cls(module, attribute, getattr(module, attribute), wanted)
        flip.do()
        return flip

    def do(self) -> None:
        """Let the module see the wanted mode."""
        setattr(self.module, self.attribute, self.wanted)

    def undo(self) -> None:
        """Let it see its own again."""
        setattr(self.module, self.attribute, self.before)


@dataclass(frozen=True)
class Plan:
    """What has to be done besides rewriting calls.

    Args:
        gates: Of each module that has to see the wanted mode in its own forward, by its name, the sites that it gates.
        layers: Layers of dropkit's that draw chosen sites, by the sites' names; whatever reads their switches, such as
            a block that fuses them, sees the wanted mode during the whole forward.
        masks: Names of hand-written masks that are left out where they would be applied.
        stuck: Names of the chosen sites that stay as they are all the same.
        names: Names in evaluation mode of sites that have others in training mode, with those.
    """

    gates: Mapping[str, set[str]] = field(default_factory=dict)
    layers: Mapping[str, NoiseMixin] = field(default_factory=dict)
    masks: frozenset[str] = frozenset()
    stuck: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)

    def joined(self, other: "Plan") -> "Plan":
        """Return this plan and that of another part of the model."""
        gates = {
            name: self.gates.get(name, set()) | other.gates.get(name, set()) for name in {*self.gates, *other.gates}
        }
        return Plan(
            gates,
            {**self.layers, **other.layers},
            self.masks | other.masks,
            self.stuck | other.stuck,
            {**self.names, **other.names},
        )


class Rewriting(Handler):
    """Switches chosen sites.

    Args:
        mode: The wanted mode.
        known: What is known of sites, by name.
        chosen: Names of those that are switched.
        plan: What has to be done besides rewriting calls.
    """

    turn = 0

    def __init__(
        self, mode: str, known: Mapping[str, Site] | None = None, chosen: Iterable[str] = (), plan: Plan | None = None
    ) -> None:
        self.mode = mode
        self.known = dict(known or {})
        self.chosen = set(chosen)
        self.plan = plan or Plan()
        self._masks = Masks(self, self._draw, self._apply)
        self._flips: list[tuple[Frame, list[Flip]]] = []

    def decides(self, name: str) -> bool:
        """Whether it switches a site."""
        return name in self.chosen

    def dropout(self, place: Place, call: Call) -> Any:
        """Run a call as it is wanted."""
        return self.wanted(place, call).run()

    def wanted(self, place: Place, call: Call) -> Call:
        """Return a call as it is wanted."""
        name = renamed(place, self.plan.names)
        if self.decides(name):
            return call.switched(self.mode == "on")
        for flip in self._flips[-1][1] if self._flips else ():
            if flip.module is place.module and name in self.known:
                site = self.known[name]  # it shall not notice that its module sees another mode
                return call.switched(site.in_train if flip.before else site.in_eval)
        return call

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Let any other call run, and leave out masks that no module's mode turns off."""
        if not self.plan.masks and not self._follows(function):
            return function(*args, **kwargs)
        if torch.compiler.is_compiling():
            names = ", ".join(sorted(self.plan.masks))
            raise UnsupportedError(
                f"switch: the hand-written masks {names} cannot be switched off in compiled code. Run the model "
                "without torch.compile, or choose other sites with `where`."
            )
        return self._masks.call(function, args, kwargs)

    def _follows(self, function: Callable[..., Any]) -> bool:
        """Tell whether a call is to be followed though no mask is known that is left out."""
        return False

    def _draw(self, draw: Draw) -> Any:
        return draw.aside() if self._is_left_out(draw.place) else draw.run()

    def _apply(self, application: Application) -> Any:
        return application.undropped() if self._is_left_out(application.place) else application.run()

    def _is_left_out(self, place: Place) -> bool:
        name = renamed(place, self.plan.names)
        return name in self.plan.masks and self.decides(name)

    def entered(self, frame: Frame) -> None:
        """Let a module that gates chosen sites see the wanted mode; before the first, also dropkit's layers."""
        flips: list[Flip] = []
        if not self._flips:
            flips += [
                Flip.of(layer, "_switch", self.mode) for name, layer in self.plan.layers.items() if self.decides(name)
            ]
        gated = self.plan.gates.get(frame.name)
        if gated and any(map(self.decides, gated)):
            flips.append(Flip.of(frame.module, "training", self.mode == "on"))
        self._flips.append((frame, flips))

    def left(self, frame: Frame, output: Any) -> None:
        """Let them see their own again."""
        for flip in reversed(self._flips.pop()[1]):
            flip.undo()

    def snapshot(self) -> Any:
        """Return which modules see another mode now."""
        return list(self._flips)

    @contextmanager
    def resumed(self, state: Any) -> Iterator[None]:
        """Let the same modules see it again."""
        before, self._flips = self._flips, list(state or ())
        own, flips = ([flip for _, flips in each for flip in flips] for each in (before, self._flips))
        for flip in reversed(own):  # of a forward that the backward pass is in
            flip.undo()
        for flip in flips:
            flip.do()
        try:
            yield
        finally:
            for flip in reversed(flips):
                flip.undo()
            for flip in own:
                flip.do()
            self._flips = before
