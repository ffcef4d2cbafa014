"""What a model's own inputs show of it before its sites are switched: where they are, and which modules gate them.

A module gates a site if in evaluation it does not ask for dropout at all: it leaves the call out, or asks for a rate of
0. No rewriting of calls can turn such a site on; the module has to see another ``training``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import set_stance
from torch.nn import Module
from torch.utils import _pytree

from dropkit.errors import UnsupportedError
from dropkit.functional.address import draw_key
from dropkit.sites.calls.functions import Call
from dropkit.sites.find import _RUNNERS, Site, _caller, _code, _merged, _Recorder
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.checkpoints import watched
from dropkit.sites.interception.names import module_names
from dropkit.sites.interception.places import Frame, Place
from dropkit.sites.interception.restoring import cloned, normalisation_layers, restored, set_mode
from dropkit.sites.interception.underneath import Operator, Underneath, scripts_followed
from dropkit.sites.switching.noise import HIDDEN, PYTORCH, Generators, Noise

if TYPE_CHECKING:
    from dropkit.sites.switching.rewriting import Rewriting

__all__ = ["Probe", "Witness", "renamed"]


def renamed(place: Place, names: Mapping[str, str]) -> str:
    """Return a site's name as it is in training mode, where calls may be others' successors than in evaluation."""
    return place.name if place.module.training else names.get(place.name, place.name)


class Witness(_Recorder):
    """Notes what one forward shows, besides its sites.

    Args:
        names: Names in evaluation mode of sites that have others in training mode, with those.
        generators: What tells of generators that are not PyTorch's.
    """

    def __init__(self, names: Mapping[str, str], generators: Generators) -> None:
        super().__init__()
        self._names = names
        self._generators = generators
        self.masks = Masks(self, draw=self._draw, apply=self._apply)
        self.sites: dict[str, Site] = {}  # all that were met
        self.active: set[str] = set()  # names of those that dropped
        self.possible: list[str] = []  # of those that did, or would have if they were switched on
        self.rewritable: set[str] = set()  # of those that are calls of functions
        self.draws: dict[str, Any] = {}  # what is drawn by random operators: module, operator and line, by its name
        self.hidden: dict[Noise, None] = {}  # what is drawn otherwise
        self.moved: set[str] = set()  # of buffers that changed
        self.callers: dict[str, tuple[str, ...]] = {}  # the modules that were running at a site, outermost first
        self.runs: dict[str, int] = {}
        self.outputs: dict[str, list[Any]] = {}
        self._running: list[str] = []
        self._is_drawing = False
        self._has_drawn = False  # whether a random operator was seen, since generators were last looked at

    def close(self) -> None:
        """Take stock, after the forward."""
        self.sites = {site.name: site for site in self.found()}
        self.active = {name for name, site in self.sites.items() if site.in_train}
        self.possible = [name for name in self.sites if name in self.active | self.rewritable]

    def dropout(self, place: Place, call: Call) -> Any:
        """Note a call that drops or could drop."""
        if call.switched(True).is_active:
            self.rewritable.add(renamed(place, self._names))
        with self._drawing():
            return super().dropout(place, call)

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Note what any other call draws."""
        with self._drawing() if function is draw_key else nullcontext():
            return super().other(function, args, kwargs)

    def _draw(self, draw: Draw) -> Any:
        self.draws[draw.place.name] = draw.place.path, draw.operator, *_caller(draw.place.module)
        with self._drawing():
            return draw.run()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Let random operators that run meanwhile be those of a call that is known to draw."""
        before, self._is_drawing, self._has_drawn = self._is_drawing, True, True
        try:
            yield
        finally:
            self._is_drawing = before

    def underneath(self, operator: Operator) -> None:
        """Note a random operator that no call has run which is known to draw."""
        self._has_drawn = True
        is_site = operator.kind is not None and not self._depth
        is_seen = self._is_drawing or is_site or self.interceptor.is_muted() or not self.interceptor.frames
        if operator.name in HIDDEN and not is_seen:
            frame = self.interceptor.frames[-1]
            self.hidden[Noise(frame.name, operator.name, *_caller(frame.module))] = None
        super().underneath(operator)

    def known(self, place: Place) -> Place:
        """Return a place by the name that its site has in training mode."""
        return replace(place, name=renamed(place, self._names))

    def _note(self, place: Place, *rest: Any, **named: Any) -> None:
        self.callers.setdefault(self.known(place).name, tuple(self._running))
        super()._note(place, *rest, **named)

    def entered(self, frame: Frame) -> None:
        """Note that a module runs."""
        self._note_moved(frame)
        self.runs[frame.name] = self.runs.get(frame.name, 0) + 1
        self._running.append(frame.name)

    def left(self, frame: Frame, output: Any) -> None:
        """Note what kind of thing a module returned."""
        self._note_moved(frame)
        self._running.pop()
        self.outputs.setdefault(frame.name, []).append(_structure(output))

    def _note_moved(self, frame: Frame) -> None:
        """Note of generators that have moved that the module which has been running drew from them."""
        if type(frame.module).__module__.startswith("torch.nn."):  # which draws from PyTorch's alone
            return
        for name in self._generators.moved():
            if self._running and not (name == PYTORCH and self._has_drawn):
                self.hidden[Noise(self._running[-1], name)] = None
        self._has_drawn = False

    def matched(self, other: "Witness") -> dict[str, str]:
        """Return the sites that could drop in both forwards: the names here by those there."""
        there: dict[Any, list[str]] = {}
        for name in other.possible:
            there.setdefault(_code(other.sites[name]), []).append(name)
        twins = ((there.get(_code(self.sites[name])), name) for name in self.possible)
        return {names.pop(0): name for names, name in twins if names}


class Probe:
    """Runs a part of a model, on inputs of its own, as often as needed, and leaves everything as it was.

    Normalisation layers stay in evaluation mode, so that a batch of one is enough.

    Args:
        model: The model, not wrapped, whose names are used.
        module: The part of it.
        inputs: What its forward takes.
        named: The same, by name.
    """

    def __init__(self, model: Module, module: Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.model, self.module, self.inputs, self.named = model, module, inputs, named
        self.names: dict[str, str] = {}
        # Its own mode first: an error there is the one that the forward that was asked for would raise.
        runs = {training: self.run(training) for training in (module.training, not module.training)}
        self.train, self.evaluation = runs[True], runs[False]
        both = self.train.matched(self.evaluation)
        self.names = {there: here for there, here in both.items() if there != here}
        self.sites: dict[str, Site] = {}
        for site in _merged(list(self.train.sites.values()), list(self.evaluation.sites.values())):
            self.sites.setdefault(site.name, site)

    def run(self, training: bool, handler: "Rewriting | None" = None) -> Witness:
        """Run the module in one mode, perhaps with a handler that changes calls."""
        witness = Witness(self.names, Generators(self.model))
        values = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        with _muted(self.model), restored(self.model), ExitStack() as stack:
            if handler is not None:
                stack.enter_context(attached(self.model, handler, is_eager=True))
            interceptor = stack.enter_context(attached(self.model, witness, is_eager=True))
            stack.enter_context(scripts_followed(interceptor))
            stack.enter_context(Underneath(witness.underneath))
            stack.enter_context(set_stance("force_eager"))
            was_training = self.module.training
            set_mode(self.module, training)
            for layer in normalisation_layers(self.module):
                layer.training = False
            given, named = cloned((self.inputs, dict(self.named)))
            try:
                self.module(*given, **named)
            except Exception as error:
                is_transformed = torch._C._are_functorch_transforms_active()  # which may forbid what training draws
                if training == was_training and handler is None and not is_transformed:
                    raise  # so would the forward that was asked for
                raise self._refusal(training, error) from error
            witness.moved = {name for name, now in self.model.named_buffers() if not _same(values.get(name), now)}
        witness.close()
        return witness

    def _refusal(self, training: bool, error: Exception) -> UnsupportedError:
        mode = "training" if training else "evaluation"
        return UnsupportedError(
            f"switch: {type(self.module).__name__} raised {type(error).__name__} in {mode} mode, in which its first "
            "inputs are run too, to see where it drops. Call the switch's `learn` with inputs that both modes take."
        )

    @property
    def known(self) -> set[str]:
        """Names of the modules that ran."""
        return {*self.train.runs, *self.evaluation.runs}

    def gate(self, site: Site, other: Witness, tried: set[str]) -> str | None:
        """Return the module that left a site out of another forward, but in training mode has it.

        It is the innermost of those that were running which ran as often there.
        """
        callers = self.train.callers[site.name]
        if site.path in callers:  # a mask may be used by another module than that which draws it
            callers = callers[: callers.index(site.path) + 1]
        ran = (each for each in reversed(callers) if other.runs.get(each, 0) >= self.train.runs[each])
        return next((each for each in ran if each not in tried), None)


_RUNNERS.add(Probe.run.__code__)


@contextmanager
def _muted(model: Module) -> Iterator[None]:
    """Let nothing that is attached to the model, or to a part of it, see what runs."""
    parts = {id(module) for module in module_names(model).values()}
    with ExitStack() as stack:
        for each in watched():
            if not parts.isdisjoint(each.names):
                stack.enter_context(each.muted())
        yield


def _same(before: Tensor | None, now: Tensor) -> bool:
    if before is None or before.shape != now.shape or before.dtype != now.dtype:
        return False
    return torch.equal(before, now) or bool(((before == now) | ((before != before) & (now != now))).all())


def _structure(output: Any) -> Any:
    """Return what kind of thing an output is: its containers, and types and numbers of axes of what is in them."""
    leaves, containers = _pytree.tree_flatten(output)
    return containers, [(type(leaf).__name__, leaf.dim() if isinstance(leaf, Tensor) else None) for leaf in leaves]
