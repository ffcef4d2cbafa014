"""What a switch refuses, and forwards that raise under one."""

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.sites import Site, switch
from tests.sites.switched import Gate, X, is_on, many


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Dropout(), "maybe"), ArgumentError, "`mode` must be one of 'auto', 'on', 'off', got maybe|'maybe'"),
        ((F.dropout, "on"), ArgumentTypeError, "`model` must be a torch.nn.Module"),
        ((nn.Dropout(), "on", 3), ArgumentTypeError, "`where` must be a pattern of names"),
        ((nn.Dropout(), "on", []), ArgumentTypeError, "`where` must be"),
        ((nn.Dropout(), "on", ["a", 3]), ArgumentTypeError, "`where` must be"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        switch(*arguments)
    with pytest.raises(ArgumentTypeError, match="`kind` must be"):
        switch(nn.Dropout(), "on", kind=b"x")


def never(_site: Site) -> bool:
    return False


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"where": "head.*"},
            r"`where` = 'head.\*' chooses no site of the model. Choose among block.drop \(dropout\), #0",
        ),
        ({"where": ["a", "b"]}, r"`where` = \['a', 'b'\] chooses no site"),
        ({"kind": "gru"}, r"`kind` = 'gru' chooses no site of the model.*network#0 \(lstm\)"),
        ({"where": "block.*", "kind": "gru"}, r"`where` = 'block.\*' and `kind` = 'gru' chooses no site"),
        ({"where": never}, r"`where` = never chooses no site"),
    ],
)
def test_a_choice_of_nothing_raises_at_the_first_forward(choice: dict[str, Any], message: str) -> None:
    model = many()
    handle = switch(model, "on", **choice)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            model(X)
    handle.close()
    model(X)


def test_a_choice_in_a_model_without_dropout_says_that_there_is_none() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with switch(model, "on", where="drop"), pytest.raises(ArgumentError, match="nothing in it draws dropout"):
        model(X)


def test_a_forward_that_raises_raises_its_own_error() -> None:
    model = many()
    before = copy.deepcopy(model.state_dict())
    with switch(model, "on"):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model(torch.ones(6, 7))
        model(X)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not _get_current_function_mode_stack()


def test_a_forward_that_raises_in_the_other_mode_alone() -> None:
    class Needy(nn.Module):
        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError("targets")
            return F.dropout(x, 0.5, self.training)

    model = Needy().eval()
    with switch(model, "on") as handle:
        with pytest.raises(UnsupportedError, match=r"raised ValueError in training mode.*learn") as caught:
            model(X)
        assert isinstance(caught.value.__cause__, ValueError)
        handle.learn(X, targets=X)
        assert is_on(model)
    assert not model.training


def test_a_predicate_that_raises() -> None:
    model = many()
    with switch(model, "on", where=lambda site: 1 / 0), pytest.raises(ZeroDivisionError):
        model(X)
    model(X)


def test_a_forward_that_is_interrupted() -> None:
    state = {"interrupt": False}

    def forward(self: Gate, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5) if self.training else x
        if state["interrupt"]:
            raise KeyboardInterrupt
        return x

    model = nn.Sequential(Gate(forward)).eval()
    handle = switch(model, "on")
    assert is_on(model)
    state["interrupt"] = True
    with pytest.raises(KeyboardInterrupt):
        model(X)
    handle.close()
    assert not _get_current_function_mode_stack()
    assert not any(module.training for module in model.modules())


def test_two_threads_at_once() -> None:
    ready, go = threading.Event(), threading.Event()

    def forward(self: Gate, x: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            ready.set()
            go.wait(10)
        return F.dropout(x, 0.5) if self.training else x

    model = nn.Sequential(Gate(forward)).eval()
    results: list[bool] = []
    with switch(model, "on"):
        assert is_on(model)
        thread = threading.Thread(target=lambda: results.append(is_on(model)))
        thread.start()
        ready.wait(10)
        with pytest.raises(UnsupportedError, match="two threads"):
            model(X)
        go.set()
        thread.join(10)
    assert results == [True]
    assert not any(module.training for module in model.modules())
    assert not is_on(model)


def test_a_forward_in_another_thread_while_the_first_is_learned_raises() -> None:
    """It would not be switched."""
    outcomes: list[str] = []  # which, unlike an attribute, the probe does not put back

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=attempt, args=(self, x))
                other.start()
                other.join(10)
            return F.dropout(x, 0.5, self.training)

    def attempt(model: nn.Module, x: Tensor) -> None:
        try:
            model(x)
        except UnsupportedError as error:
            outcomes.append(str(error))
        else:
            outcomes.append("ran")

    model = Slow().eval()
    with switch(model, "on"):
        assert (model(torch.ones(50, 50)) == 0).any()
    assert len(outcomes) >= 3
    assert all("two threads" in outcome for outcome in outcomes)


def test_where_nothing_surely_is_dropout_what_may_be_is_told() -> None:
    class Labels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(len(x), 1) > 0.1)

    model = nn.Sequential(Labels())
    with switch(model, "off"), pytest.warns(UserWarning, match="nothing in this model surely is dropout.* alone: 0~0"):
        model(X)


@pytest.mark.parametrize("where", [nn.Dropout, nn.Dropout(0.5)], ids=["class", "layer"])
def test_a_class_or_a_layer_is_no_choice_of_sites(where: object) -> None:
    with pytest.raises(ArgumentTypeError, match=r"`where` must be a pattern of names.* Choose layers by their names"):
        switch(nn.Sequential(nn.Dropout(0.5)), "off", where=where)
