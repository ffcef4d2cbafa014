"""What all ways to uncertainty share: which sites of a model drop, told from inputs of any number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import ArgumentError
from dropkit.uncertainty import exact, mc, moments
from tests.uncertainty.written import Written, drop

WAYS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "exact": lambda model: exact(model, output="raw"),
    "mc": lambda model: mc(model, n=4000, seed=0),
    "moments": moments,
}
NEAR = {"exact": 1e-5, "mc": 0.06, "moments": 1e-5}


def std_by_hand(h: Tensor, layer: nn.Linear, p: float) -> Tensor:
    """Return the standard deviation of a linear layer of what is dropped from."""
    return (h.square() @ layer.weight.detach().square().T * p / (1 - p)).sqrt()


def normalised(*layers: nn.Module, images: bool = False) -> nn.Sequential:
    """Return a model with a BatchNorm whose running statistics are those of no batch."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5) if images else nn.BatchNorm1d(5)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return nn.Sequential(*layers, norm, nn.Flatten(), nn.Dropout(0.25), nn.Linear(5, 2))


def dense() -> nn.Sequential:
    return normalised(nn.Linear(8, 5))


def pooled() -> nn.Sequential:
    return normalised(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), images=True)


ONE_EXAMPLE = pytest.mark.parametrize(("build", "shape"), [(dense, (1, 8)), (pooled, (1, 2, 6, 6))])


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@ONE_EXAMPLE
@pytest.mark.parametrize("way", WAYS)
def test_one_example_is_enough_for_batch_normalisation(
    way: str, build: Callable[[], nn.Sequential], shape: tuple[int, ...], mode: bool
) -> None:
    model, x = build().eval(), torch.randn(shape)
    expected = std_by_hand(model[:-2](x).detach(), model[-1], 0.25)
    model.train(mode)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = WAYS[way](model)(x).std
    torch.testing.assert_close(found, expected, rtol=NEAR[way], atol=0, check_dtype=False)
    assert model[-2].training is mode
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("way", WAYS)
def test_the_last_batch_may_have_one_example(way: str) -> None:
    model = dense().eval()
    x = torch.randn(5, 8)
    predict = WAYS[way](model)
    found = torch.cat([predict(part).std for part in x.split(4)])
    expected = std_by_hand(model[:-2](x).detach(), model[-1], 0.25)
    torch.testing.assert_close(found, expected, rtol=NEAR[way], atol=0, check_dtype=False)


class Targeted(nn.Module):
    """Wants targets in training, as models of detection do."""

    def __init__(self, before: Callable[[Any, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.layers, self.last = before, nn.ModuleList(layers), nn.Linear(4, 2)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("no targets")
        return self.last(self.before(self, x))


def first(self: Targeted, x: Tensor) -> Tensor:
    return self.layers[0](x)


TARGETED: dict[str, Callable[[], Targeted]] = {
    "layer": lambda: Targeted(first, nn.Dropout(0.25)),
    "layer of dropkit": lambda: Targeted(first, dropkit.nn.Dropout(0.25)),
    "function": lambda: Targeted(first, Written(lambda self, x: drop(self, x, 0.25))),
    "function of its own": lambda: Targeted(lambda self, x: drop(self, x, 0.25)),
    "always on": lambda: Targeted(lambda _, x: F.dropout(x, 0.25)),
}


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", TARGETED)
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_wants_targets_in_training_is_looked_at_in_evaluation(way: str, case: str, mode: bool) -> None:
    model, x = TARGETED[case]().train(mode), torch.randn(3, 4)
    predict = WAYS[way](model)
    with pytest.warns(UserWarning, match=f"^{way}: the model does not run on these inputs in training mode"):
        found = predict(x).std
    expected = std_by_hand(x, model.last, 0.25)
    torch.testing.assert_close(found, expected, rtol=NEAR[way], atol=0, check_dtype=False)
    assert all(module.training is mode for module in model.modules())


@pytest.mark.parametrize("way", ["exact", "moments"])
def test_dropout_that_evaluation_leaves_out_is_told_to_need_targets(way: str) -> None:
    model = Targeted(lambda self, x: F.dropout(x) if self.training else x)
    with pytest.raises(ArgumentError, match=r"active dropout.*it raises ValueError: give it") as caught:
        WAYS[way](model)(torch.randn(3, 4))
    assert str(caught.value.__cause__) == "no targets"


@pytest.mark.parametrize("way", WAYS)
def test_what_raises_in_either_mode_is_raised(way: str) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        WAYS[way](dense())(torch.randn(3, 7))


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("way", ["exact", "moments"])
def test_arrays_of_numpy_are_named(way: str, is_known: bool) -> None:
    x, predict = torch.randn(3, 8), WAYS[way](dense())
    if is_known:
        predict(x)
    with pytest.raises(ArgumentError, match=r"got 'arrays of NumPy' \(str\)\. Give torch.as_tensor\(array\)"):
        predict(x.numpy())


def test_arrays_of_numpy_are_taken_where_a_model_takes_them() -> None:
    model = Written(lambda self, x: self.layers[0](torch.as_tensor(x)), dense().eval())
    x = torch.randn(3, 8)
    assert torch.equal(moments(model)(x.numpy()).std, moments(model)(x).std)
