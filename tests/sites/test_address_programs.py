"""Addressed models in transforms, and in programs that are recorded or compiled from their code."""

import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from functorch.compile import aot_module, nop
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.sites import address

SEED = 2**63 + 5


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1), nn.Dropout(0.1))


@pytest.mark.parametrize(
    "draw",
    [F.dropout, lambda x: x * torch.rand_like(x), dropkit.nn.TransformerEncoderLayer(4, 1)],
    ids=["function", "by hand", "several masks"],
)
def test_transforms_that_ask_for_masks_of_examples(draw: Any) -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draw = draw

        def forward(self, x: Tensor) -> Tensor:
            return self.draw(x)

    model, x = Drawing(), torch.ones(3, 5, 4)
    address(model, SEED)
    for randomness in ("different", "error"):
        with pytest.raises(UnsupportedError, match=rf'randomness="{randomness}"\), where one key is for all examples'):
            torch.vmap(model, randomness=randomness)(x)
    same = torch.vmap(model, randomness="same")(x)
    torch.testing.assert_close(same[0], same[1])


def test_transforms_of_calls_with_keys_of_their_own() -> None:
    class Keyed(nn.Module):
        def forward(self, x: Tensor, key: Tensor) -> Tensor:
            return dropkit.functional.dropout(x, 0.5, key=key)

    model, x, keys = Keyed(), torch.ones(3, 50), torch.tensor([4, 5, 6])
    plain = torch.vmap(model, randomness="different")(x, keys)
    address(model, SEED)
    assert torch.equal(torch.vmap(model, randomness="different")(x, keys), plain)
    assert not torch.equal(plain[0], plain[1])


def test_derivatives_by_transforms_are_those_of_the_forward() -> None:
    model, x = network().double(), torch.ones(8, 4, dtype=torch.float64, requires_grad=True)
    handle = address(model, SEED)
    model(x).sum().backward()
    for transform in (torch.func.grad(lambda x: model(x).sum()), lambda x: torch.func.jacrev(model)(x).sum((0, 1))):
        handle.load_state_dict({**handle.state_dict(), "runs": ()})
        torch.testing.assert_close(transform(x.detach()), x.grad)


def recorded(how: str, model: nn.Module, x: Tensor) -> Any:
    if how == "jit.trace":
        return torch.jit.trace(model, x, check_trace=False)
    if how == "aot_module":
        return aot_module(model, fw_compiler=nop)(x)
    if how == "CUDA graph":  # which a GPU is needed for: what PyTorch then says
        with patch.multiple(torch.cuda, is_initialized=lambda: True, is_current_stream_capturing=lambda: True):
            return model(x)
    return make_fx(model, pre_dispatch=how == "before dispatch")(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of PyTorch's own files
@pytest.mark.parametrize("draw", [F.dropout, lambda x: x * torch.rand_like(x)], ids=["function", "by hand"])
@pytest.mark.parametrize("how", ["make_fx", "before dispatch", "aot_module", "jit.trace", "CUDA graph"])
def test_recorded_programs(how: str, draw: Any) -> None:
    """Which would have one mask for ever."""

    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return draw(x) if self.training else x + 1

    model, x = Drawing(), torch.ones(3, 4)
    handle = address(model, SEED)
    with pytest.raises(UnsupportedError, match=r"one mask for ever. Close the handle first, or use torch.compile"):
        recorded(how, model, x)
    assert handle.state_dict()["runs"] == ()
    recorded(how, model.eval(), x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripting() -> None:
    model = network()
    handle = address(model)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(UnsupportedError, match=r"torch.jit.script: .*Close the handle first"):
            torch.jit.script(each)
    handle.close()
    torch.jit.script(model)


def test_inside_a_backward_pass_that_recomputes_by_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return model(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return model(ctx.saved_tensors[0]) * grad

    address(model)
    loss = Own.apply(torch.ones(3, 4, requires_grad=True)).sum()
    with pytest.raises(UnsupportedError, match=r"no recomputation by torch.utils.checkpoint"):
        loss.backward()
