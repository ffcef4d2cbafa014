"""Attaching an interceptor to a model, by hooks on all of its modules, and taking it off again."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.nn import Module

from dropkit.errors import UnsupportedError
from dropkit.sites.interception import checkpoints
from dropkit.sites.interception.compiler import while_compiling
from dropkit.sites.interception.interceptor import Handler, Interceptor
from dropkit.sites.interception.names import module_names
from dropkit.sites.interception.places import Shield
from dropkit.sites.interception.telling import warn

# Called from code that runs as it was written, hooks and modes are not compiled apart from it.
_SKIPPED = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)

_UNCOMPILED = (
    "dropkit.sites: where masks are those of numbered examples, or of workers, a model runs as it was written. "
    "Compile it without fullgraph=True."
)
_AS_WRITTEN = "dropkit.sites: a compiled model whose masks are those of examples runs as it was written."

__all__ = ["Attachment", "Hook", "attached", "attached_to", "keep_turns"]


class Hook:
    """A hook that belongs to one model: a copy of the model, or one that is loaded again, does without."""

    __name__ = "dropkit"

    def __init__(self, act: Callable[..., None], turn: int = 1) -> None:
        self.act = act
        self.turn = turn

    def __call__(self, module: Module, inputs: Any, *rest: Any) -> None:
        """Act."""
        self.act(module, inputs, *rest)

    @property
    def __globals__(self) -> dict[str, Any]:
        """Raise: the compiler of TorchScript asks for it, and has no room for what is done to the model."""
        raise UnsupportedError(
            "torch.jit.script: dropkit.sites changes this model, or the one that it is a copy of. Close the handle "
            "first."
        )

    def __deepcopy__(self, memo: Any) -> "Hook":
        return Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_nothing,)


class _InterceptorHook(Hook):
    """A hook of an interceptor, whose handler may want the model to run as it was written."""

    def __init__(self, act: Callable[..., None], interceptor: Interceptor, turn: int = 1) -> None:
        super().__init__(act, turn)
        self.interceptor = interceptor

    def __call__(self, module: Module, inputs: Any, *rest: Any) -> None:
        if not self.interceptor.handler.is_uncompiled:
            self.act(module, inputs, *rest)
            return
        if torch.compiler.is_dynamo_compiling():
            _note_compiled(self.interceptor)
            torch._dynamo.graph_break(msg=_UNCOMPILED)
        self.act(module, inputs, *rest)
        frames = self.interceptor.frames
        if (
            self.interceptor.is_compiled
            and frames
            and frames[-1].module is module
            and not any(frame.shield for frame in frames)
        ):
            frames[-1].shield = Shield()
            frames[-1].shield.__enter__()
            warn(_AS_WRITTEN)


for _function in (_InterceptorHook.__call__, Interceptor.__torch_function__):
    set_code_exec_strategy(_function.__code__, _SKIPPED)


@while_compiling
def _note_compiled(interceptor: Interceptor) -> None:
    """Note that compiled code calls the model, which a hook cannot tell that was left out of it."""
    interceptor.is_compiled = True


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
        self._is_eager, self._has_told = is_eager, False
        self.interceptor = Interceptor(model, handler)
        enter = _InterceptorHook(self.interceptor.enter, self.interceptor, handler.turn)
        leave = _InterceptorHook(self.interceptor.leave, self.interceptor)
        self._hooks: list[Any] = []
        for module in module_names(model).values():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
                continue
            self._hooks.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))
            keep_turns(module)
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

    def tell_of_parts(self, module: Module) -> None:
        """Warn once of parts that were compiled, before an outermost forward that runs as it was written."""
        interceptor = self.interceptor
        if self._has_told or interceptor.is_compiled or not interceptor.handler.is_uncompiled:
            return
        self._has_told = True
        if checkpoints.has_compiled_parts(module):
            warn(_AS_WRITTEN)

    def _recompile(self) -> None:
        if not self._is_eager and "torch._dynamo" in sys.modules:
            torch.compiler.reset()


def keep_turns(module: Module) -> None:
    """Let those enter first that are asked last, and all before other hooks: of modes the innermost is asked first."""
    hooks: Any = module._forward_pre_hooks  # an ordered dict, whatever its type says
    own = [number for number, hook in hooks.items() if isinstance(hook, Hook)]
    own.sort(key=lambda number: -hooks[number].turn)
    for number in reversed(own):
        hooks.move_to_end(number, last=False)


def attached_to(model: Module) -> list[Interceptor]:
    """Return the interceptors that are attached to any module of a model, each once."""
    hooks = [(module, hook) for module in model.modules() for hook in module._forward_pre_hooks.values()]
    owners = [getattr(hook.act, "__self__", None) for _, hook in hooks if isinstance(hook, Hook)]
    return list({id(owner): owner for owner in owners if isinstance(owner, Interceptor)}.values())


@contextmanager
def attached(model: Module, handler: Handler, is_eager: bool = False) -> Iterator[Interceptor]:
    """Attach an interceptor to a model for a while."""
    attachment = Attachment(model, handler, is_eager)
    try:
        yield attachment.interceptor
    finally:
        attachment.remove()
