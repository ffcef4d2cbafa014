"""The handler of Monte Carlo passes: it turns sites on, and gives each the masks of its pass and example."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

from torch import Tensor
from torch.nn import Module

from dropkit.functional.address import draw_key
from dropkit.functional.examples import NumberedKey
from dropkit.nn.recurrent_base import RecurrentBase
from dropkit.random import call_key
from dropkit.sites.addressing.numbered import is_weight, numbered, numbered_draw, numbered_key
from dropkit.sites.calls.functions import INFERENCE, Call, find_call
from dropkit.sites.calls.networks import NETWORKS
from dropkit.sites.calls.replacement import has_source, replaced
from dropkit.sites.find import Site, _caller
from dropkit.sites.handwritten.draws import Draw, find_draw
from dropkit.sites.interception.interceptor import Interceptor
from dropkit.sites.interception.places import Place
from dropkit.sites.samples import Numbers
from dropkit.sites.switching.probe import renamed
from dropkit.sites.switching.rewriting import Plan, Rewriting
from dropkit.sites.switching.selection import Selection
from dropkit.uncertainty.engine.examples import Met, SiteCall
from dropkit.uncertainty.engine.pending import has_pending, replaced_pending
from dropkit.uncertainty.engine.tape import Reel
from dropkit.uncertainty.engine.traces import Trace
from dropkit.uncertainty.shares import Shares

__all__ = ["Drawing", "Passes"]

_call_key = lru_cache(maxsize=4096)(call_key)  # one for all passes of a batch


@dataclass(frozen=True)
class Drawing:
    """Which masks a forward draws.

    Args:
        step: The step that keys are made of, which numbers batches where examples cannot be.
        streams: The passes that run together, as the mask definition numbers them; from 1 on.
        numbers: The examples of these passes; None if masks belong to places alone.
        reel: What answers calls before the first site; None to run them.
        axes: Along which axis the examples lie in what a site drops, where it is another than that of `numbers`.
    """

    step: int
    streams: tuple[int, ...]
    numbers: Numbers | None
    reel: Reel | None = None
    axes: Mapping[SiteCall, int] = field(default_factory=dict)


class Passes(Rewriting):
    """Runs sites with masks of passes.

    Args:
        known: What is known of the model's sites, by name.
        chosen: Names of those that drop.
        plan: What makes the others that have to be on.
        seed: The seed.
        selection: Which sites shall drop.
        asked: Names of sites that inputs have come to and no run in training mode has, as of layers that are skipped
            at random.
        silent: Names of calls that drop in no mode, though they could.
    """

    interceptor: Interceptor

    def __init__(
        self,
        known: Mapping[str, Site],
        chosen: set[str],
        plan: Plan,
        seed: int,
        selection: Selection,
        asked: set[str],
        silent: Collection[str] = (),
    ) -> None:
        super().__init__("on", known, chosen, plan)
        self.seed, self._selection, self._asked, self._silent = seed, selection, asked, silent
        self.drawing = Drawing(0, (1,), None)
        self.fired: dict[str, int] = {}  # how often sites have dropped in the last forward
        self.met: dict[SiteCall, Met] = {}  # what they have dropped, where masks belong to places
        self.has_parted = False  # whether anything was drawn in it, so that passes differ
        self.unknown: set[str] = set()  # sites that could drop, and that no probe has met
        self.largest = 0  # bytes of the largest tensor that depends on a mask
        self.path: list[Any] = []  # what the forward has called, and what it was told of by yes or no
        self.trace: Trace | None = None  # notes what depends on masks, if anybody asks
        self.shares: Shares | None = None  # notes what a sigmoid or a softmax returns, if anybody asks
        self.noise: dict[str, bool] = {}  # drawn from generators and no site, and whether it is known how to still it
        self.is_still = False  # whether numbers that passes share stand for that noise
        self._draws = 0

    def start(self, drawing: Drawing, trace: Trace | None = None, shares: Shares | None = None) -> None:
        """Draw other masks from the next forward on, and let others note what depends on them, or is probabilities."""
        self.drawing, self.fired, self.largest, self.has_parted = drawing, {}, 0, False
        self.path, self.trace, self.shares, self.met = [], trace, shares, {}

    def dropout(self, place: Place, call: Call) -> Any:
        """Run a call with the masks of its passes, if it drops."""
        if self.trace is None:
            self.path.append(call.function.function)
            return self._switched(place, call)
        function, args, kwargs = call.function.function, *call.parts()
        return self._followed(self.trace, function, args, kwargs, lambda: self._switched(place, call))

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run whatever draws anything with the masks of its passes, and let all else run."""
        if self.trace is None:
            self.path.append(function)
            made = self.shares.made(function, args, kwargs) if self.shares else None
            result = self._unswitched(function, args, kwargs)
            if self.shares:
                self.shares.add(made, result)
        else:
            run = partial(self._unswitched, function, args, kwargs)
            result = self._followed(self.trace, function, args, kwargs, run)
        if result is True or result is False:
            self.path.append(result)
        return result

    def _followed(
        self,
        trace: Trace,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        run: Callable[[], Any],
    ) -> Any:
        """Run a call, and note whether it takes or returns what depends on masks."""
        self.path.append(function)
        sources, draws = trace.sources(function, args, kwargs), self._draws
        result = run()
        place = self.interceptor.frames[-1].name if self.interceptor.frames else ""
        trace.add(function, args, kwargs, sources, result, draws=self._draws != draws, place=place)
        return result

    def _switched(self, place: Place, call: Call) -> Any:
        name = renamed(place, self.plan.names)
        if name not in self.known and name not in self._silent and call.switched(True).is_active:
            self._meet(name, place, call)
        call = self.wanted(place, call)
        if not call.is_active:
            return self._through(call.function.function, *call.parts())
        return self._measured(self._dropped(place, call), call)

    def _meet(self, name: str, place: Place, call: Call) -> None:
        """Note a site that is not known; one that nobody can learn more of drops if it is chosen."""
        if name not in self._asked:
            self.unknown.add(name)
            return
        p = None if isinstance(call.p, Tensor) else call.p
        shape = () if call.input.is_nested else tuple(call.input.shape)
        site = Site(name, place.path, call.function.kind, p, True, False, *_caller(place.module), shape, call.shared, 1)
        self.known[name] = site
        if site in self._selection:
            self.chosen.add(name)

    def _unswitched(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call = find_call(function, args, kwargs, INFERENCE)
        if call is not None:
            return self._dropped(self.interceptor.place(), call)
        if function is draw_key:
            return self._drawn_key(args)
        draw = find_draw(function, args, kwargs, self.interceptor.random_place)
        if draw is not None:
            return self._drawn_by_hand(draw)
        return self._through(function, args, kwargs)

    def _through(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a call that draws nothing, unless all passes share what it returns."""
        reel = self.drawing.reel
        if reel is not None and (has_pending(args) or has_pending(kwargs)):
            return reel.call(function, args, kwargs)
        return self._measured(function(*args, **kwargs))

    def _measured(self, result: Any, call: Call | None = None) -> Any:
        """Note how large a tensor is that depends on masks."""
        if self.has_parted:
            tensor = result[0] if isinstance(result, tuple) and result else result
            if isinstance(tensor, Tensor) and not tensor.is_nested:
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
            if call is not None and "query" in call.arguments:
                self.largest = max(self.largest, _weights(call))
        return result

    def _dropped(self, place: Place, call: Call) -> Any:
        self._part(place)
        call = call.changed(**self._real(dict(call.arguments), is_written=_is_in_place(call)))
        if has_source(call):
            return call.run()
        key, numbers = self._key(place), self._numbers(place)
        if numbers is None:
            has_axis = not call.input.is_nested and call.arguments.get("batch_sizes") is None  # unless packed
            if has_axis and not is_weight(call.input, 0):
                self._meet_call(place, call.input.shape, call.shared, _heads(call))
            return replaced(call, key=NumberedKey(key, (), self.drawing.streams), order=place.order)
        return numbered(place, call, key, _numbers_of_rows(call, numbers))

    def _drawn_key(self, args: tuple[Any, ...]) -> Any:
        """Answer a layer that draws one key for several masks, for examples along axis 0 of a tensor."""
        _, generator, examples, *_ = args
        place = self.interceptor.place()
        self._part(place)
        if generator is not None:
            return draw_key(*self._real(args))
        key, numbers = self._key(place), self._numbers(place)
        if numbers is None:
            self._meet_call(place, examples.shape, heads=_heads_of(place.module))
            return NumberedKey(key, (), self.drawing.streams)
        return numbered_key(place, examples, key, numbers)

    def _drawn_by_hand(self, draw: Draw) -> Any:
        self._part(draw.place)
        args, kwargs = self._real((draw.args, dict(draw.kwargs)), is_written=True)
        draw = Draw(draw.place, draw.function, args, kwargs)
        if not draw.has_address or draw.kwargs.get("generator") is not None:
            is_site = renamed(draw.place, self.plan.names) in self.chosen
            return draw.run() if is_site or _is_function(draw) else self._noisy(draw)
        key, numbers = self._key(draw.place), self._numbers(draw.place)
        if numbers is None:
            [stream] = self.drawing.streams
            if draw.shape and not draw.fills_weights:
                self._meet_call(draw.place, draw.shape)
            return draw.at(key, stream)
        return numbered_draw(draw, key, numbers)

    def _noisy(self, draw: Draw) -> Any:
        """Draw noise that is no dropout; if it shall be still, return what it was drawn for, or one number."""
        result = draw.run()
        is_real = isinstance(result, Tensor) and result.is_floating_point()
        self.noise[draw.operator] = is_real
        if not is_real or not self.is_still:
            return result
        given = next((each for each in (*draw.args, *draw.kwargs.values()) if isinstance(each, Tensor)), None)
        is_data = given is not None and not draw.operator.endswith(("_", "_like")) and given.shape == result.shape
        return given.clone() if given is not None and is_data else result.fill_(0.5)

    def _numbers(self, place: Place) -> Numbers | None:
        """Return the numbers of examples along the axis that they have at a site; None if masks belong to places."""
        numbers = self.drawing.numbers
        if numbers is None:
            return None
        axis = self.drawing.axes.get((renamed(place, self.plan.names), place.run))
        return numbers if axis is None else replace(numbers, axis=axis)

    def _meet_call(self, place: Place, shape: Sequence[int], shared: tuple[int, ...] = (), heads: int = 1) -> None:
        """Note the shape of what a site drops."""
        self.met[renamed(place, self.plan.names), place.run] = Met(tuple(shape), shared, heads)

    def _part(self, place: Place) -> None:
        """Note that passes differ from here on, and, if a site of the model drops, which."""
        name = renamed(place, self.plan.names)
        self.has_parted = True
        self._draws += 1
        if name in self.chosen:
            self.fired[name] = self.fired.get(name, 0) + 1
        if self.drawing.reel is not None:
            self.drawing.reel.end()

    def _real(self, values: Any, is_written: bool = False) -> Any:
        """Return arguments with the values of those that are pending."""
        return replaced_pending(values, lambda pending: pending.filled(is_written))

    def _key(self, place: Place) -> int:
        return _call_key(self.seed, renamed(place, self.plan.names), self.drawing.step, place.run)


def _numbers_of_rows(call: Call, numbers: Numbers) -> Numbers:
    """Return the numbers of what an example has several of along its axis, such as the windows of an image."""
    if call.arguments.get("batch_sizes") is not None:  # packed sequences, one for each example
        return numbers
    axis = 1 if call.function.kind == "multi_head_attention" else numbers.axis
    shape = () if call.input.is_nested else call.input.shape
    if not -len(shape) <= axis < len(shape) or not len(numbers) or shape[axis] % len(numbers):
        return numbers
    each = shape[axis] // len(numbers)
    return numbers if each < 2 else replace(numbers, runs=tuple((first * each, n * each) for first, n in numbers.runs))


def _heads(call: Call) -> int:
    """Return how many heads a call splits its queries into; 0 of a recurrent network, which counts time as endless."""
    return 0 if call.function.kind in NETWORKS else int(call.arguments.get("num_heads", 1))


def _heads_of(module: Module) -> int:
    """Return the same of a layer that draws one key for all its masks."""
    attention = getattr(module, "self_attn", None)
    return 0 if isinstance(module, RecurrentBase) else int(getattr(attention, "num_heads", 1))


def _is_function(draw: Draw) -> bool:
    """Tell whether a random operator is a function of its input in evaluation."""
    return draw.operator.startswith("rrelu") and not draw.argument(3, "training", False)


def _is_in_place(call: Call) -> bool:
    return bool(call.arguments.get("inplace")) or call.function.function.__name__.endswith("_")


def _weights(call: Call) -> int:
    """Return the bytes of the attention weights of a call."""
    query, key = call.arguments["query"], call.arguments["key"]
    heads = call.arguments.get("num_heads", 1)
    if query.is_nested or query.dim() < 2:
        return 0
    length = key.shape[0] if "num_heads" in call.arguments else key.shape[-2]
    return prod(query.shape[:-1]) * length * heads * query.element_size()
