"""Dropout that no function of Python's draws: that of TorchScript, seen as the operators that run underneath."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from dropkit.sites.interception.interceptor import Interceptor

__all__ = ["Operator", "Underneath", "scripts_followed"]


class Operator(NamedTuple):
    """A random operator that runs.

    Args:
        kind: What dropout it is; None where it is none, or cannot be told.
        p: Probability of dropping; None where it is not known.
        input: The tensor that noise is drawn for.
    """

    kind: str | None
    p: float | None
    input: Tensor | None


class Underneath(TorchDispatchMode):
    """Sees every random operator that runs, whatever has called it.

    Args:
        note: What is told of each.
    """

    supports_higher_order_operators = True

    def __init__(self, note: Callable[[Operator], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note an operator, and let it run."""
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            names = [argument.name for argument in func._schema.arguments]
            self.note(_operator(func._opname, dict(zip(names, args, strict=False)) | (kwargs or {})))
        with torch._C.DisableTorchFunction():  # else a function mode would see this call as one of the model's
            return func(*args, **(kwargs or {}))


def _operator(name: str, given: dict[str, Any]) -> Operator:
    first = next((value for value in given.values() if isinstance(value, Tensor)), None)
    if name.startswith("bernoulli"):
        kept = given.get("p", 0.5) if "p" in given or name.endswith("_") else None
        return Operator("dropout", round(1 - kept, 12) if isinstance(kept, float) else None, first)
    rate = given.get("p" if name == "native_dropout" else "dropout_p", given.get("dropout"))
    is_active = given.get("train") is not False and isinstance(rate, float) and rate > 0
    kind = "dropout" if name == "native_dropout" else "scaled_dot_product_attention" if "dropout_p" in given else "rnn"
    return Operator(kind if is_active else None, rate, first)


@contextmanager
def scripts_followed(interceptor: Interceptor) -> Iterator[None]:
    """Tell an interceptor of the ScriptModules that run, which take no hooks of their own."""

    def enter(module: Module, _: Any) -> None:
        if isinstance(module, ScriptModule):
            interceptor.enter(module)

    def leave(module: Module, *_: Any) -> None:
        if isinstance(module, ScriptModule):
            interceptor.leave(module)

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
