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

from dropkit.errors import UnsupportedError
from dropkit.sites.interception.interceptor import Interceptor
from dropkit.sites.interception.names import module_names

__all__ = ["Operator", "Underneath", "check_no_script", "hidden_in_scripts", "scripts_followed"]


class Operator(NamedTuple):
    """A random operator that runs.

    Args:
        kind: What dropout it is; None where it is none, or cannot be told.
        p: Probability of dropping; None where it is not known.
        input: The tensor that noise is drawn for.
        name: Its name.
    """

    kind: str | None
    p: float | None
    input: Tensor | None
    name: str


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
        return Operator("dropout", round(1 - kept, 12) if isinstance(kept, float) else None, first, name)
    rate = given.get("p" if name == "native_dropout" else "dropout_p", given.get("dropout"))
    is_active = given.get("train") is not False and isinstance(rate, float) and rate > 0
    kind = "dropout" if name == "native_dropout" else "scaled_dot_product_attention" if "dropout_p" in given else "rnn"
    return Operator(kind if is_active else None, rate, first, name)


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


def hidden_in_scripts(model: Module) -> list[str]:
    """Return the names of the TorchScript modules of a model that draw dropout; of one inside another, the outer's."""
    found: list[str] = []
    for name, module in module_names(model).items():
        is_inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, ScriptModule) and not is_inside and "dropout" in str(_graph(module)):
            found.append(name)
    return found


def _graph(module: ScriptModule) -> Any:
    return getattr(module, "inlined_graph", "")  # none where it has no forward


def check_no_script(where: str, model: Module, *, is_nested_allowed: bool = False) -> None:
    """Raise if a model is a TorchScript module that draws dropout, or has one in it."""
    for name in hidden_in_scripts(model):
        if name and is_nested_allowed:
            continue
        what, remedy = f"`{name}`" if name else "the model", "Use the module that it was compiled from."
        raise UnsupportedError(
            f"{where}: {what} is a TorchScript module that draws dropout, which nothing can reach. {remedy}"
        )
