"""What modules keep beside their parameters: plain attributes, containers, arrays and tensors, as they were before."""

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit.sites.interception.names import module_names, wrapped
from dropkit.sites.interception.parameters import is_plain, is_sharded, kept_parameter, seen_parameter
from dropkit.sites.interception.telling import warn
from dropkit.sites.interception.values import is_freed, is_writable, kept_values, version_of

__all__ = ["kept_attributes"]

_MOST_BYTES = 2**30  # of the copies of one model's tensors and arrays; beyond that it is only seen that one changed
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
_HOOKS = frozenset(name for name in vars(Module()) if "hook" in name)
_LIBRARIES = (sys.stdlib_module_names | {"torch", "numpy", "dropkit"}) - {"types", "collections", "argparse"}


def kept_attributes(model: Module, copies_parameters: bool = True) -> Callable[[], None]:
    """Note what the modules of a model keep, and return what puts it back.

    Names are bound to what they were bound to, so that what a forward first makes is gone again, also a module; lists,
    dicts, sets and deques have their contents, at any depth, and so have tensors, arrays of NumPy, and objects that a
    module keeps; but not objects that those keep. Parameters hold what they held, and where, and are what they were,
    unless they are sharded. Buffers of the model are none of this.

    Args:
        model: The model.
        copies_parameters: Whether parameters get their values back; else it is told if one has changed.
    """
    attributes = _Attributes(model, copies_parameters)
    return attributes.put_back


class _Attributes:
    def __init__(self, model: Module, copies_parameters: bool) -> None:
        self._most_of_parameters = _MOST_BYTES if copies_parameters else -1
        self._seen: dict[int, tuple[int, Any]] = {}  # by ids, which must not be used again: 2 as a module's own, else 1
        self._restores: list[Callable[[], None]] = []
        self._bytes = self._parameter_bytes = 0
        self._is_sharded = is_sharded(model)
        self._skip(*model.buffers())
        names = {id(module): name for name, module in module_names(model).items()}
        self._waiting: list[tuple[Any, str, bool]] = [(model, "", True)]
        while self._waiting:
            value, label, is_own = self._waiting.pop()
            if isinstance(value, Module):
                label = names.get(id(value), label)
            rank = 2 if is_own or isinstance(value, Tensor | Module) else 1
            if not isinstance(value, _PLAIN) and self._seen.get(id(value), (0, None))[0] < rank:
                self._seen[id(value)] = rank, value
                self._keep(value, label, is_own)

    def put_back(self) -> None:
        """Put all back that has changed."""
        for restore in self._restores:
            restore()

    def _skip(self, *values: Any) -> None:
        self._seen |= {id(value): (2, value) for value in values}

    def _keep(self, value: Any, label: str, is_own: bool) -> None:
        """Note one value.

        Args:
            value: The value.
            label: What it is called: names of module and attribute.
            is_own: Whether a module keeps it, itself or in a container.
        """
        if isinstance(value, Tensor):
            self._keep_tensor(value, label)
        elif isinstance(value, torch.jit.ScriptModule):
            return
        elif isinstance(value, Module):
            inner = wrapped(value)  # a wrapper's own state is the wrapper's
            if inner is None:
                self._keep_parameters(value._parameters, label)
                self._keep_names(vars(value), label, _HOOKS, is_own=True)
            else:
                self._waiting.append((inner, label, True))
        elif isinstance(value, dict | list | set | deque | bytearray):
            self._keep_contents(value, label, is_own)
        elif isinstance(value, tuple):
            self._waiting += [(one, label, is_own) for one in value]
        elif (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray):
            self._keep_array(value)
        elif is_own and type(value).__module__.partition(".")[0] not in _LIBRARIES:
            with suppress(Exception):  # whatever a class makes of asking
                self._keep_names(object.__getattribute__(value, "__dict__"), label, frozenset(), is_own=False)

    def _keep_names(self, names: dict[str, Any], label: str, others: frozenset[str], is_own: bool) -> None:
        """Note what the attributes of a module or an object are, but for some."""
        before = {name: value for name, value in names.items() if name not in others}

        def put_back() -> None:
            for name in [name for name in names if name not in before and name not in others]:
                del names[name]
            for name, value in before.items():
                if name not in names or names[name] is not value:
                    names[name] = value

        self._restores.append(put_back)
        self._waiting += [(value, f"{label}.{name}" if label else name, is_own) for name, value in before.items()]

    def _keep_parameters(self, parameters: dict[str, Any], label: str) -> None:
        """Note which parameters there are, and plain ones; sharded models have others after every forward."""
        self._skip(parameters)
        known = {name: value is None for name, value in parameters.items()}
        plain = {name: value for name, value in parameters.items() if is_plain(value) and not self._is_sharded}

        def put_back() -> None:
            for name in [name for name in parameters if known.get(name, True)]:
                if name in known:
                    parameters[name] = None
                else:
                    del parameters[name]
            for name, value in plain.items():
                if parameters.get(name) is not value and is_plain(parameters.get(name)):
                    parameters[name] = value

        self._restores.append(put_back)
        self._waiting += [(value, f"{label}.{name}" if label else name, True) for name, value in plain.items()]

    def _keep_parameter(self, parameter: Tensor, label: str) -> None:
        """Note what a parameter holds, if copies of all so far are not too large; else whether it changes."""
        if self._is_sharded or not is_plain(parameter):
            return
        size = parameter.numel() * parameter.element_size()
        if self._parameter_bytes + size > self._most_of_parameters:
            self._restores.append(seen_parameter(parameter, lambda: _warn(label, "parameter")))
        else:
            self._parameter_bytes += size
            self._restores.append(kept_parameter(parameter))

    def _keep_contents(self, container: Any, label: str, is_own: bool) -> None:
        """Note what is in a container."""
        before = list(_items(container))

        def put_back() -> None:
            now = list(_items(container))
            if len(now) != len(before) or any(one is not other for one, other in zip(now, before, strict=True)):
                _refill(container, before)

        self._restores.append(put_back)
        self._waiting += [(value, label, is_own) for value in before]

    def _keep_tensor(self, tensor: Tensor, label: str) -> None:
        if isinstance(tensor, torch.nn.Parameter):
            self._keep_parameter(tensor, label)
            return
        is_plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
        if not is_plain or not self._has_room(tensor.numel() * tensor.element_size()):
            before = version_of(tensor)
            self._restores.append(lambda: _warn(label) if version_of(tensor) != before else None)
            return
        if not is_writable(tensor) or is_freed(tensor):
            return
        put_back, shape = kept_values(tensor), tensor.shape
        self._restores.append(lambda: put_back() if tensor.shape == shape else _warn(label))

    def _keep_array(self, array: Any) -> None:
        if not array.dtype.hasobject and array.flags.writeable and self._has_room(array.nbytes):
            before = array.copy()

            def put_back() -> None:
                if array.shape == before.shape and array.tobytes() != before.tobytes():
                    array[...] = before

            self._restores.append(put_back)

    def _has_room(self, size: int) -> bool:
        if self._bytes + size > _MOST_BYTES:
            return False
        self._bytes += size
        return True


