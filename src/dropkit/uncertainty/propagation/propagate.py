"""A forward whose tensors are random: every function that it calls is answered by its rule."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from dropkit.errors import UnsupportedError
from dropkit.sites.calls.functions import Call, find_call
from dropkit.sites.interception.names import module_names
from dropkit.uncertainty.propagation.noise import COMPOSED, NOISE
from dropkit.uncertainty.propagation.rules import LEAVES_FRESH, METADATA, RULES
from dropkit.uncertainty.propagation.variables import Sources, Variable

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["REMEDY", "Propagation"]

REMEDY = "Sample instead: dropkit.uncertainty.mc."


class Handle(Tensor):
    """What a model's code holds of a random tensor: a tensor with its mean, that has the variable beside it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # the mode answers

    variable: Variable
    memory: list[int]  # how often the values that it shares with its views were overwritten
    seen: int

    @staticmethod
    def of(variable: Variable, memory: list[int] | None = None) -> "Handle":
        """Return a new handle."""
        made = Tensor._make_subclass(Handle, variable.mean)
        made.variable, made.memory = variable, [0] if memory is None else memory
        made.seen = made.memory[0]
        return made

    def overwrite(self, variable: Variable) -> "Handle":
        """Become another random tensor, as a function does that works in place."""
        self.variable = variable
        self.memory[0] += 1
        self.seen = self.memory[0]
        return self


class Propagation(TorchFunctionMode):
    """One pass of means and covariances through a model.

    Args:
        model: The model, whose forward runs within.
        rank: As for `Sources`.
    """

    def __init__(self, model: Module, rank: int | None) -> None:
        super().__init__()
        self.sources = Sources(rank, self._where)
        self.calls = 0  # of functions that dropped
        self.has_inactive = False  # whether one was asked not to that has a rate
        self._names = {id(module): name for name, module in module_names(model).items()}

    def wrapped(self, value: Any) -> Any:
        """Return a value with a handle for every tensor of one axis or more."""
        return tree_map(self._wrap, value)

    def _wrap(self, value: Any) -> Any:
        is_plain = isinstance(value, Tensor) and not isinstance(value, Handle) and value.dim() > 0
        return Handle.of(self.sources.variable(value)) if is_plain else value

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a call: by a rule if something random is among its arguments, else as it is."""
        named = kwargs or {}
        if function in METADATA:
            return function(*args, **named)
        call = find_call(function, args, named)
        if call is not None and not call.is_active and call.switched(True).is_active:
            self.has_inactive = True
        if call is not None and call.function.kind in NOISE:
            return self._noise(call)
        handles = [leaf for leaf in tree_leaves((args, dict(named))) if isinstance(leaf, Handle)]
        self._check_current(function, handles)
        if not any(handle.variable.is_random for handle in handles):
            return self._plain(function, args, named, handles)
        return self._random(function, args, named, handles)

    def _random(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], handles: list[Handle]
    ) -> Any:
        """Answer a call by its rule."""
        rule = RULES.get(function)
        if rule is None:
            raise self._refusal(_name(function), "has no rule for random tensors")
        given, by_name = tree_map(_variable, (args, dict(named)))
        if function not in LEAVES_FRESH:
            for each in handles:
                self.sources.settle(each.variable)
        try:
            result = rule(self.sources, *given, **by_name)
        except UnsupportedError as error:
            raise self._refusal(_name(function), f"{error} has no rule") from error
        except TypeError as error:
            raise self._refusal(_name(function), f"with these arguments has no rule ({error})") from error
        if _is_in_place(function, args, named):
            return handles[0].overwrite(result)
        memory = handles[0].memory if len(handles) == 1 and _is_view(function) else None
        return tree_map(lambda made: Handle.of(made, memory) if isinstance(made, Variable) else made, result)

    def _plain(
        self, function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], handles: list[Handle]
    ) -> Any:
        """Run a function of tensors of which none is random."""
        if not handles:
            return function(*args, **named)
        means = {id(handle.variable.mean): handle for handle in handles}
        given, by_name = tree_map(lambda leaf: leaf.variable.mean if isinstance(leaf, Handle) else leaf, (args, named))
        result = function(*given, **by_name)
        return tree_map(lambda leaf: means[id(leaf)] if id(leaf) in means else self._wrap(leaf), result)

    def _noise(self, call: Call) -> Any:
        """Answer a call of a function that may drop."""
        given, kind = call.arguments, call.function.kind
        if any(given.get(name) is not None for name in ("mask", "noise")) or given.get("return_mask"):
            raise self._refusal(kind, "with a mask of its own has no rule")
        if not call.is_active and kind not in COMPOSED:
            return given["input"]
        handle = given["input"]
        if not isinstance(handle, Handle):
            raise self._refusal(kind, "of what is no example's, such as weights, has no rule")
        self.calls += call.is_active
        self._check_current(call.function.function, [handle])
        variables = {name: _variable(value) for name, value in given.items()}
        if not call.is_active:  # and does more than drop
            variables[str(call.function.rate)] = 0.0
        try:
            made = NOISE[kind](self.sources, call.changed(**variables))
        except UnsupportedError as error:
            raise self._refusal(kind, f"{error}") from error
        is_in_place = given.get("inplace") or call.function.function.__name__.endswith("_")
        return handle.overwrite(made) if is_in_place else Handle.of(made)

    def _check_current(self, function: Callable[..., Any], handles: list[Handle]) -> None:
        if any(handle.seen != handle.memory[0] for handle in handles):
            raise self._refusal(_name(function), "of a view of what was overwritten in place has no rule")

    def _refusal(self, what: str, why: str) -> UnsupportedError:
        where = self._where()
        return UnsupportedError(f"moments: {what} {why}{f', in module {where!r}' if where else ''}. {REMEDY}")

    def _where(self) -> str:
        """Return the name of the innermost module whose code runs."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name
            frame = frame.f_back
        return ""


def _variable(value: Any) -> Any:
    return value.variable if isinstance(value, Handle) else value


def _name(function: Callable[..., Any]) -> str:
    return resolve_name(function) or getattr(function, "__name__", repr(function))


def _is_in_place(function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    is_method = name.endswith("_") and not name.endswith("__")
    is_operator = name.startswith("__i") and name.endswith("__")
    if is_method or is_operator or named.get("inplace"):
        return True
    place = _position(function)
    return place is not None and len(args) > place and bool(args[place])


@cache
def _position(function: Callable[..., Any]) -> int | None:
    """Return which argument of a Python function says that it works in place, if one does."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return names.index("inplace") if "inplace" in names else None


_VIEWS = frozenset(
    ("flatten", "unflatten", "reshape", "view", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze",
     "contiguous", "chunk", "split", "unbind", "select", "narrow", "expand", "__getitem__", "detach", "to")
)  # fmt: skip


def _is_view(function: Callable[..., Any]) -> bool:
    return getattr(function, "__name__", "") in _VIEWS
