"""Outputs of any type: their leaves, and the same output with others in their place.

PyTorch's pytrees know a type only if it has been registered, once for the whole process. These look into any object
that is known to hold others, leave everything as it is, and keep its type.
"""

import inspect
from collections import deque
from collections.abc import Callable, MutableMapping
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from types import MappingProxyType, SimpleNamespace
from typing import Any

from torch import Tensor
from torch.distributions import Distribution
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import SUPPORTED_NODES

__all__ = ["Rebuild", "flatten"]

_LEAVES = Tensor | str | bytes | int | float | complex | Module | type | None
_ATTRIBUTES = {  # where distributions keep what their constructors call otherwise
    "base_distribution": "base_dist",
    "mixture_distribution": "_mixture_distribution",
    "component_distribution": "_component_distribution",
}


@dataclass(frozen=True)
class _Container:
    """What an object holds, by name, key or index, and how one like it is made of other parts."""

    parts: dict[Any, Any]
    make: Callable[[list[Any]], Any]
    plain: Callable[[list[Any]], Any]


class Rebuild:
    """Puts leaves in the place of an output's own; made by `flatten`.

    Attributes:
        paths: For every leaf the names, keys and indices that lead to it; ``()`` where the output is the leaf.
        kinds: The types that have been looked into.
    """

    def __init__(self, kind: type, container: _Container | None, children: list["Rebuild"]) -> None:
        self._container, self._children = container, children
        self.kinds: set[type] = set().union(*(child.kinds for child in children), () if container is None else (kind,))
        self.paths: list[tuple[Any, ...]] = [()]
        if container is not None:
            named = zip(container.parts, children, strict=True)
            self.paths = [(name, *path) for name, child in named for path in child.paths]

    @property
    def names(self) -> list[str]:
        """What the leaves are called in messages, such as ``output.hidden[0]``."""
        return ["output" + "".join(map(_step, path)) for path in self.paths]

    def __call__(self, leaves: list[Any]) -> Any:
        """Return an output of the same type that has other leaves."""
        return self._made(leaves, is_plain=False)

    def plain(self, leaves: list[Any]) -> Any:
        """Return the same with a namespace in the place of each distribution.

        A distribution's parameters cannot be any numbers, such as their own standard deviations.
        """
        return self._made(leaves, is_plain=True)

    def _made(self, leaves: list[Any], is_plain: bool) -> Any:
        if len(leaves) != len(self.paths):
            raise ValueError(f"{len(leaves)} leaves for an output of {len(self.paths)}")
        if self._container is None:
            return leaves[0]
        parts, first = [], 0
        for child in self._children:
            parts.append(child._made(leaves[first : first + len(child.paths)], is_plain))
            first += len(child.paths)
        return self._container.plain(parts) if is_plain else self._container.make(parts)


def flatten(output: Any) -> tuple[list[Any], Rebuild]:
    """Return an output's leaves in order, and what makes an output of the same type of others.

    It looks into lists, tuples, mappings, dataclasses and namespaces, and classes derived from them, Hugging Face's
    outputs, packed sequences (whose ``data`` alone is a leaf), parameters of `torch.distributions`, and what PyTorch's
    pytrees have been told of. Anything else is a leaf, a tensor or not. No constructor runs but of distributions.

    Args:
        output: A model's output, or its arguments.

    Returns:
        The leaves, and a `Rebuild`: called with as many leaves it returns the output with these.

    Examples:
        >>> import torch
        >>> leaves, rebuild = flatten({"logits": torch.zeros(2), "sizes": (1, 2)})
        >>> leaves
        [tensor([0., 0.]), 1, 2]
        >>> rebuild(["a", "b", "c"])
        {'logits': 'a', 'sizes': ('b', 'c')}
        >>> rebuild.names
        ['output.logits', 'output.sizes[0]', 'output.sizes[1]']
    """
    container = _container(output)
    if container is None:
        return [output], Rebuild(type(output), None, [])
    found = [flatten(part) for part in container.parts.values()]
    children = [rebuild for _, rebuild in found]
    return [leaf for leaves, _ in found for leaf in leaves], Rebuild(type(output), container, children)


