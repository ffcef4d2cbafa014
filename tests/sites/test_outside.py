"""Code that runs outside of a model's forward: what is seen there, what is told, and what helps."""

import asyncio
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import dropout

from dropkit.errors import UnsupportedError
from dropkit.sites import accelerate, address, find, inject, record, switch

X = torch.ones(50, 4)


class Coder(nn.Module):
    """Draws by a layer and by calls, in methods of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.5)

    def encode(self, x: Tensor) -> Tensor:
        return F.dropout(self.drop(self.first(x)), 0.5, self.training)

    def imported(self, x: Tensor) -> Tensor:
        return dropout(self.drop(x), 0.5, self.training)

    def spelled_out(self, x: Tensor) -> Tensor:
        return torch.nn.functional.alpha_dropout(self.drop(x), 0.5, self.training)

    def layers_alone(self, x: Tensor) -> Tensor:
        return self.dropout(self.drop(x) + torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


class Encoding(nn.Module):
    """The small module that helps."""

    def __init__(self, model: Coder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode(x)


OPENED: dict[str, Callable[[nn.Module], AbstractContextManager[Any]]] = {
    "switch": lambda model: switch(model, "on"),
    "address": lambda model: closing(address(model)),
    "record": record,
    "inject": lambda model: inject(model, {}),
}


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("method", ["encode", "imported", "spelled_out", "forward"])
def test_a_method_that_draws_and_is_called_from_outside_is_told_once(name: str, method: str) -> None:
    model, told = Coder().eval(), "encode" if method == "forward" else method
    with OPENED[name](model):
        with pytest.warns(UserWarning, match=rf"Coder\.{told} calls dropout itself, and runs outside"):
            getattr(model, method)(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            getattr(model, method)(X)


@pytest.mark.filterwarnings("error")
def test_methods_of_layers_alone_and_forwards_that_call_methods_are_all_seen() -> None:
    model = Coder().eval()
    with switch(model, "off"):
        model(X)
        model.layers_alone(X)
        model.first(X)
        torch.no_grad()(model.drop)(X)


def test_a_module_around_the_model_has_all_of_a_method() -> None:
    model = Coder().eval()
    assert [site.name for site in find(Encoding(model), X)] == ["model.drop", "#0"]
    whole = Encoding(model)
    with switch(whole, "on"):
        values = whole(X)
    assert 0.65 < (values == 0).float().mean() < 0.85


class Steps(nn.Module):
    """Yields what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        for _ in range(2):
            x = F.dropout(self.drop(x), 0.25, self.training)
            yield x


class Last(nn.Module):
    """Takes all that a part yields."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps()

    def forward(self, x: Tensor) -> Tensor:
        return list(self.steps(x))[-1]


def test_a_forward_that_is_a_generator_is_refused() -> None:
    model = Steps()
    with pytest.raises(UnsupportedError, match="the forward of Steps is a generator function"):
        find(model, X)
    with switch(model, "off"), pytest.raises(UnsupportedError, match="generator"):
        model(X)
    with record(model), pytest.raises(UnsupportedError, match="generator"):
        model(X)
    handle = accelerate(model)  # no harm is done where a call is not seen
    assert len(list(model(X))) == 2
    handle.remove()


def test_a_generator_inside_a_forward_that_takes_all_of_it_is_seen() -> None:
    model = Last()
    assert [(site.name, site.calls) for site in find(model, X)] == [("steps.drop", 2), ("#0", 1), ("#1", 1)]
    with switch(model, "off"):
        assert torch.equal(model(X), X)


class Awaiting(nn.Module):
    """Its body runs when it is awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    async def forward(self, x: Tensor) -> Tensor:
        await asyncio.sleep(0)
        return F.dropout(self.drop(x), 0.5, self.training)


@pytest.mark.parametrize("opened", OPENED)
def test_a_forward_that_is_a_coroutine_is_refused(opened: str) -> None:
    model = Awaiting()
    with (
        OPENED[opened](model),
        pytest.raises(UnsupportedError, match="the forward of Awaiting is a coroutine function"),
    ):
        model(X)
    assert asyncio.run(model(X)).shape == X.shape
