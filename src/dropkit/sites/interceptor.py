"""The one interceptor: it gives every call that draws dropout, while a model's forward runs, to a handler."""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._compile import _disable_dynamo
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode

from dropkit.errors import UnsupportedError
from dropkit.sites import checkpoints
from dropkit.sites.functions import Call, find_call
from dropkit.sites.names import is_dropout_layer, module_names

__all__ = ["Attachment", "Frame", "Handler", "Interceptor", "Place", "Snapshot", "attached", "attached_to"]


@dataclass
class Frame:
    """A run of a module's forward that has not ended.

    Args:
        module: The module.
        name: Its name in the model.
        run: How many times it ran before, since runs were last counted anew.
        order: If its input is a packed sequence, which example of the batch each sequence is.
        functions: How many dropout functions it has called.
        randoms: How many random operators it has called.
        shield: What keeps the run from being compiled, if anything has to.
    """

    module: Module
    name: str
    run: int
    order: Tensor | None = None
    functions: int = 0
    randoms: int = 0
    shield: "_Shield | None" = None


@dataclass(frozen=True)
class Place:
    """Where in a model, and in which run, noise is drawn.

    Args:
        name: Name of the site, as the mask definition spells it: that of a dropout layer, or that of any other module
            followed by ``#k``, the number of the call in one run of its forward, or by ``~j``, that of the random
            operator.
        module: The innermost registered module whose forward is running.
        path: Its name in the model.
        run: How many times it ran before, since runs were last counted anew.
        order: If its input is a packed sequence, which example of the batch each sequence is; None if in order.
    """

    name: str
    module: Module
    path: str
    run: int
    order: Tensor | None = None


class Handler(Protocol):
    """What decides what happens at a site.

    Of several on one model that which was attached first is asked first, and what it runs goes on to the next; but one
    that `is_last` is asked after all others, whenever it was attached.
    """

    is_last: bool = False
    is_uncompiled: bool = False  # whether a model runs without its compiled code
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
        """Decide, meanwhile, as in the state of a snapshot."""
        return nullcontext()


