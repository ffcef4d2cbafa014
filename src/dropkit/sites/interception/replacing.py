"""A function mode that runs dropout on dropkit's kernels, and costs other calls as little as a mode can."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn import Module
from torch.overrides import TorchFunctionMode

import dropkit.functional as ours
from dropkit.functional.eager import is_plain
from dropkit.sites.calls.functions import FUNCTIONS, find_call
from dropkit.sites.calls.replacement import refusal, replaced
from dropkit.sites.handwritten.draws import MASKING
from dropkit.sites.interception.attachment import Hook
from dropkit.sites.interception.interceptor import is_running
from dropkit.sites.interception.modes import enter_in_turn, is_entered, leave

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["ReplacingMode", "Running"]

_STOCK = frozenset(function for function, row in FUNCTIONS.items() if row.key is None)
_SEEN = _STOCK | MASKING.keys()
_BY_HAND = "random numbers, of which the model may make a mask by hand"


class _Thread(threading.local):
    """What a thread does now.

    Args:
        paths: Names of the modules whose forwards run, outermost first.
        caller: The frame that called the outermost.
        is_muted: Whether everything runs as it is.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.caller: FrameType | None = None
        self.is_muted = False


@dataclass(frozen=True)
class Running:
    """Where a forward is, for its recomputation during the backward pass."""

    interceptor: "ReplacingMode"
    paths: tuple[str, ...]
    is_active: bool

    def before(self, _function: object) -> "Running":
        """Return the same: nothing is counted."""
        return self


class ReplacingMode(TorchFunctionMode):
    """Runs dropout on dropkit's kernels.

    Args:
        names: Names of the modules within whose forwards it is entered, by their ids.
        note: What is told of every call that drops: the module's name, the kind, the rate, and why it was left alone.
    """

    turn = 2
    counts = None
    is_attached = True  # for the gradients of forwards that it took part in, also when it is undone

    def __init__(self, names: Mapping[int, str], note: Callable[[str, str, Any, str], None]) -> None:
        super().__init__()
        self.names, self.note = names, note
        self.thread = _Thread()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call of PyTorch, on dropkit's kernels if it draws dropout."""
        try:
            is_seen = func in _SEEN and not self.thread.is_muted
        except TypeError:  # it has no hash
            is_seen = False
        if is_seen:
            return self._run(func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():  # whose kernels have dropout in them
            return function(*args, **kwargs)
        if function in MASKING:
            if self.thread.paths:
                self._note(MASKING[function], None, _BY_HAND)
            return function(*args, **kwargs)
        if function is F.dropout and len(args) == 1:
            p, training = kwargs.get("p", 0.5), kwargs.get("training", True)
            if training is False:
                return function(*args, **kwargs)
            is_usual = training is True and type(p) is float and 0 < p < 1 and not kwargs.get("inplace", False)
            if is_usual and is_plain(args[0]):
                self._note("dropout", p)
                return ours.dropout(args[0], p)
        call = find_call(function, args, kwargs)
        if call is None or not (call.has_input and call.is_active):
            return function(*args, **kwargs)
        reason = refusal(call)
        self._note(call.function.kind, call.p, reason)
        return function(*args, **kwargs) if reason else replaced(call)

    def _note(self, kind: str, p: Any, reason: str = "") -> None:
        paths = self.thread.paths
        self.note(paths[-1] if paths else "", kind, p, reason)

    def enter(self, module: Module, *_: Any) -> None:
        """Note that a module's forward begins; with the outermost in training, calls begin to be seen.

        In evaluation nothing draws, and PyTorch takes its fused ways where no mode is entered; only where another
        handler looks on, which may switch dropout on, are those off anyway.
        """
        if torch.compiler.is_compiling():
            return
        thread, name = self.thread, self.names.get(id(module))
        if thread.paths and thread.paths[0] == name and not is_running(thread.caller):
            self._end()  # an interrupt has ended the last forward, and no hook was called
        if not thread.paths:
            if name is None or not (module.training or self._is_watched(module)):
                return
            thread.caller = sys._getframe(2)
            enter_in_turn(self, self.turn)
        thread.paths.append(thread.paths[-1] if name is None else name)

    def leave(self, _module: Module, *_: Any) -> None:
        """Note that a module's forward has ended, perhaps with an exception."""
        paths = self.thread.paths
        if paths and not torch.compiler.is_compiling():
            paths.pop()
            if not paths:
                self._end()

    def _end(self) -> None:
        self.thread.paths.clear()
        self.thread.caller = None
        leave(self)

    def abandon(self) -> None:
        """Forget a forward that an interrupt cut off, for which PyTorch calls no hook."""
        if not self.thread.paths or is_running(self.thread.caller):
            return
        self.thread.paths.clear()
        self.thread.caller = None
        leave(self)

    def _is_watched(self, module: Module) -> bool:
        hooks = module._forward_pre_hooks.values()
        return any(isinstance(hook, Hook) and hook.act != self.enter for hook in hooks)

    def snapshot(self) -> Running:
        """Return where the forward is now."""
        return Running(self, tuple(self.thread.paths), is_entered(self))

    def is_muted(self) -> bool:
        """Whether everything runs as it is in this thread."""
        return self.thread.is_muted

    @contextmanager
    def resumed(self, snapshot: Running) -> Iterator[None]:
        """Go on, meanwhile, as where a forward was, in whatever thread."""
        thread = self.thread
        before, thread.paths = thread.paths, list(snapshot.paths)
        try:
            yield
        finally:
            thread.paths = before

    def set_aside(self) -> AbstractContextManager[None]:
        """Do nothing: it has a snapshot wherever it is attached."""
        return nullcontext()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Let everything run as it is, meanwhile."""
        before, self.thread.is_muted = self.thread.is_muted, True
        try:
            yield
        finally:
            self.thread.is_muted = before
