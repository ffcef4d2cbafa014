"""Dropout of any model on dropkit's kernels, without a change of the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module, MultiheadAttention, RNNBase
from torch.nn.modules.dropout import _DropoutNd

from dropkit._checks import argument_type_error
from dropkit.sites.interception import checkpoints
from dropkit.sites.interception.attachment import Hook, keep_turns
from dropkit.sites.interception.names import module_names, unwrapped
from dropkit.sites.interception.replacing import ReplacingMode
from dropkit.sites.interception.underneath import check_no_script, hidden_in_scripts

__all__ = ["Acceleration", "Replaced", "Report", "accelerate"]


@dataclass
class Replaced:
    """Calls of one kind in one module that draw dropout, or what may be a mask; of one rate, where no model is known.

    Args:
        path: Name of the module whose forward draws; empty where no model is known.
        kind: What draws, as in lists of sites; or a random operator.
        p: Probability of dropping, at the last call; None where it is not known.
        calls: How often it was called.
        reason: Why it runs on PyTorch's own operations; empty if it runs on dropkit's kernels.
    """

    path: str
    kind: str
    p: Any
    calls: int = 0
    reason: str = ""


class Report(list[Replaced]):
    """What was replaced, in the order of the first calls; printed, a table.

    Args:
        rows: What was replaced.
        is_compiled: Whether the model was compiled, or a part of it, whose code is not seen.
    """

    def __init__(self, rows: Iterable[Replaced] = (), is_compiled: bool = False) -> None:
        super().__init__(rows)
        self.is_compiled = is_compiled

    def __str__(self) -> str:
        note = "compiled code is left to the compiler, and what it draws is not counted"
        return "\n".join([self._table(), note] if self.is_compiled else [self._table()])

    def _table(self) -> str:
        if not self:
            return f"nothing has drawn dropout {'in other code ' if self.is_compiled else ''}yet"
        rows = [("module", "kind", "p", "calls", "runs on"), *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _cells(one: Replaced) -> tuple[str, ...]:
    runs_on = f"PyTorch: {one.reason}" if one.reason else "dropkit's kernels"
    return one.path or "-", one.kind, "?" if one.p is None else f"{float(one.p):g}", str(one.calls), runs_on


def accelerate(model: Module | None = None, *, verbose: bool = False) -> "Acceleration":
    """Run all dropout of a model on dropkit's kernels.

    Layers, functions, attention and recurrent networks draw from the same distribution as before, by PyTorch's
    generator, so that `torch.manual_seed` repeats a run; the masks are others. The model's code, its `state_dict` and
    the classes of its modules stay as they are, and so does what runs in evaluation mode or is compiled, and whatever
    dropkit's kernels do not take: tensors on other devices, nested and sparse ones. Masks that the model makes by hand,
    such as those of other libraries' DropPath, are left alone; the report lists the random numbers of a model.

    Args:
        model: The model, wrapped or not. Default: whatever runs within the ``with`` statement.
        verbose: Whether to print every replacement when it first happens. Default: False.

    Returns:
        A handle: `report()` tells what was replaced, and `remove()`, or the end of a ``with`` statement, undoes it.

    Raises:
        ArgumentTypeError: If `model` is no module.
        UnsupportedError: If it is a TorchScript module that draws dropout.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.25), torch.nn.Linear(8, 2))
        >>> handle = dropkit.sites.accelerate(model)
        >>> model(torch.ones(5, 4)).shape
        torch.Size([5, 2])
        >>> print(handle.report())
        module  kind     p     calls  runs on
        1       dropout  0.25  1      dropkit's kernels
        >>> handle.remove()
        >>> with dropkit.sites.accelerate():
        ...     y = model(torch.ones(5, 4))
    """
    if model is not None and not isinstance(model, Module):
        raise argument_type_error("accelerate", "model", "a torch.nn.Module, or None", model)
    if type(verbose) is not bool:
        raise argument_type_error("accelerate", "verbose", "True or False", verbose)
    return Acceleration(model, verbose)


class Acceleration:
    """What `accelerate` returns; within a ``with`` statement it ends with that."""

    def __init__(self, model: Module | None, verbose: bool) -> None:
        self._verbose, self._has_model = verbose, model is not None
        self._found: dict[tuple[str, str, str, float | None], Replaced] = {}
        self._is_compiled = model is not None and any(map(_is_compiled, model.modules()))
        names = {} if model is None else module_names(unwrapped(model))
        if model is not None:
            check_no_script("accelerate", model, is_nested_allowed=True)
            for name in hidden_in_scripts(model):
                self._note(name, "dropout", None, "TorchScript, whose calls are not seen", calls=0)
        self._mode = ReplacingMode({id(module): name for name, module in names.items()}, self._note)
        self._hooks: list[Any] = []
        enter, leave = Hook(self._mode.enter, self._mode.turn), Hook(self._mode.leave)
        for module in names.values():
            if not _draws_nothing(module):
                self._hooks.append(module.register_forward_pre_hook(enter, prepend=True))
                self._hooks.append(module.register_forward_hook(leave, always_call=True))
                keep_turns(module)
        if self._has_model:
            checkpoints.watch(self._mode)

    def report(self) -> Report:
        """Return what was replaced so far, and what was not and why."""
        return Report(self._found.values(), self._is_compiled)

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._mode.abandon()
        checkpoints.unwatch(self._mode)

    def __enter__(self) -> "Acceleration":
        """Begin a ``with`` statement."""
        if not self._has_model:
            checkpoints.watch(self._mode)
            self._mode.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """End it, and undo all."""
        if not self._has_model:
            self._mode.__exit__(None, None, None)
        self.remove()

    def _note(self, path: str, kind: str, p: Any, reason: str, calls: int = 1) -> None:
        rate = None if self._has_model or not isinstance(p, float | int) else float(p)  # a module's may be scheduled
        found = self._found.get((path, kind, reason, rate))
        if found is None:
            found = self._found[path, kind, reason, rate] = Replaced(path, kind, p, 0, reason)
            if self._verbose:
                print("  ".join(_cells(found)[:3]), "->", _cells(found)[4])  # noqa: T201  # asked for
        found.calls, found.p = found.calls + calls, p


def _is_compiled(module: Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _draws_nothing(module: Module) -> bool:
    """Tell whether nothing need be seen in a module: it takes no hooks, or PyTorch's code of it draws no dropout.

    Layers inside of it have hooks of their own.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return True
    is_stock = type(module).__module__.startswith("torch.nn.modules.")
    return is_stock and not isinstance(module, _DropoutNd | RNNBase | MultiheadAttention)
