"""Activation checkpointing: whatever is attached to a model acts on a recomputed forward as it did on the first.

No mode is active while PyTorch recomputes a forward in the backward pass, and whatever counts has counted on. So every
checkpoint notes where it is, and the recomputation goes on from there: in its own thread, and with nothing else.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.overrides import _get_current_function_mode_stack
from torch.utils import checkpoint

from dropkit.errors import UnsupportedError
from dropkit.sites.interception import compiler
from dropkit.sites.interception.counts import as_then
from dropkit.sites.interception.modes import replaced_modes

if TYPE_CHECKING:
    from dropkit.sites.interception.interceptor import Interceptor, Snapshot
    from dropkit.sites.interception.replacing import ReplacingMode, Running

__all__ = ["carry", "is_recomputing", "joins", "uncompiled", "unwatch", "watch", "watched"]

_watched: "weakref.WeakSet[Interceptor | ReplacingMode]" = weakref.WeakSet()
_carried: list[ContextVar[Any]] = []


class _Thread(threading.local):
    """What a thread does now.

    Args:
        begun: Checkpoints whose forwards run, outermost first.
        recomputed: Checkpoints whose recomputations run, outermost first.
    """

    def __init__(self) -> None:
        self.begun: list[_Point] = []
        self.recomputed: list[_Point] = []


_thread = _Thread()


def watched() -> "list[Interceptor | ReplacingMode]":
    """Return all interceptors that are attached to models."""
    return list(_watched)


def carry(variable: ContextVar[Any]) -> None:
    """Let recomputations see what a context variable was in the forward."""
    _carried.append(variable)


def is_recomputing() -> bool:
    """Tell whether this thread recomputes a forward."""
    return bool(_thread.recomputed)


def joins(interceptor: "Interceptor") -> None:
    """Note that a forward begins, perhaps in what is checkpointed, which will then be a part of the recomputation."""
    for point in _thread.begun:
        if interceptor in point.attached:
            point.joined.append(interceptor)


def watch(interceptor: "Interceptor | ReplacingMode") -> None:
    """Let an interceptor act on recomputations."""
    _watched.add(interceptor)
    if checkpoint._CheckpointFrame is _PlainFrame:
        checkpoint._CheckpointFrame = _Frame  # type: ignore[misc]  # where PyTorch looks it up
    if checkpoint._checkpoint_hook is _PlainHooks:
        checkpoint._checkpoint_hook = _Hooks  # type: ignore[misc]  # the same
    if checkpoint.CheckpointFunction.forward is _plain_forward:
        checkpoint.CheckpointFunction.forward = staticmethod(_forward)  # type: ignore[method-assign]  # the same


def unwatch(interceptor: "Interceptor | ReplacingMode") -> None:
    """Let an interceptor go; PyTorch is as it was once none is left."""
    _watched.discard(interceptor)
    if _watched:
        return
    compiler.unwatch()
    if checkpoint._CheckpointFrame is _Frame:  # else somebody else has put his own in its place
        checkpoint._CheckpointFrame = _PlainFrame  # type: ignore[misc]  # as above
    if checkpoint._checkpoint_hook is _Hooks:
        checkpoint._checkpoint_hook = _PlainHooks  # type: ignore[misc]  # as above
    if checkpoint.CheckpointFunction.forward is _forward:
        checkpoint.CheckpointFunction.forward = staticmethod(_plain_forward)  # type: ignore[method-assign]  # as above


_PlainFrame = checkpoint._CheckpointFrame
_PlainHooks = checkpoint._checkpoint_hook
_plain_forward = checkpoint.CheckpointFunction.forward


class _Point:
    """Where a checkpoint is: all that its recomputation depends on.

    Args:
        function: What is checkpointed, if that is known, for a module that checkpoints itself does so in a hook, after
            its run was entered, and is called again.
    """

    def __init__(self, function: object = None) -> None:
        order = {id(mode): number for number, mode in enumerate(_get_current_function_mode_stack())}
        # What is muted was attached after the forward of which this is the recomputation.
        attached = [each for each in sorted(_watched, key=lambda each: order.get(id(each), -1)) if not each.is_muted()]
        self.attached = weakref.WeakSet(attached)
        snapshots = (each.snapshot() for each in attached)
        self.snapshots: list[Snapshot | Running] = [each.before(function) for each in snapshots if each is not None]
        counts = [each.counts for each in attached if each.counts is not None]
        self.states = {each: each.state() for each in counts}
        self.is_as_written = bool(counts)
        self.carried = [(variable, variable.get()) for variable in _carried]
        self.joined: list[Interceptor] = []

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Run the forward: nothing compiled, where the recomputation could not run that again."""
        _thread.begun.append(self)
        try:
            with uncompiled() if self.is_as_written else nullcontext():
                yield
        finally:
            _thread.begun.remove(self)

    @contextmanager
    def recomputation(self) -> Iterator[None]:
        """Let everything be, in this thread and meanwhile, as it was here."""
        own = {id(snapshot.interceptor) for snapshot in self.snapshots}
        modes = [each.interceptor for each in self.snapshots if each.is_active]
        _thread.recomputed.append(self)
        try:
            self._check_attached()
            with ExitStack() as stack:
                if self.is_as_written:
                    stack.enter_context(uncompiled())
                for variable, value in self.carried:
                    stack.callback(variable.reset, variable.set(value))
                stack.enter_context(as_then(self.states))
                for later in watched():
                    if later not in self.attached:
                        stack.enter_context(later.muted())
                stack.enter_context(replaced_modes(lambda mode: id(mode) in own or mode in _watched, modes))
                for snapshot in self.snapshots:
                    stack.enter_context(snapshot.interceptor.resumed(snapshot))  # type: ignore[arg-type]  # its own
                for running in self.attached:
                    if id(running) not in own:
                        stack.enter_context(running.set_aside())
                yield
        finally:
            _thread.recomputed.pop()

    def _check_attached(self) -> None:
        """Raise if something was closed that took part in the forward."""
        took_part = [*(snapshot.interceptor for snapshot in self.snapshots), *self.joined]
        if not all(each.is_attached for each in took_part):
            raise UnsupportedError(
                "dropkit.sites: a checkpointed forward is recomputed after what had changed its dropout was closed, so "
                "its gradients would be wrong. Close it after the backward pass."
            )


