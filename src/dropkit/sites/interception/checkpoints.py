"""Activation checkpointing: whatever is attached to a model acts on a recomputed forward as it did on the first.

No mode is active while PyTorch recomputes a forward in the backward pass, and whatever counts has counted on. So every
checkpoint takes a snapshot, and the recomputation goes on from it.
"""

import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils import checkpoint

from dropkit.sites.interception import compiler

if TYPE_CHECKING:
    from dropkit.sites.interception.interceptor import Interceptor, Snapshot
    from dropkit.sites.interception.replacing import ReplacingMode, Running

__all__ = ["uncompiled", "unwatch", "watch", "watched"]

_watched: "weakref.WeakSet[Interceptor | ReplacingMode]" = weakref.WeakSet()


def watched() -> "list[Interceptor | ReplacingMode]":
    """Return all interceptors that are attached to models."""
    return list(_watched)


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


class _Frame(_PlainFrame):
    """What checkpointing that is not reentrant keeps of a forward; also that of modules that checkpoint themselves."""

    def __init__(self, recompute_fn: Callable[..., Any], *rest: Any, **named: Any) -> None:
        # A module that checkpoints itself does so in a hook, after its run was entered, and is called again.
        function = _closed_over(recompute_fn).get("fn")
        snapshots = [snapshot.before(function) for snapshot in _snapshots()]
        super().__init__(_resuming(recompute_fn, snapshots), *rest, **named)


class _Hooks(_PlainHooks):
    """What keeps a forward's tensors from being saved; meanwhile it runs as its recomputation will."""

    def __enter__(self) -> None:
        self._as_written = _as_written()
        self._as_written.__enter__()
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._as_written.__exit__(None, None, None)


def _as_written() -> AbstractContextManager[Any]:
    """Let nothing compiled run, meanwhile, where a recomputation could not run it again."""
    is_any = any(getattr(each, "counts", None) is not None for each in _watched)
    return uncompiled() if is_any else nullcontext()


def uncompiled() -> AbstractContextManager[Any]:
    """Let functions and modules that were compiled run as they were written, meanwhile."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _closed_over(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what a function's own scope gives it, by name, as far as it is there yet."""
    cells = getattr(function, "__closure__", None) or ()
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, cells, strict=False):
        with suppress(ValueError):  # nothing is in it
            found[name] = cell.cell_contents
    return found


def _forward(ctx: Any, run_function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    snapshots = _snapshots()
    with _as_written():
        outputs = _plain_forward(ctx, run_function, preserve_rng_state, *args)
    ctx.run_function = _resuming(run_function, snapshots)
    return outputs


def _snapshots() -> "list[Snapshot | Running]":
    """Return a snapshot of everything that is attached to any model, in the order in which modes are entered."""
    order = {id(mode): number for number, mode in enumerate(_get_current_function_mode_stack())}
    return [each.snapshot() for each in sorted(_watched, key=lambda each: order.get(id(each), -1))]


def _resuming(function: Callable[..., Any], snapshots: "list[Snapshot | Running]") -> Callable[..., Any]:
    """Return a function that runs as it would have run when snapshots were taken."""

    def run(*args: Any, **kwargs: Any) -> Any:
        known = {id(snapshot.interceptor) for snapshot in snapshots}
        with ExitStack() as stack:
            for later in watched():
                if id(later) not in known:
                    stack.enter_context(later.muted())
            for snapshot in snapshots:
                stack.enter_context(snapshot.interceptor.resumed(snapshot))  # type: ignore[arg-type]  # its own
            return function(*args, **kwargs)

    return run
