"""Addressed models that are compiled or exported: the masks of plain ones, or an error."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dropkit.errors import UnsupportedError
from dropkit.sites import address

SEED = 2**63 + 5


def hidden(x: Tensor) -> Tensor:
    """Call a compiled function in which nobody sees what is drawn."""
    return torch.compile(_hidden, backend="aot_eager", fullgraph=True)(x)


def _hidden(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) > 0.5)


DRAWS = {
    "functions": lambda model, x: F.dropout(model.drop(model.linear(x)), 0.3),
    "a mask whose draw no mode sees": lambda model, x: model.linear(x) * (torch.rand_like(x) > 0.5),
    "a checkpoint": lambda model, x: checkpoint(
        lambda y: F.dropout(model.linear(y), 0.5).sin(), x, use_reentrant=False
    ),
    "a compiled function": lambda model, x: hidden(model.linear(x)),
}


class Drawing(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drop, self.own = nn.Linear(6, 6), nn.Dropout(0.5), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*runs as it was written")
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("draws", DRAWS)
def test_compiled_models_draw_the_masks_of_plain_ones(draws: str, is_first: bool) -> None:
    """Also what is hidden in compiled code, and whether the model was compiled and run before or not."""

    def gradients(model: nn.Module, called: nn.Module) -> list[Tensor]:
        handle = address(called, SEED)
        found = []
        for _ in range(2):
            for _ in range(2):
                x = torch.ones(9, 6, requires_grad=True)
                called(x).square().sum().backward()
                found.append(x.grad)
            handle.step()
        handle.close()
        return found

    torch._dynamo.reset()
    model = Drawing(DRAWS[draws])
    compiled = torch.compile(model, backend="aot_eager")
    if is_first:
        compiled(torch.ones(9, 6))
    found, wanted = gradients(model, compiled), gradients(model, model)
    assert all(torch.equal(own, plain) for own, plain in zip(found, wanted, strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found, 2))
    compiled(torch.ones(9, 6))
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


@pytest.mark.slow
@pytest.mark.parametrize("draws", DRAWS)
def test_one_graph_cannot_be_addressed(draws: str) -> None:
    torch._dynamo.reset()
    model = Drawing(DRAWS[draws])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    handle = address(model)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"_EagerHook"):
        compiled(torch.ones(9, 6))
    handle.close()
    assert compiled(torch.ones(9, 6)).shape == (9, 6)


def test_a_compiled_model_warns() -> None:
    torch._dynamo.reset()
    model = torch.compile(nn.Sequential(nn.Dropout(0.5)), backend="eager")
    address(model)
    with pytest.warns(UserWarning, match=r"runs as it was written"):
        model(torch.ones(9, 6))


def test_exported_programs() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    address(model)
    with pytest.raises(UnsupportedError, match=r"one mask for ever"):
        torch.export.export(model, (torch.ones(4),))
