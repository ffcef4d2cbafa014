"""The one interceptor: it gives every call that draws dropout, while a model's forward runs, to a handler."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from dropkit.errors import UnsupportedError
from dropkit.sites.functions import Call, find_call
from dropkit.sites.names import is_dropout_layer, module_names

__all__ = ["Attachment", "Frame", "Handler", "Interceptor", "Place", "attached"]


@dataclass
class Frame:
    """A run of a module's forward that has not ended.

    Args:
        module: The module.
        name: Its name in the model.
        run: How many times it ran before, since runs were last counted anew.
        functions: How many dropout functions it has called.
        randoms: How many random operators it has called.
    """

    module: Module
    name: str
    run: int
    functions: int = 0
    randoms: int = 0


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
    """

    name: str
    module: Module
    path: str
    run: int


class Handler(Protocol):
    """What decides what happens at a site."""

    def dropout(self, place: Place, call: Call) -> Any:
        """Return what a call that draws dropout, or is asked not to, shall return; ``call.run()`` lets it run."""

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what any other call of PyTorch shall return; ``function(*args, **kwargs)`` lets it run."""


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
        self.names = {id(module): name for name, module in module_names(model).items()}
        self.frames: list[Frame] = []
        self.runs: dict[str, int] = {}
        self.keeps_runs = False  # whether runs go on being counted after the outermost forward has ended
        self._thread: int | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give a call to the handler."""
        call = find_call(func, args, kwargs or {})
        if call is None:
            return self.handler.other(func, args, kwargs or {})
        return self.handler.dropout(self.place(), call)

    def place(self) -> Place:
        """Return the place of the dropout function that is being called, and count it."""
        frame = self.frames[-1]
        number, frame.functions = frame.functions, frame.functions + 1
        is_plain = number == 0 and is_dropout_layer(frame.module)
        return Place(frame.name if is_plain else f"{frame.name}#{number}", frame.module, frame.name, frame.run)

    def random_place(self) -> Place:
        """Return the place of the random operator that is being called, and count it."""
        frame = self.frames[-1]
        number, frame.randoms = frame.randoms, frame.randoms + 1
        return Place(f"{frame.name}~{number}", frame.module, frame.name, frame.run)

    def enter(self, module: Module) -> None:
        """Note that a module's forward begins; with the outermost, calls begin to be seen."""
        name = self.names.get(id(module))
        if name is None:  # a copy of a module of the model, which has the hooks but is none of it
            return
        if not self.frames:
            self._thread = _thread()
            self.__enter__()
        elif self._thread != _thread():
            remedy = "Run them one after another, or give each thread a copy of the model."
            raise UnsupportedError(f"dropkit.sites: two threads run forwards of one model at once. {remedy}")
        run = self.runs.get(name, 0)
        self.runs[name] = run + 1
        self.frames.append(Frame(module, name, run))

    def leave(self, module: Module) -> None:
        """Note that a module's forward has ended, perhaps with an exception."""
        if self.frames and self.frames[-1].module is module and self._thread == _thread():
            self.frames.pop()
            if not self.frames:
                self.__exit__(None, None, None)
                if not self.keeps_runs:
                    self.runs.clear()


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class _Hook:
    """A hook that belongs to one model: a copy of the model, or one that is loaded again, does without."""

    def __init__(self, act: Callable[[Module], None]) -> None:
        self.act = act

    def __call__(self, module: Module, *_: Any) -> None:
        self.act(module)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return _Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing,)


def _nothing(_module: Module) -> None:
    pass


class Attachment:
    """An interceptor on a model, until it is removed.

    Args:
        model: The model.
        handler: What decides what happens at its sites.
    """

    def __init__(self, model: Module, handler: Handler) -> None:
        self.interceptor = Interceptor(model, handler)
        enter, leave = _Hook(self.interceptor.enter), _Hook(self.interceptor.leave)
        self._hooks: list[Any] = []
        for module in module_names(model).values():
            self._hooks.append(module.register_forward_pre_hook(enter, prepend=True))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def remove(self) -> None:
        """Take the interceptor off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


@contextmanager
def attached(model: Module, handler: Handler) -> Iterator[Interceptor]:
    """Attach an interceptor to a model for a while."""
    attachment = Attachment(model, handler)
    try:
        yield attachment.interceptor
    finally:
        attachment.remove()
