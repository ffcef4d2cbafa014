"""Where warnings point: at the line of the user's that has led to them."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropkit.sites import find, switch
from dropkit.sites.interception import attributes

X = torch.ones(2, 4)


class Moving(nn.Module):
    """Writes a tensor that is too large to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.kept = nn.Dropout(0.5), torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.add_(1)
        return self.drop(x)


class Masking(nn.Module):
    """Draws dropout in a method that is no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def predict(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x))


def looked(line: list[int]) -> None:
    model = Moving()
    line[:] = [sys._getframe().f_lineno + 1]
    find(model, X)


def switched(line: list[int]) -> None:
    model = nn.Linear(4, 4)
    with switch(model, "on"):
        line[:] = [sys._getframe().f_lineno + 1]
        model(X)


def learnt(line: list[int]) -> None:
    model = nn.Linear(4, 4)
    with switch(model, "on") as opened:
        line[:] = [sys._getframe().f_lineno + 1]
        opened.learn(X)


def called(line: list[int]) -> None:
    model = Masking()
    with switch(model, "off"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "switch: ")
        line[:] = [Masking.predict.__code__.co_firstlineno + 1]
        model.predict(X)


@pytest.mark.parametrize("run", [looked, switched, learnt, called], ids=lambda run: str(run.__name__))
def test_warnings_point_at_the_users_line(run: Callable[[list[int]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "_MOST_BYTES", 7)
    line: list[int] = []
    with pytest.warns(UserWarning, match=r"^(dropkit\.sites|switch): ") as seen:
        run(line)
    assert {(each.filename, each.lineno) for each in seen} == {(__file__, line[0])}


def test_the_next_model_is_told_of_too() -> None:
    """Python shows a text but once a line, and these are two lines."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        with switch(first, "on"):
            first(X)
        with switch(second, "on"):
            second(X)
    assert len(seen) == 2
