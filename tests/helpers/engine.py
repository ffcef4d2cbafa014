"""Backward passes in Python: PyTorch's own engine wants a device's streams, which a device of shapes alone has not."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import get_gradient_edge


@contextmanager
def replaced() -> Iterator[None]:
    """Let `backward` and `torch.autograd.grad` work in Python."""

    def backward(tensors: Any, grads: Any = None, retain_graph: Any = None, create_graph: bool = False) -> None:
        for leaf, grad in _run(_several(tensors), grads, create_graph).values():
            leaf.grad = grad if leaf.grad is None else leaf.grad + grad

    def method(tensor: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False) -> None:
        backward(tensor, gradient, retain_graph, create_graph)

    def grad(
        outputs: Any,
        inputs: Any,
        grad_outputs: Any = None,
        retain_graph: Any = None,
        create_graph: bool = False,
        allow_unused: bool = False,
    ) -> tuple[Tensor, ...]:
        wanted = [get_gradient_edge(each) for each in _several(inputs)]
        found = _run(_several(outputs), grad_outputs, create_graph, {(edge.node, edge.output_nr) for edge in wanted})
        gradients = tuple(found.get((edge.node, edge.output_nr), (None, None))[1] for edge in wanted)
        assert allow_unused or all(each is not None for each in gradients)
        return gradients

    def keep_none(context: Any, value: bool) -> None:
        context.materialize_grads, context.takes_none = value, not value

    with (
        mock.patch.object(torch.autograd, "backward", backward),
        mock.patch.object(torch.autograd, "grad", grad),
        mock.patch.object(Tensor, "backward", method),
        mock.patch.object(FunctionCtx, "set_materialize_grads", keep_none),
    ):
        yield


def _several(tensors: Any) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _run(outputs: Sequence[Tensor], grads: Any, create_graph: bool, wanted: Any = None) -> dict[Any, Any]:
    """Return the tensor, if it is a leaf, and the gradient of every edge that is wanted; by default of all leaves."""
    grads = [None] * len(outputs) if grads is None else _several(grads)
    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    edges = [get_gradient_edge(output) for output in outputs]
    for edge, output, grad in zip(edges, outputs, grads, strict=True):
        _add(arrived[edge.node], edge.output_nr, torch.ones_like(output) if grad is None else grad)
    found: dict[Any, Any] = {}
    with torch.set_grad_enabled(create_graph):
        for node in _in_order([edge.node for edge in edges]):
            leaf = getattr(node, "variable", None)
            for number, grad in arrived[node].items():
                _check(node, number, grad)
                if (leaf is not None) if wanted is None else (node, number) in wanted:
                    found[node, number] = leaf, grad
            if leaf is not None or not arrived[node]:
                continue
            for (following, number), grad in zip(node.next_functions, _backward(node, arrived[node]), strict=False):
                if following is not None and grad is not None:
                    _add(arrived[following], number, _reduced(following, number, grad))
    return found


def _in_order(roots: list[Any]) -> list[Any]:
    """Return the nodes, each in front of those that it hands gradients on to."""
    order: list[Any] = []
    seen: set[Any] = set()

    def visit(node: Any) -> None:
        if node in seen:
            return
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                visit(following)
        order.append(node)

    for root in roots:
        visit(root)
    return order[::-1]


def _backward(node: Any, arrived: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Return what a node makes of gradients; those that have not arrived are zeros, if the node wants numbers."""
    grads = [arrived.get(number) for number in range(len(node._input_metadata))]
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        found = node(*grads)
    else:
        if not getattr(node, "takes_none", False):
            pairs = zip(grads, node._input_metadata, strict=True)
            grads = [_zeros(of) if grad is None and of.dtype.is_floating_point else grad for grad, of in pairs]
        found = node.apply(*grads)
    return found if isinstance(found, tuple) else (found,)


def _zeros(of: Any) -> Tensor:
    return torch.zeros(tuple(of.shape), dtype=of.dtype, device=of.device)


def _add(arrived: dict[int, Tensor], number: int, grad: Tensor) -> None:
    arrived[number] = arrived[number] + grad if number in arrived else grad


def _reduced(node: Any, number: int, grad: Tensor) -> Tensor:
    """Return a gradient in the shape and type that the node's result has, as the engine would."""
    of = node._input_metadata[number]
    grad = grad if tuple(grad.shape) == tuple(of.shape) else grad.sum_to_size(tuple(of.shape))
    return grad if grad.dtype == of.dtype else grad.to(of.dtype)


def _check(node: Any, number: int, grad: Tensor) -> None:
    of = node._input_metadata[number]
    assert grad.device == of.device, f"{node}: a gradient on {grad.device} of a tensor on {of.device}"
