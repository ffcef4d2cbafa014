"""Switching every model of the zoo: all on is training mode, all off is evaluation mode, and norms keep their mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dropkit.sites import switch
from tests.sites.zoo import CASES, Model, tensors


def run(network: nn.Module, model: Model) -> list[Tensor]:
    torch.manual_seed(5)
    return [tensor.detach().clone() for tensor in tensors(network(*model.inputs()))]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def norms_in_eval(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.eval()
    return network


@contextmanager
def no_fused_path() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def cases(does_fit: Callable[[Model], bool]) -> Any:
    """The models whose every site can be switched by itself, and that fit."""
    return [case for case in CASES if case.values[0].name not in OTHERS and does_fit(case.values[0])]


OTHERS = ("scripted", "hand_written")  # what cannot be switched here is told, in tests of their own
both_grad_modes = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of reentrant checkpoints


@both_grad_modes
@pytest.mark.parametrize("model", cases(lambda model: all(site.in_train for site in (*model.sites, *model.masks))))
def test_on_in_evaluation_is_training_mode_with_norms_in_evaluation(model: Model, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        wanted = run(norms_in_eval(model.build()), model)
        network = model.build().eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with switch(network, "on"):
            found = run(network, model)
    assert equal(found, wanted)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@both_grad_modes
@pytest.mark.parametrize("model", cases(lambda model: not any(site.in_eval for site in (*model.sites, *model.masks))))
def test_off_in_training_is_evaluation_mode(model: Model, grad: bool) -> None:
    with torch.set_grad_enabled(grad), no_fused_path():
        wanted = run(model.build().eval(), model)
        network = norms_in_eval(model.build())
        with switch(network, "off"):
            found = run(network, model)
    assert equal(found, wanted)
