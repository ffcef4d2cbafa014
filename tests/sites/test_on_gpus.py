"""Addressed and switched models on a GPU of shapes alone: nothing waits for it, and all is on it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import nn
from dropkit.sites import address, switch
from tests.helpers.gpus import SERVING, moved, on_gpu

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")


class ByHand(torch.nn.Module):
    """Masks and noise as users write them."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.bernoulli(torch.full_like(x, 0.8)) / 0.8
        x = x * (torch.rand(x.shape[:2], device=x.device) > 0.1).unsqueeze(-1)
        return x + 0.1 * torch.randn_like(x)


LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "of PyTorch": lambda: torch.nn.Dropout(0.3),
    "of dropkit": lambda: nn.Dropout(0.3),
    "Gaussian": lambda: nn.GaussianDropout(0.3),
    "blocks": lambda: nn.DropBlock1d(0.3, 3),
    "paths": lambda: nn.DropPath(0.3),
    "by hand": ByHand,
    "attention of PyTorch": lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True),
    "attention of dropkit": lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True),
}
UNSEEN = "by hand", "switch"  # which finds masks by their values, and shapes have none
HANDLES: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "address": lambda model: address(model, 7),
    "switch": lambda model: switch(model, "on"),
}


class Behind(torch.nn.Module):
    """A layer behind one with parameters, which tell where the model is."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.layer = torch.nn.Linear(8, 8), layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x))


@pytest.mark.parametrize("serving", SERVING)
@pytest.mark.parametrize(("name", "handle"), [pair for pair in product(LAYERS, HANDLES) if pair != UNSEEN])
def test_models(name: str, handle: str, serving: str) -> None:
    model = Behind(LAYERS[name]())
    with on_gpu(serving) as gpu:
        model = moved(model)
        with HANDLES[handle](model):
            out = model(torch.empty(4, 5, 8, device="cuda"))
            assert out.is_cuda
            out.sum().backward()
        assert all(each.grad.is_cuda for each in model.parameters())
    assert gpu.crossings == []
