"""Models that draw in many ways, addressed and compiled: their masks and gradients beside those of plain ones."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropkit
from dropkit.sites import address

__all__ = [
    "ANY_FORM",
    "FORMS",
    "MARKS",
    "SEED",
    "Block",
    "Drawing",
    "Stack",
    "assert_as_plain",
    "calling",
    "hand_written",
]

SEED = 2**63 + 5
MARKS = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(  # PyTorch's own, while it compiles
        "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",
        "ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning",
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    ),
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.drop(self.linear(x)).sin(), 0.2)


class Drawing(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.drop, self.own, self.block = nn.Linear(6, 6), nn.Dropout(0.5), forward, Block()
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3, batch_first=True)
        self.network = nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True)
        self.layer = dropkit.nn.TransformerEncoderLayer(6, 2, 8, 0.5, batch_first=True)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.drop = nn.ModuleList(Block() for _ in range(3)), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(self.drop(x))
        return F.dropout(x, 0.1)


def hand_written(x: Tensor) -> Tensor:
    x = x + 0 * torch.randn_like(x)  # which is left to PyTorch, and counted
    masks = torch.rand_like(x) > 0.5, torch.empty_like(x).bernoulli_(0.9), torch.randint(0, 2, x.shape)
    return x * masks[0] * masks[1] * masks[2] + x * (torch.rand(9, 6, dtype=torch.float64) > 0.5)


def calling(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function of which the call of a model is a part."""

    def call(x: Tensor) -> Tensor:
        return model(x)

    return call


FORMS: dict[str, Callable[..., tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {
    "wrapper": lambda model, **options: (wrapper := torch.compile(model, **options), wrapper),
    "method": lambda model, **options: (model, model.compile(**options) or model),
    "function": lambda model, **options: (model, torch.compile(calling(model), **options)),
}

# For tests of what is drawn, which does not depend on the form: one of them, and the others where there is time.
ANY_FORM = [
    pytest.param("wrapper", marks=pytest.mark.exhaustive),
    "method",
    pytest.param("function", marks=pytest.mark.exhaustive),
]


def trained(model: nn.Module, call: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Any]]:
    """Return outputs and gradients of accumulated batches, steps and another seed, and the states in between."""
    handle, found, states = address(model, SEED), [], []

    def accumulate() -> None:
        inputs = [torch.linspace(-1, 1, 54, dtype=torch.float64).view(9, 6).requires_grad_() for _ in range(2)]
        outputs = [call(x) for x in inputs]
        states.append(handle.state_dict())
        handle.step()  # before the backward passes, which have the masks of their forwards
        for x, output in zip(inputs, outputs, strict=True):
            output.square().sum().backward()
            found.extend([output.detach(), x.grad])

    accumulate()
    accumulate()
    handle.load_state_dict({**states[0], "seed": 3})
    accumulate()
    found.extend(each.grad for each in model.parameters() if each.grad is not None)
    handle.close()
    return found, states


def assert_as_plain(draws: Callable[[Any, Tensor], Tensor], form: str, **options: Any) -> None:
    model = Drawing(draws)
    wanted, states = trained(model, model)
    model.zero_grad()
    found, own_states = trained(*FORMS[form](model, **options))
    assert own_states == states
    for own, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found[:12:2], 2))
