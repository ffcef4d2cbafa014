"""Placing dropout by a recipe: rates, arguments, models that it does not fit, and what goes wrong."""

import copy
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.sites import convert
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.interceptor import Handler
from tests.sites.converted import (
    PICTURES,
    ROWS,
    SEQUENCES,
    WORDS,
    Attending,
    Convolutional,
    Recurrent,
    Residual,
    mlp,
    state,
)


def test_rates() -> None:
    def rates(recipe: str, model: nn.Module, x: Tensor, p: Any) -> list[float]:
        plan = convert(model, recipe, x, p=p, dry_run=True)
        return [round(rate, 6) for rate in plan.rates.values()]

    assert sorted(rates("srivastava", mlp(), ROWS, 0.3)) == [0.3, 0.3, 0.3]
    assert sorted(rates("srivastava", mlp(), ROWS, {"input": 0.0})) == [0.5, 0.5]
    assert sorted(rates("srivastava", mlp(), ROWS, {"3": 0.4, "0.input_dropout": 0})) == [0.4, 0.5]
    assert sorted(rates("cnn", Convolutional(), PICTURES, {"channels": (0.0, 0.2), "dense": 0.3})) == [0.1, 0.2, 0.3]
    assert sorted(rates("cnn", Convolutional(), PICTURES, {"channels": 0.2})) == [0.08, 0.14, 0.2, 0.5]
    blocks = nn.Sequential(*(Residual() for _ in range(3)))
    assert sorted(rates("vit", blocks, SEQUENCES, 0.4)) == [0.2, 0.4]


@pytest.mark.parametrize("p", [*dropkit._checks.PROBABILITY.bad_values(), 1.0])
def test_rates_out_of_range(p: Any) -> None:
    if p is not None:
        with pytest.raises(ArgumentError, match="`p` must be a number in"):
            convert(mlp(), "srivastava", ROWS, p=p)
    with pytest.raises(ArgumentError, match=r"`p\['input'\]` must be a number in"):
        convert(mlp(), "srivastava", ROWS, p={"input": p})


def test_rates_in_attributes_are_found() -> None:
    """Whatever they are called, by giving each its own rate for a forward; not such as only look alike."""

    class Attributes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.p, self.drop_rate, self.dropped, self.dropout = 0.1, 0.0, 0.3, 0

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(self.first(x), self.p, self.training) * (1 - self.dropped)
            x = F.dropout(self.second(x), self.drop_rate, self.training)
            return F.dropout(self.third(x), p=self.dropout, training=self.training)

    model = Attributes()
    plan = convert(model, "srivastava", ROWS)
    assert plan.rates == {"first.input_dropout": 0.2, "#0": 0.5, "#1": 0.5}
    assert (model.p, model.drop_rate, model.dropped, model.dropout) == (0.5, 0.5, 0.3, 0)
    assert type(model.dropout) is int
    plan.undo()
    assert (model.p, model.drop_rate) == (0.1, 0.0)


def test_wrong_arguments() -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch\.nn\.Module"):
        convert(torch.relu, "cnn", ROWS)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`recipe` must be one of 'srivastava', 'cnn'"):
        convert(model, "resnet", ROWS)
    with pytest.raises(ArgumentError, match="`args` must be example inputs"):
        convert(model, "srivastava")
    with pytest.raises(ArgumentError, match=r"Known are input, hidden, 0\.input_dropout"):
        convert(model, "srivastava", ROWS, p={"hiden": 0.5})
    assert state(model) == before


@pytest.mark.parametrize(
    ("recipe", "model", "x", "match"),
    [
        ("rnn", Convolutional(), PICTURES, "no recurrent"),
        ("srivastava", Convolutional(), PICTURES, "Try 'cnn'"),
        ("cnn", Attending(), SEQUENCES, "attention in `softmax`. Try 'vit'"),
        ("srivastava", Recurrent(), WORDS, "Try 'rnn'"),
        ("transformer", mlp(), ROWS, "no attention"),
        ("vit", mlp(), ROWS, "no sum"),
        ("rnn", dropkit.nn.LSTM(4, 5), ROWS, "Set its input_p"),
    ],
)
def test_recipes_that_do_not_fit(recipe: str, model: nn.Module, x: Tensor, match: str) -> None:
    before = state(model)
    with pytest.raises(UnsupportedError, match=match):
        convert(model, recipe, x)
    assert state(model) == before


def test_a_model_that_raises_is_left_as_it_was() -> None:
    model = mlp()
    before = state(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        convert(model, "srivastava", torch.ones(2, 3))
    assert state(model) == before


def test_a_model_that_cannot_be_verified_is_left_as_it_was() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.runs = count()  # an iterator, which a search does not put back

        def forward(self, x: Tensor) -> Tensor:
            return self.second(x) if next(self.runs) % 2 else self.first(x)

    model = Restless()
    before = state(model)
    with pytest.raises(UnsupportedError, match="differ from run to run"):
        convert(model, "srivastava", ROWS)
    assert state(model) == before
    fails = mlp()
    plan = convert(fails, "srivastava", ROWS, dry_run=True)
    fails[2].register_forward_pre_hook(_fail)
    before = state(fails)
    with pytest.raises(ZeroDivisionError):
        plan.apply()
    assert state(fails) == before
    assert not plan.is_applied


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_converted_twice() -> None:
    model = mlp()
    plan = convert(model, "srivastava", ROWS)
    for network in (model, copy.deepcopy(model)):
        with pytest.raises(UnsupportedError, match=r"converted already, in `0`. Call undo"):
            convert(network, "srivastava", ROWS)
    with pytest.raises(UnsupportedError, match="applied already"):
        plan.apply()
    recurrent = Recurrent()
    convert(recurrent, "rnn", WORDS, p={"inputs": 0, "outputs": 0})
    with pytest.raises(UnsupportedError, match="converted already, in `lower`"):
        convert(recurrent, "rnn", WORDS)
    plan.undo()
    assert len(convert(model, "srivastava", ROWS)) == len(plan)


def test_attached() -> None:
    model = mlp()
    with attached(model, Handler.__subclasses__()[0].__new__(Handler.__subclasses__()[0])):  # any handler
        with pytest.raises(UnsupportedError, match="addressed, switched or accelerated"):
            convert(model, "srivastava", ROWS)
        twin = copy.deepcopy(model)
    convert(twin, "srivastava", ROWS)
    convert(model, "srivastava", ROWS)


def test_arguments_by_name_and_tuples() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, *, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.layer(input=x), {"x": x}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.mean, self.scale = Inner(), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
            h, _ = self.inner(x=x + shift)
            return {"mean": self.mean(h), "scale": self.scale(h)}

    model = Outer()  # whose two heads read one mask
    plan = convert(model, "srivastava", ROWS, shift=torch.ones(4))
    assert plan.rates == {
        "inner.layer.input_dropout": 0.2,
        "inner.layer.output_dropout": 0.5,
    }
    model.train()(ROWS, shift=torch.ones(4))


def test_wrapped_models() -> None:
    model = mlp()
    plan = convert(nn.DataParallel(model), "srivastava", ROWS)
    assert list(plan.rates) == ["0.input_dropout", "2.input_dropout", "3"]
    plan.undo()
    assert str(model) == str(mlp())


def test_the_table() -> None:
    lines = str(convert(mlp(), "srivastava", ROWS)).splitlines()
    assert lines[0].split() == ["place", "now", "planned", "why"]
    assert lines[4].split()[:5] == ["6", "dropout", "0.3", "nothing", "nothing"]
    assert len({line.index(word) for line, word in zip(lines[1:3], ("nothing", "nothing"), strict=True)}) == 1
