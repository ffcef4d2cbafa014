"""How masks are applied: the tensor, the mask and the value that each function takes or leaves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dropkit.sites.handwritten.operations import Operation, Rule
from dropkit.sites.handwritten.tags import Random
from dropkit.sites.handwritten.values import constant

__all__ = ["Choice", "find_choice"]


@dataclass(frozen=True, eq=False)
class Choice:
    """How a mask is applied: to which tensor, as which, with which value where the input is kept."""

    input: Tensor
    tensor: Tensor
    survivor: float
    is_zero: bool = True  # whether what is dropped becomes 0
    is_mixed: bool = False  # whether it is not known what the input would be without


def _mask_among(operands: Any, tags: Mapping[int, Any]) -> Tensor | None:
    for value in operands:
        tag = tags.get(id(value))
        if isinstance(tag, Random) and tag.is_mask:
            return value
    return None


def _filled(operation: Operation, tags: Mapping[int, Any]) -> Choice | None:
    source, tensor = operation.operand(0, "input"), operation.operand(1, "mask")
    if _mask_among((tensor,), tags) is None or not source.is_floating_point():
        return None
    return Choice(source, tensor, 0.0, constant(operation.operand(2, "value")) == 0)


def _chosen(operation: Operation, tags: Mapping[int, Any]) -> Choice | None:
    is_method = operation.function == Tensor.where
    tensor, first = operation.operand(is_method, "condition"), operation.operand(not is_method, "input", "self")
    second = operation.operand(2, "other")
    if _mask_among((tensor,), tags) is None:
        return None
    numbers = constant(first), constant(second)
    tensors = [isinstance(one, Tensor) and one.is_floating_point() and one.dim() > 0 for one in (first, second)]
    if tensors[0] and (numbers[1] == 0 or (numbers[1] is not None and not tensors[1])):
        return Choice(first, tensor, 1.0, numbers[1] == 0)
    if tensors[1] and (numbers[0] == 0 or (numbers[0] is not None and not tensors[0])):
        return Choice(second, tensor, 0.0, numbers[0] == 0)
    return Choice(first, tensor, 1.0, is_zero=False, is_mixed=True) if all(tensors) else None


def _assigned(operation: Operation, tags: Mapping[int, Any]) -> Choice | None:
    source, index, value = operation.args
    tensor = _mask_among(index if isinstance(index, tuple) else (index,), tags)
    if tensor is None or tensor.dtype != torch.bool or not source.is_floating_point():
        return None
    is_number = not isinstance(value, Tensor) or value.dim() == 0
    return Choice(source, tensor, 0.0, is_number and constant(value) == 0, not is_number)


def _mixed(operation: Operation, tags: Mapping[int, Any]) -> Choice | None:
    tensor = _mask_among(operation.operands, tags)
    others = [one for one in operation.operands if isinstance(one, Tensor) and id(one) not in tags]
    source = next((one for one in others if one.is_floating_point()), None)
    return None if tensor is None or source is None else Choice(source, tensor, 1.0, is_mixed=True)


_CHOICES: Mapping[Rule, Callable[[Operation, Mapping[int, Any]], Choice | None]] = MappingProxyType(
    {Rule.FILL: _filled, Rule.CHOOSE: _chosen, Rule.ASSIGN: _assigned, Rule.MIX: _mixed}
)


def find_choice(operation: Operation, tags: Mapping[int, Any]) -> Choice | None:
    """Return how a call applies a mask, other than by multiplication; None if it applies none."""
    find = _CHOICES.get(operation.rule)
    return None if find is None else find(operation, tags)
