"""The one interceptor: it gives every call that draws dropout, while a model's forward runs, to a handler."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.calls.functions import Call, find_call
from dropkit.sites.calls.pools import with_samples
from dropkit.sites.interception import checkpoints, compiler
from dropkit.sites.interception.modes import enter_in_turn, is_entered, leave, replaced_modes
from dropkit.sites.interception.names import is_dropout_layer, module_names
from dropkit.sites.interception.outside import check_forward, warn_of_methods
from dropkit.sites.interception.places import Frame, Place, Shield

if TYPE_CHECKING:
    from dropkit.sites.interception.counts import Counts

__all__ = ["Handler", "Interceptor", "Snapshot", "is_running"]

_MODULE_FILE = Module.__call__.__code__.co_filename


class Handler(Protocol):
    """What decides what happens at a site.

    Of several on one model that of the lowest turn is asked first, and of one turn that which was attached first; what
    it runs goes on to the next. In turn 0 is what decides whether sites drop, in turn 1 what looks on or gives masks,
    and in turn 2 what decides how masks are drawn.
    """

    turn: int = 1
    is_uncompiled: bool = False  # whether a model runs, now, without its compiled code
    interceptor: "Interceptor | None" = None  # which asks it, from when it is attached

    def dropout(self, place: Place, call: Call) -> Any:
        """Return what a call that draws dropout, or is asked not to, shall return; ``call.run()`` lets it run."""

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what any other call of PyTorch shall return; ``function(*args, **kwargs)`` lets it run."""

    def begin(self, module: Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Prepare for a module's forward, with what it takes, before anything else is known of it."""
        return

    def entered(self, frame: Frame) -> None:
        """Note that a module's forward begins."""
        return

    def left(self, frame: Frame, output: Any) -> None:
        """Note that a module's forward has ended; its output is None where it raised."""
        return

    def snapshot(self) -> Any:
        """Return whatever of its own state decides about calls, for a recomputation of what runs now."""
        return None

    def resumed(self, state: Any) -> AbstractContextManager[None]:
        """Decide, meanwhile, as in the state of a snapshot; in that of no forward where there is none."""
        return nullcontext()


@dataclass(frozen=True)
class Snapshot:
    """Where a forward is, for its recomputation during the backward pass.

    Args:
        interceptor: Whose it is.
        frames: Runs that have not ended, outermost first.
        runs: How often modules have run in the outermost forward, by name.
        state: The handler's own.
        is_shielded: Whether it was kept from being compiled, under which operations may save other tensors.
    """

    interceptor: "Interceptor"
    frames: tuple[Frame, ...]
    runs: Mapping[str, int]
    state: Any
    is_shielded: bool = False

    @property
    def is_active(self) -> bool:
        """Whether calls were seen."""
        return bool(self.frames)

    def before(self, function: object) -> "Snapshot":
        """Return the snapshot of before a module's run, if that is the innermost, for it will be called again."""
        if not self.frames or self.frames[-1].module is not function:
            return self
        own = self.frames[-1]
        return replace(self, frames=self.frames[:-1], runs={**self.runs, own.name: own.run})


class Interceptor(TorchFunctionMode):
    """Sees all calls of PyTorch inside a model's forward, and knows in which module each is.

    Fused ways through attention and encoders do not run while it is there, for PyTorch takes them only where nobody
    looks on.

    Args:
        model: The model.
        handler: What decides.
    """

    def __init__(self, model: Module, handler: Handler) -> None:
        super().__init__()
        self.handler, self.turn = handler, handler.turn
        handler.interceptor = self
        modules = module_names(model)
        self.names = {id(module): name for name, module in modules.items()}
        self._layers = {name for name, module in modules.items() if is_dropout_layer(module)}
        self.frames: list[Frame] = []
        self.runs: dict[str, int] = {}
        self.counts: Counts | None = None  # of the outermost forwards that have ended, where those matter
        self.is_compiled = False  # whether compiled code has called the model that should have left it alone
        self.is_attached, self.is_resumed = True, False
        self._muted: dict[int, int] = {}  # how many have muted it, by thread
        self._owner: dict[str, int] = {}
        self._outermost: set[str] = set()  # parts that were called from outside of the model's forward
        self._caller: FrameType | None = None  # which runs as long as the outermost forward does

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give a call to the handler."""
        if self.is_muted() or not self.frames or _is_lowering():
            return func(*args, **(kwargs or {}))
        if self.counts is not None and torch.compiler.is_dynamo_compiling():
            compiler.trace(func)
        call = find_call(func, args, kwargs or {})
        if call is None:
            return self.handler.other(func, args, with_samples(func, args, kwargs or {}, self))
        if not call.has_input or self.is_over():
            return func(*args, **(kwargs or {}))
        return self.handler.dropout(self.place(), self._seen_within(call))

    def is_muted(self) -> bool:
        """Whether everything runs as if nothing were attached; in compiled code, in any thread."""
        return bool(self._muted) and (torch.compiler.is_compiling() or threading.get_ident() in self._muted)

    def _seen_within(self, call: Call) -> Call:
        """Let what a branch does that a call runs be seen, as all else is that the model does."""
        branch = call.arguments.get("branch")
        if not callable(branch) or torch.compiler.is_compiling():
            return call

        def run(*inputs: Any) -> Any:
            with self:  # again, for it is left while it answers
                return branch(*inputs)

        return call.changed(branch=run)

    @contextmanager
    def as_one(self, place: "Callable[[Interceptor], Place]") -> Iterator[None]:
        """Let others that look on count one call, meanwhile, for all that answer it: their names have its number.

        Args:
            place: What counts it: `place` or `random_place`.
        """
        others = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, Interceptor)]
        for other in others:
            if other.frames and not other.is_muted():
                place(other)
        with replaced_modes(others.__contains__, ()) if others else nullcontext():
            yield

    def place(self) -> Place:
        """Return the place of the dropout function that is being called, and count it."""
        frame = self.frames[-1]
        number, frame.functions = frame.functions, frame.functions + 1
        is_plain = number == 0 and frame.name in self._layers  # what compiled code is told, which must not know modules
        return self._place(frame.name if is_plain else f"{frame.name}#{number}", frame)

    def random_place(self) -> Place:
        """Return the place of the random operator that is being called, and count it."""
        frame = self.frames[-1]
        number, frame.randoms = frame.randoms, frame.randoms + 1
        return self._place(f"{frame.name}~{number}", frame)

    def _place(self, name: str, frame: Frame) -> Place:
        if name in self._layers and name != frame.name:
            what = f"the dropout layer {name!r} and a call in the module {frame.name!r} have one name"
            remedy = "Rename one of the modules."
            raise ArgumentError(f"dropkit.sites: {what}, so that nothing can tell them apart. {remedy}")
        return Place(name, frame, self._number(frame))

    def _number(self, frame: Frame) -> int:
        """Return the number of a run since runs were last counted anew."""
        return frame.run if self.counts is None else self.counts.number(frame.name, frame.run)

    def enter(self, module: Module, inputs: Any = (), named: Any = MappingProxyType({})) -> None:
        """Note that a module's forward begins; with the outermost, calls begin to be seen."""
        name = self.names.get(id(module))
        if name is None or self.is_muted():  # no name: a copy of a module of the model, which shares its hooks
            return
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling:
            self.settle()
        elif self.counts is not None and not torch.compiler.is_exporting():  # which handlers refuse
            compiler.check_place()
        if not (self.frames or is_compiling or checkpoints.is_recomputing()):
            self._check_outermost(module, name)
        self._own(is_compiling)
        try:
            self.handler.begin(module, inputs, named)
        finally:
            self._disown(is_compiling)
        if not self.frames:
            self._own(is_compiling)
            if is_compiling:
                self.__enter__()
            else:
                enter_in_turn(self, self.turn)
                checkpoints.joins(self)
            self._caller = None if is_compiling else _call()
            if is_compiling and self.counts is not None:
                compiler.begin_tracing()
            elif self.counts is not None:
                compiler.watch()
        run = self.runs.get(name, 0)
        self.runs[name] = run + 1
        self.frames.append(Frame(module, name, run, None if is_compiling else _order_of(inputs)))
        self.handler.entered(self.frames[-1])

    def _check_outermost(self, module: Module, name: str) -> None:
        """Raise, or warn, where code of the model runs that is not seen."""
        check_forward(module)
        if name and name not in self._outermost:
            self._outermost.add(name)
            warn_of_methods(self.names, module)

    def leave(self, module: Module, _inputs: Any = (), output: Any = None) -> None:
        """Note that a module's forward has ended, perhaps with an exception."""
        if not self.frames or self.frames[-1].module is not module or self.is_muted():
            return
        is_compiling = torch.compiler.is_compiling()
        if self._is_owned(is_compiling):
            frame = self.frames.pop()
            self.handler.left(frame, output)
            if frame.shield is not None:
                frame.shield.__exit__(None, None, None)
            if not self.frames:
                if is_compiling:
                    self.__exit__(None, None, None)
                else:
                    leave(self)
                self._caller = None
                self._count()
                if self.counts is not None and is_compiling:
                    compiler.end_tracing()
            self._disown(is_compiling)

    def is_running(self) -> bool:
        """Tell whether a forward runs in this thread."""
        self.settle()
        return self._is_here()

    def _is_here(self) -> bool:
        return bool(self.frames) and is_entered(self)

    def settle(self) -> None:
        """Forget the last forward if it was cut off by an interrupt, as in a notebook."""
        if self.frames and self._caller is not None and not is_running(self._caller):
            self.abandon()

    def is_over(self) -> bool:
        """Tell, of a call that was seen, that the forward was cut off before it, and forget that."""
        if not torch.compiler.is_compiling():
            self.settle()
        return not self.frames

    def abandon(self) -> None:
        """Forget a forward that was cut off by what is no Exception, for which PyTorch calls no hook."""
        is_compiling = torch.compiler.is_compiling()
        if not self.frames or not self._is_owned(is_compiling):
            return
        self._caller = None
        while self.frames:
            frame = self.frames.pop()
            self.handler.left(frame, None)
            if frame.shield is not None:
                frame.shield.__exit__(None, None, None)
        leave(self)
        self._count()
        self._disown(is_compiling)

    def _count(self) -> None:
        """Count the runs of an outermost forward that has ended."""
        if self.counts is not None:
            self.counts.add(self.runs)
        self.runs = {}

    def _own(self, is_compiling: bool) -> None:
        """Raise where another thread runs a forward of the model; compiled code cannot read which thread it is."""
        if is_compiling:
            return
        thread = threading.get_ident()
        if self._owner.setdefault("thread", thread) != thread:  # in one step, whatever other threads do
            remedy = "Run them one after another, or give each thread a copy of the model."
            raise UnsupportedError(f"dropkit.sites: two threads run forwards of one model at once. {remedy}")

    def _is_owned(self, is_compiling: bool) -> bool:
        return is_compiling or self._owner.get("thread") in (None, threading.get_ident())

    def _disown(self, is_compiling: bool) -> None:
        if not (self.frames or is_compiling or self.is_resumed):
            self._owner.clear()

    def snapshot(self) -> Snapshot | None:
        """Return where the forward is now; None where none runs in this thread."""
        if not self._is_here():
            return None
        frames = tuple(replace(frame, shield=None) for frame in self.frames)
        is_shielded = any(frame.shield for frame in self.frames)
        return Snapshot(self, frames, dict(self.runs), self.handler.snapshot(), is_shielded)

    @contextmanager
    def resumed(self, snapshot: Snapshot) -> Iterator[None]:
        """Go on, meanwhile, from where a forward was, in whatever thread; then leave no trace."""
        is_compiling = torch.compiler.is_compiling()
        self._own(is_compiling)
        before = self.frames, self.runs, self._caller, self.is_resumed
        self.frames, self.runs, self._caller = [replace(each) for each in snapshot.frames], dict(snapshot.runs), None
        self.is_resumed = True
        try:
            with ExitStack() as stack:
                stack.enter_context(self.handler.resumed(snapshot.state))
                if snapshot.is_shielded:
                    stack.enter_context(Shield())
                yield
        finally:
            self.frames, self.runs, self._caller, self.is_resumed = before
            self._disown(is_compiling)

    def set_aside(self) -> AbstractContextManager[None]:
        """Let a forward that runs in this thread, and has a backward pass in it, take no part meanwhile."""
        is_own = bool(self.frames) and self._owner.get("thread") == threading.get_ident()
        return self.resumed(Snapshot(self, (), {}, None)) if is_own else nullcontext()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Let everything run in this thread as if nothing were attached, meanwhile."""
        thread = threading.get_ident()
        self._muted[thread] = self._muted.get(thread, 0) + 1
        try:
            yield
        finally:
            self._muted[thread] -= 1
            if not self._muted[thread]:
                del self._muted[thread]


def _call() -> FrameType | None:
    """Return the frame of PyTorch's call of the module whose hook runs now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _MODULE_FILE:
        frame = frame.f_back
    return frame


def is_running(caller: FrameType | None) -> bool:
    """Tell whether a frame is among those that run now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not caller:
        frame = frame.f_back
    return frame is not None


def _order_of(inputs: Any) -> Tensor | None:
    """Return which example each sequence of a packed batch is, if that is what a module was given."""
    return inputs[0].sorted_indices if inputs and isinstance(inputs[0], PackedSequence) else None


def _is_lowering() -> bool:
    """Tell whether a compiler takes apart what was traced: its calls are the insides of calls that were seen."""
    here = torch.compiler
    return here.is_compiling() and not (here.is_dynamo_compiling() or here.is_exporting())
