"""PyTorch's profiler, which reads the arguments of autograd functions where it records shapes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import dropkit.functional as functional
from dropkit.functional.examples import NumberedKey

KEY = 2**64 - 5  # above what an int64 holds, as half of all keys are
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: functional.dropout(x, 0.5, key=KEY),
    "dropout, a later pass": lambda x: functional.dropout(x, 0.5, key=KEY, stream=3),
    "dropout, numbered examples": lambda x: functional.dropout(x, 0.5, key=NumberedKey(KEY, ((7, 4),))),
    "dropout1d": lambda x: functional.dropout1d(x.flatten(1, 2), 0.5, key=KEY),
    "drop_path": lambda x: functional.drop_path(x, 0.5, key=KEY),
    "alpha_dropout": lambda x: functional.alpha_dropout(x, 0.5, key=KEY),
    "dropout_add": lambda x: functional.dropout_add(x, x, 0.5, key=KEY),
    "activation_dropout": lambda x: functional.activation_dropout(x, "gelu", 0.5, key=KEY),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5, dropout_key=KEY),
    "attention, numbered examples": lambda x: functional.scaled_dot_product_attention(
        x, x, x, dropout_p=0.5, dropout_key=NumberedKey(KEY, ((7, 4),))
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_recorded_shapes_change_nothing(name: str) -> None:
    inputs = torch.randn(4, 2, 8, 64, requires_grad=True)
    expected = CALLS[name](inputs)
    expected.sum().backward()
    gradient, inputs.grad = inputs.grad, None
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True):
        found = CALLS[name](inputs)
        found.sum().backward()
    assert torch.equal(found, expected)
    assert gradient is not None
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, gradient)