def _items(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        for name, value in _plain_kind(container).items(container):
            yield name
            yield value
    else:
        yield from container


def _plain_kind(container: dict[Any, Any]) -> Any:
    return OrderedDict if isinstance(container, OrderedDict) else dict  # of which neither knows the other's order


def _refill(container: Any, items: list[Any]) -> None:
    """Put items back into a container, by the methods of its plain kind, which do nothing else."""
    if isinstance(container, dict):
        kind = _plain_kind(container)
        kind.clear(container)
        for name, value in zip(items[::2], items[1::2], strict=True):
            kind.__setitem__(container, name, value)
    elif isinstance(container, set):
        set.clear(container)
        set.update(container, items)
    elif isinstance(container, deque):
        deque.clear(container)
        deque.extend(container, items)
    elif isinstance(container, list):
        list.__setitem__(container, slice(None), items)
    else:
        bytearray.__setitem__(container, slice(None), items)


def _warn(label: str, what: str = "tensor") -> None:
    module, _, attribute = label.rpartition(".")
    where = f"`{attribute}` of {f'`{module}`' if module else 'the model'}"
    remedy = "." if what == "parameter" else "; a buffer would have been put back."
    is_large = (
        "too large to be copied before"
        if what == "parameter"
        else ("sparse, nested or too large to be copied before, or was resized")
    )
    warn(
        f"dropkit.sites: a forward that was run to look for dropout has changed {where}, a {what} that is {is_large}. "
        f"It stays changed{remedy}"
    )
