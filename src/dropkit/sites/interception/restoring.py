"""Running a forward and leaving all as it was: modes, state of any kind, gradients, random generators, and counts."""

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from dataclasses import fields, is_dataclass
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from dropkit.sites.interception.attachment import attached_to
from dropkit.sites.interception.attributes import kept_attributes
from dropkit.sites.interception.values import kept_values

__all__ = ["cloned", "generators", "normalisation_layers", "restored", "set_mode"]

_State = tuple[Callable[[], Any], Callable[[Any], object]]
_HOOKS = [name for name in vars(Module()) if name.startswith("_forward") and "hooks" in name]


@contextmanager
def restored(model: Module, copies_parameters: bool = True) -> Iterator[None]:
    """Put everything back that a forward may change: flags, state of any kind, gradients, generators, counts of runs.

    Meanwhile there are no gradients, so that a forward that has a backward pass in it adds to none of the user's.

    Args:
        model: The model.
        copies_parameters: Whether parameters get their values back too, which takes a copy of all; else it is told if
            one has changed.
    """
    with ExitStack() as stack:
        stack.callback(_keep_runs(model))
        stack.callback(kept_attributes(model, copies_parameters))
        stack.callback(_keep_modules(model))
        stack.callback(_keep_hooks(model))
        stack.callback(_keep_gradients(model))
        for get, put in generators(model):
            stack.callback(put, get())
        stack.callback(_keep_cache())
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices))
        yield


def _keep_runs(model: Module) -> Callable[[], None]:
    runs = [(interceptor, dict(interceptor.runs)) for interceptor in attached_to(model)]
    counts = [(each.counts, each.counts.before) for each, _ in runs if each.counts is not None]

    def put_back() -> None:
        for interceptor, numbers in runs:
            interceptor.runs = numbers
        for counted, before in counts:
            counted.before = before

    return put_back


def _keep_modules(model: Module) -> Callable[[], None]:
    flags = [(module, module.training) for module in model.modules()]
    buffers = [kept_values(buffer) for buffer in model.buffers()]

    def put_back() -> None:
        for module, training in flags:
            module.training = training
        for put_back_buffer in buffers:
            put_back_buffer()

    return put_back


def _keep_hooks(model: Module) -> Callable[[], None]:
    """Let hooks that a forward registers be gone: it forgets that it has, and would register them again."""
    names = [vars(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [(each[name], tuple(each[name])) for each in names for name in _HOOKS if name in each]

    def put_back() -> None:
        for hooks, before in kept:
            for number in [number for number in hooks if number not in before]:
                del hooks[number]

    return put_back


def _keep_gradients(model: Module) -> Callable[[], None]:
    kept = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _, _ in kept:
        parameter.grad = None

    def put_back() -> None:
        for parameter, gradient, requires_grad in kept:
            parameter.grad = gradient
            if parameter.requires_grad != requires_grad:  # else not, for transforms of torch.func forbid it
                parameter.requires_grad_(requires_grad)

    return put_back


def _keep_cache() -> Callable[[], None]:
    """Let nothing be read from PyTorch's cache of parametrized tensors meanwhile, and nothing stay there."""
    before, parametrize._cache = parametrize._cache, {}

    def put_back() -> None:
        parametrize._cache = before

    return put_back


def generators(model: Module) -> Iterator[_State]:
    """Yield what gets and what sets the state of Python's and NumPy's generators, and of those that modules have."""
    yield random.getstate, random.setstate
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        yield numpy.random.get_state, numpy.random.set_state
    for module in model.modules():
        for value in vars(module).values():
            for each in _several(value):
                found = None if type(each) in _WITHOUT_GENERATORS else _state(each)
                if found is not None:
                    yield found


def _several(value: Any) -> Iterable[Any]:
    """Return what a list, a tuple or a dictionary holds, or the value alone."""
    if type(value) in (dict, OrderedDict):
        return value.values()
    return value if type(value) in (list, tuple) else (value,)


def _state(value: Any) -> _State | None:
    """Return what gets and what sets the state of a generator of random numbers; None of anything else."""
    numpy = sys.modules.get("numpy")
    own = getattr_static(value, "generator", value)  # dropkit's layers keep theirs in a box
    if isinstance(own, torch.Generator):
        return own.get_state, own.set_state
    if isinstance(own, random.Random):
        return own.getstate, own.setstate
    if numpy is not None and isinstance(own, numpy.random.RandomState):
        return own.get_state, own.set_state
    if numpy is not None and isinstance(own, numpy.random.Generator):
        bits = own.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return None


# What modules have most of, passed by before a look that takes microseconds each.
_WITHOUT_GENERATORS = frozenset(
    (bool, int, float, str, tuple, list, dict, set, OrderedDict, Tensor, torch.nn.Parameter, type(None))
)


def set_mode(model: Module, training: bool) -> None:
    """Put a model in training or evaluation mode by its own `train`, or, where that cannot, by its flags."""
    try:
        model.train(training)
    except (NotImplementedError, RecursionError):  # exported programs; modules that contain one another
        for module in model.modules():
            module.training = training


def normalisation_layers(model: Module) -> list[Module]:
    """Return the layers that normalise batches: in training mode one example may be too few for them."""
    return [module for module in model.modules() if isinstance(module, _NormBase)]


def cloned(values: Any) -> Any:
    """Return a forward's arguments with every tensor, array and generator copied, so that no work reaches the user's.

    What is one tensor stays one: attention takes another way where query, key and value are the same.
    """
    copies: dict[int, tuple[Any, Any]] = {}  # with the originals, whose ids must not be used again

    def clone(value: Any) -> Any:
        if id(value) not in copies:
            same = _emptied(value)
            copies[id(value)] = value, _clone(value, clone) if same is None else same
            for name, part in vars(value).items() if same is not None else ():
                object.__setattr__(same, name, torch.utils._pytree.tree_map(clone, part))
        return copies[id(value)][1]

    return torch.utils._pytree.tree_map(clone, values)


def _emptied(value: Any) -> Any:
    """Return a shallow copy of an object that a forward may write into, such as a cache; None of all else."""
    is_plain = type(value).__module__.partition(".")[0] in ("builtins", "torch", "numpy") or callable(value)
    if is_plain or not hasattr(value, "__dict__") or isinstance(value, tuple | Mapping) or is_dataclass(value):
        return None
    try:
        same = copy(value)
    except Exception:  # noqa: BLE001  # whatever a class makes of it
        return None
    return None if same is value else same


def _clone(value: Any, clone: Callable[[Any], Any]) -> Any:
    """Copy a tensor, an array, a generator of random numbers, or a structure that PyTorch does not look into."""
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.random.Generator | numpy.random.RandomState):
        return deepcopy(value)
    if isinstance(value, random.Random):
        return deepcopy(value)
    if isinstance(value, Tensor):
        if not value.is_leaf or is_functorch_wrapped_tensor(value):  # no leaf is made inside a transform
            return value.clone()
        leaf = value.detach().clone()
        return leaf.requires_grad_() if value.requires_grad else leaf
    if isinstance(value, MutableMapping) and not isinstance(value, dict):
        found = copy(value)
        for name in found:
            found[name] = torch.utils._pytree.tree_map(clone, value[name])
        return found
    if is_dataclass(value) and not isinstance(value, type):
        same = copy(value)
        for part in fields(value):
            object.__setattr__(same, part.name, torch.utils._pytree.tree_map(clone, getattr(value, part.name)))
        return same
    return value