@dataclass(frozen=True)
class Snapshot:
    """Where a forward is, for its recomputation during the backward pass.

    Args:
        interceptor: Whose it is.
        frames: Runs that have not ended, outermost first.
        runs: How often modules have run, by name.
        state: The handler's own.
        entered: How many runs there had been in all.
        is_shielded: Whether it was kept from being compiled, under which operations may save other tensors.
    """

    interceptor: "Interceptor"
    frames: tuple[Frame, ...]
    runs: Mapping[str, int]
    state: Any
    entered: int
    is_shielded: bool = False

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
        self.handler = handler
        handler.interceptor = self
        self.names = {id(module): name for name, module in module_names(model).items()}
        self.frames: list[Frame] = []
        self.runs: dict[str, int] = {}
        self.keeps_runs = False  # whether runs go on being counted after the outermost forward has ended
        self.outer_runs: list[dict[str, int]] = []  # to go on with after the blocks that are open
        self.entered = 0
        self.is_attached, self.is_resumed, self.is_muted = True, False, False
        self._owner: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give a call to the handler."""
        if self.is_muted or _is_lowering():
            return func(*args, **(kwargs or {}))
        call = find_call(func, args, kwargs or {})
        if call is None:
            return self.handler.other(func, args, kwargs or {})
        return self.handler.dropout(self.place(), call)

    def place(self) -> Place:
        """Return the place of the dropout function that is being called, and count it."""
        frame = self.frames[-1]
        number, frame.functions = frame.functions, frame.functions + 1
        is_plain = number == 0 and is_dropout_layer(frame.module)
        name = frame.name if is_plain else f"{frame.name}#{number}"
        return Place(name, frame.module, frame.name, frame.run, frame.order)

    def random_place(self) -> Place:
        """Return the place of the random operator that is being called, and count it."""
        frame = self.frames[-1]
        number, frame.randoms = frame.randoms, frame.randoms + 1
        return Place(f"{frame.name}~{number}", frame.module, frame.name, frame.run)

    def enter(self, module: Module, inputs: Any = (), named: Any = MappingProxyType({})) -> None:
        """Note that a module's forward begins; with the outermost, calls begin to be seen."""
        name = self.names.get(id(module))
        if name is None or self.is_muted:  # no name: a copy of a module of the model, which shares its hooks
            return
        self._own()
        try:
            self.handler.begin(module, inputs, named)
        finally:
            self._disown()
        if not self.frames:
            self._own()
            self.__enter__()
        run = self.runs.get(name, 0)
        self.runs[name] = run + 1
        if not torch.compiler.is_compiling():  # which would compile again for every number
            self.entered += 1
        self.frames.append(Frame(module, name, run, _order_of(inputs)))
        self.handler.entered(self.frames[-1])

    def leave(self, module: Module, _inputs: Any = (), output: Any = None) -> None:
        """Note that a module's forward has ended, perhaps with an exception."""
        if self.frames and self.frames[-1].module is module and not self.is_muted and self._is_owned():
            frame = self.frames.pop()
            self.handler.left(frame, output)
            if frame.shield is not None:
                frame.shield.__exit__(None, None, None)
            if not self.frames:
                self.__exit__(None, None, None)
                if not self.keeps_runs:
                    self.runs.clear()
            self._disown()

    def abandon(self) -> None:
        """Forget a forward that was cut off by what is no Exception, for which PyTorch calls no hook."""
        if not self.frames or not self._is_owned():
            return
        while self.frames:
            self.handler.left(self.frames.pop(), None)
        others = []
        while self in _get_current_function_mode_stack():
            others.append(_pop_mode())
        for mode in reversed(others):
            if mode is not self:
                _push_mode(mode)
        self._disown()

    def _own(self) -> None:
        """Raise where another thread runs a forward of the model."""
        self._owner.setdefault("thread", _thread())  # in one step, whatever other threads do
        if not self._is_owned():
            remedy = "Run them one after another, or give each thread a copy of the model."
            raise UnsupportedError(f"dropkit.sites: two threads run forwards of one model at once. {remedy}")

    def _is_owned(self) -> bool:
        owner, here = self._owner.get("thread", 0), _thread()
        return owner == here or 0 in (owner, here)

    def _disown(self) -> None:
        if not self.frames and not self.is_resumed:
            self._owner.clear()

    def snapshot(self) -> Snapshot:
        """Return where the forward is now."""
        frames = tuple(replace(frame, shield=None) for frame in self.frames)
        is_shielded = any(frame.shield for frame in self.frames)
        return Snapshot(self, frames, dict(self.runs), self.handler.snapshot(), self.entered, is_shielded)

    @contextmanager
    def resumed(self, snapshot: Snapshot) -> Iterator[None]:
        """Go on, meanwhile, from where a forward was, in whatever thread; then leave no trace."""
        if not self.is_attached:
            if not snapshot.frames and self.entered == snapshot.entered:
                yield  # the model took no part
                return
            raise UnsupportedError(
                "dropkit.sites: a checkpointed forward is recomputed after what had changed its dropout was closed, so "
                "its gradients would be wrong. Close it after the backward pass."
            )
        self._own()
        before = self.frames, self.runs, self.entered, self.is_resumed
        self.frames, self.runs = [replace(frame) for frame in snapshot.frames], dict(snapshot.runs)
        self.is_resumed = True
        is_seen = self in _get_current_function_mode_stack()
        if self.frames and not is_seen:
            self.__enter__()
        try:
            with self.handler.resumed(snapshot.state), _Shield() if snapshot.is_shielded else nullcontext():
                yield
        finally:
            if snapshot.frames and not is_seen:
                self.__exit__(None, None, None)
            self.frames, self.runs, self.entered, self.is_resumed = before
            self._disown()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Let everything run as if nothing were attached, meanwhile."""
        before, self.is_muted = self.is_muted, True
        try:
            yield
        finally:
            self.is_muted = before


def _order_of(inputs: Any) -> Tensor | None:
    """Return which example each sequence of a packed batch is, if that is what a module was given."""
    if torch.compiler.is_compiling() or not inputs or not isinstance(inputs[0], PackedSequence):
        return None
    return inputs[0].sorted_indices


def _is_lowering() -> bool:
    """Tell whether a compiler takes apart what was traced: its calls are the insides of calls that were seen."""
    here = torch.compiler
    return here.is_compiling() and not (here.is_dynamo_compiling() or here.is_exporting())


def _thread() -> int:
    """Return the thread's number; 0 in compiled code, which cannot read it."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class _Hook:
    """A hook that belongs to one model: a copy of the model, or one that is loaded again, does without."""

    def __init__(self, act: Callable[..., None], is_last: bool = False) -> None:
        self.act = act
        self.is_last = is_last

    def __call__(self, module: Module, inputs: Any, *rest: Any) -> None:
        self.act(module, inputs, *rest)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return _Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing,)


