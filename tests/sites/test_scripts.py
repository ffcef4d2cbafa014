"""TorchScript: what hides its calls is refused where it is the model, and told where it is a part."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from dropkit.errors import UnsupportedError
from dropkit.sites import accelerate, address, convert, inject, record, switch

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

X = torch.ones(3, 4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))


def entered(manager: AbstractContextManager[Any]) -> None:
    with manager:
        pass


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "switch": lambda model: switch(model, "off"),
    "accelerate": accelerate,
    "record": lambda model: entered(record(model)),
    "inject": lambda model: entered(inject(model, {})),
    "address": address,
    "convert": lambda model: convert(model, "srivastava", X),
}


@pytest.mark.parametrize(
    "compiled", [torch.jit.script, lambda model: torch.jit.trace(model, X, check_trace=False)], ids=["script", "trace"]
)
@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_is_all_script_is_refused(name: str, compiled: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}: the model is a TorchScript module"):
        CHANGES[name](compiled(network()))


@pytest.mark.parametrize("name", ["record", "inject", "address"])
def test_a_part_whose_masks_would_be_missing_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}: `0.1` is a TorchScript module"):
        CHANGES[name](nn.Sequential(nn.Sequential(nn.ReLU(), torch.jit.script(network()))))


def test_an_acceleration_reports_parts_that_it_leaves_alone() -> None:
    model = nn.Sequential(torch.jit.script(network()), nn.Dropout(0.5), torch.jit.script(nn.Linear(4, 4)))
    handle = accelerate(model)
    model(X)
    assert [(one.path, one.p, one.calls, bool(one.reason)) for one in handle.report()] == [
        ("0", None, 0, True),
        ("1", 0.5, 1, False),
    ]
    assert str(handle.report()).splitlines()[1].split()[:4] == ["0", "dropout", "?", "0"]


@pytest.mark.parametrize("name", ["switch", "accelerate", "record", "inject", "address"])
def test_script_without_dropout_is_nothing_to_refuse(name: str) -> None:
    CHANGES[name](torch.jit.script(nn.Linear(4, 4)))