class _Frame(_PlainFrame):
    """What checkpointing that is not reentrant keeps of a forward; also that of modules that checkpoint themselves."""

    def __init__(self, recompute_fn: Callable[..., Any], *rest: Any, **named: Any) -> None:
        self.point = _Point(_closed_over(recompute_fn).get("fn"))
        super().__init__(_resuming(recompute_fn, self.point), *rest, **named)


class _Hooks(_PlainHooks):
    """What keeps a forward's tensors from being saved; meanwhile it runs as its recomputation will."""

    def __init__(self, frame: Any) -> None:
        super().__init__(frame)
        point = getattr(frame, "point", None)  # it may be of before anything was attached
        self._forward: AbstractContextManager[Any] = nullcontext() if point is None else point.forward()

    def __enter__(self) -> None:
        self._forward.__enter__()
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._forward.__exit__(None, None, None)


def _forward(ctx: Any, run_function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    point = _Point()
    with point.forward():
        outputs = _plain_forward(ctx, run_function, preserve_rng_state, *args)
    ctx.run_function = _resuming(run_function, point)
    return outputs


def _resuming(function: Callable[..., Any], point: _Point) -> Callable[..., Any]:
    """Return a function that runs as it would have run at a checkpoint."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with point.recomputation():
            return function(*args, **kwargs)

    return run


def has_compiled_parts(module: Module) -> bool:
    """Tell whether a module that runs as it was written has parts that were compiled for themselves."""
    if "torch._dynamo" not in sys.modules:
        return False
    from torch._dynamo import OptimizedModule

    return any(
        part is not module and (isinstance(part, OptimizedModule) or part._compiled_call_impl is not None)
        for part in module.modules()
    )


def _closed_over(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what a function's own scope gives it, by name, as far as it is there yet."""
    cells = getattr(function, "__closure__", None) or ()
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, cells, strict=False):
        with suppress(ValueError):  # nothing is in it
            found[name] = cell.cell_contents
    return found


class _AsWritten:
    """Keeps compiled code from running, of which PyTorch knows only for all threads at once."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0
        self._stance: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._depth:
                self._stance = torch.compiler.set_stance("force_eager")
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:  # the last of the threads, for each would put back what it had found
                self._depth -= 1
                if not self._depth:
                    self._stance.__exit__(None, None, None)


_as_written = _AsWritten()


def uncompiled() -> AbstractContextManager[Any]:
    """Let functions and modules that were compiled run as they were written, meanwhile."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading it takes seconds
        return nullcontext()
    return _as_written()