def _step(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


def _container(value: Any) -> _Container | None:
    """Return what a value holds; None if it is a leaf."""
    if isinstance(value, _LEAVES):
        return None
    for kinds, look in _LOOKS:
        if isinstance(value, kinds):
            return look(value)
    if is_dataclass(value):
        return _attributes(value, [field.name for field in fields(value)])
    if hasattr(type(value), "__attrs_attrs__"):
        return _attributes(value, [field.name for field in type(value).__attrs_attrs__])
    return _registered(value)


def _same(parts: dict[Any, Any], make: Callable[[list[Any]], Any]) -> _Container:
    return _Container(parts, make, make)


def _packed(value: PackedSequence) -> _Container:
    return _same({"data": value.data}, lambda parts: value._replace(data=parts[0]))


def _tuple(value: tuple[Any, ...]) -> _Container | None:
    if type(value) is tuple:
        return _same(dict(enumerate(value)), tuple)
    if hasattr(value, "_fields") and hasattr(value, "_make"):
        return _same(dict(zip(value._fields, value, strict=True)), value._make)
    if all(isinstance(part, int) for part in value):
        return None  # a torch.Size
    return _same(dict(enumerate(value)), type(value))


def _list(value: list[Any]) -> _Container:
    def make(parts: list[Any]) -> Any:
        same = copy(value)
        same[:] = parts
        return same

    return _same(dict(enumerate(value)), make)


def _deque(value: deque[Any]) -> _Container:
    return _same(dict(enumerate(value)), lambda parts: deque(parts, value.maxlen))


def _mapping(value: MutableMapping[Any, Any]) -> _Container:
    def make(parts: list[Any]) -> Any:
        same = copy(value)
        if getattr(value, "__dict__", None) is value:  # a dictionary whose entries are its attributes
            same.__dict__ = same  # type: ignore[assignment]  # of such a class it is no plain dictionary
        for key, part in zip(value, parts, strict=True):
            same[key] = part
        return same

    return _same(dict(value.items()), make)


def _proxy(value: MappingProxyType[Any, Any]) -> _Container:
    return _same(dict(value), lambda parts: MappingProxyType(dict(zip(value, parts, strict=True))))


def _attributes(value: Any, names: list[str]) -> _Container:
    """Look into the attributes of an object; those that a class derives of them once are derived anew."""
    names = [name for name in names if hasattr(value, name)]

    def make(parts: list[Any]) -> Any:
        same = copy(value)
        for name in set(getattr(same, "__dict__", ())).difference(names):
            if isinstance(getattr(type(value), name, None), cached_property):
                del vars(same)[name]
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(same, name, part)
        return same

    return _same({name: getattr(value, name) for name in names}, make)


def _distribution(value: Distribution) -> _Container | None:
    """Look at the arguments that would make a distribution; a leaf if it does not keep them."""
    arguments = dict(inspect.signature(type(value)).parameters)
    checks = {"validate_args": False} if arguments.pop("validate_args", None) else {}
    optional = [name for name, argument in arguments.items() if argument.default is None]
    given = [name for name in vars(value) if name in optional] or optional  # those derived of it follow it
    values: dict[str, Any] = {}
    for name, argument in arguments.items():
        attribute = _ATTRIBUTES.get(name, name)
        if name not in optional or name == given[0]:
            if hasattr(value, attribute):
                values[name] = getattr(value, attribute)
            elif argument.default is argument.empty:
                return None

    kind: Callable[..., Distribution] = type(value)

    def make(parts: list[Any]) -> Any:
        return kind(**dict(zip(values, parts, strict=True)), **checks)

    return _Container(values, make, lambda parts: SimpleNamespace(**dict(zip(values, parts, strict=True))))


def _registered(value: Any) -> _Container | None:
    node = SUPPORTED_NODES.get(type(value))
    if node is None:
        return None
    parts, context = node.flatten_fn(value)
    return _same(dict(enumerate(parts)), lambda parts: node.unflatten_fn(parts, context))


_LOOKS: list[tuple[Any, Callable[[Any], _Container | None]]] = [
    (PackedSequence, _packed),
    (tuple, _tuple),
    (list, _list),
    (deque, _deque),
    (MutableMapping, _mapping),
    (MappingProxyType, _proxy),
    (Distribution, _distribution),
    (SimpleNamespace, lambda value: _attributes(value, list(vars(value)))),
]