class _Shield(TorchDispatchMode):
    """Keeps what runs from being compiled: torch.compile leaves alone what a dispatch mode looks at."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operator run."""
        return func(*args, **(kwargs or {}))


class _EagerHook(_Hook):
    """A hook of a model whose forward is not to be compiled."""

    def __call__(self, module: Module, inputs: Any, *rest: Any) -> None:
        is_compiled = torch.compiler.is_dynamo_compiling() or get_eval_frame_callback() not in (None, False)
        self._run(is_compiled, module, inputs, *rest)

    @_disable_dynamo
    def _run(self, is_compiled: bool, module: Module, inputs: Any, *rest: Any) -> None:
        self.act(module, inputs, *rest)
        frames = self.act.__self__.frames  # type: ignore[attr-defined]  # it is a method of an interceptor
        if is_compiled and frames and frames[-1].module is module and not any(frame.shield for frame in frames):
            frames[-1].shield = _Shield()
            frames[-1].shield.__enter__()
            warnings.warn("dropkit.sites: a compiled model that is addressed runs as it was written.", stacklevel=2)


def _nothing(_module: Module, *_: Any) -> None:
    pass


class Attachment:
    """An interceptor on a model, until it is removed.

    Args:
        model: The model.
        handler: What decides what happens at its sites.
        is_eager: Whether nothing compiled runs meanwhile; else compiled code is compiled anew, for it does not notice
            that hooks come and go.
    """

    def __init__(self, model: Module, handler: Handler, is_eager: bool = False) -> None:
        self._is_eager = is_eager
        self.interceptor = Interceptor(model, handler)
        kind = _EagerHook if handler.is_uncompiled else _Hook
        enter, leave = kind(self.interceptor.enter, handler.is_last), kind(self.interceptor.leave)
        self._hooks: list[Any] = []
        for module in module_names(model).values():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                continue
            self._hooks.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))
            _order(module)
        checkpoints.watch(self.interceptor)
        self._recompile()

    def remove(self) -> None:
        """Take the interceptor off the model."""
        checkpoints.unwatch(self.interceptor)
        self.interceptor.is_attached = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.interceptor.abandon()
        self._recompile()

    def _recompile(self) -> None:
        if not self._is_eager and "torch._dynamo" in sys.modules:
            torch.compiler.reset()


def _order(module: Module) -> None:
    """Let those enter first that are asked last: of modes the innermost is asked first."""
    hooks: Any = module._forward_pre_hooks  # an ordered dict, whatever its type says
    for number in [number for number, hook in hooks.items() if isinstance(hook, _Hook) and hook.is_last]:
        hooks.move_to_end(number, last=False)


def attached_to(model: Module) -> list[Interceptor]:
    """Return the interceptors that are attached to any module of a model, each once."""
    hooks = [(module, hook) for module in model.modules() for hook in module._forward_pre_hooks.values()]
    owners = [getattr(hook.act, "__self__", None) for _, hook in hooks if isinstance(hook, _Hook)]
    return list({id(owner): owner for owner in owners if isinstance(owner, Interceptor)}.values())


@contextmanager
def attached(model: Module, handler: Handler, is_eager: bool = False) -> Iterator[Interceptor]:
    """Attach an interceptor to a model for a while."""
    attachment = Attachment(model, handler, is_eager)
    try:
        yield attachment.interceptor
    finally:
        attachment.remove()
