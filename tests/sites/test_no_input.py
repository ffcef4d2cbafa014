"""Calls of dropout without a tensor: whatever is open on a model, PyTorch says what is wrong."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dropkit.sites import accelerate, address, find, inject, record, switch

OPENED: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "accelerate": accelerate,
    "accelerate all": lambda _: accelerate(),
    "address": lambda model: closing(address(model, seed=1)),
    "record": record,
    "inject": lambda model: inject(model, {}, strict=False),
    "switch": lambda model: switch(model, "on"),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "F.dropout": F.dropout,
    "F.dropout rate": lambda given: F.dropout(given, torch.tensor(0.5)),
    "F.dropout2d": F.dropout2d,
    "torch.dropout": lambda given: torch.dropout(given, 0.5, True),
    "layer": nn.Dropout(),
}


class Calling(nn.Module):
    """Calls dropout on what is no tensor."""

    def __init__(self, call: Callable[[Any], Any], given: Any) -> None:
        super().__init__()
        self.call, self.given = call, given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.call(self.given)
        return x


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", [None, "a", [1.0]], ids=["None", "text", "list"])
def test_the_error_is_that_of_the_call_alone(opened: str, call: str, given: Any) -> None:
    model = Calling(CALLS[call], given)
    with pytest.raises((TypeError, AttributeError)) as plain:
        model(torch.ones(2))
    with pytest.raises(type(plain.value)) as seen, OPENED[opened](model):
        model(torch.ones(2))
    assert str(seen.value) == str(plain.value)


def test_a_search_raises_the_error_of_the_call() -> None:
    with pytest.raises(TypeError, match=r"must be Tensor, not NoneType"):
        find(Calling(F.dropout, None), torch.ones(2))
