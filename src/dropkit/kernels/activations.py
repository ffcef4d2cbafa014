"""The activations that kernels fuse with dropout, in PyTorch operations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activate", "activate_backward"]

_aten = torch.ops.aten


def _silu_backward(grad: Tensor, z: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.silu_backward(grad, z)
    logistic = torch.sigmoid(z)  # PyTorch's own gradient has none
    return grad * logistic * (1 + z * (1 - logistic))


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, z: _aten.threshold_backward(grad, z, 0.0),
    "gelu": _aten.gelu_backward,
    "gelu_tanh": lambda grad, z: _aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": _silu_backward,
}


def activate(activation: str, input: Tensor, bias: Tensor | None) -> Tensor:
    """Return an activation of a tensor plus a number a column."""
    return _VALUES[activation](input if bias is None else input + bias)


def activate_backward(activation: str, grad: Tensor, input: Tensor, bias: Tensor | None) -> Tensor:
    """Return the gradient of `activate` with respect to its input, differentiably."""
    return _GRADIENTS[activation](grad, input if bias is None else input + bias)
