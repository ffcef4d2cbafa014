"""The layer DropConnect: a linear layer by parameters and state, and the two rules of evaluation."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import drop_connect, drop_connect_inference

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def layer(**options: Any) -> dropkit.nn.DropConnect:
    torch.manual_seed(3)
    return dropkit.nn.DropConnect(5, 4, **options)


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_their_first_values_and_state_are_those_of_linear(bias: bool) -> None:
    ours = layer(bias=bias)
    torch.manual_seed(3)
    theirs = torch.nn.Linear(5, 4, bias)
    assert isinstance(ours, torch.nn.Linear)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.eval()(X), theirs(X))


def test_the_constructor_takes_the_arguments_of_linear_in_their_order_and_the_rest_by_keyword() -> None:
    found = inspect.signature(dropkit.nn.DropConnect).parameters
    order = [name for name, one in found.items() if one.kind is not one.KEYWORD_ONLY]
    assert order == list(inspect.signature(torch.nn.Linear).parameters)
    assert dropkit.nn.DropConnect(5, 4, False).bias is None
    with pytest.raises(ArgumentTypeError, match=r"`bias` must be True or False, got 0\.5"):
        dropkit.nn.DropConnect(5, 4, 0.5)


def test_the_activation_is_applied_in_training_and_evaluation() -> None:
    ours = layer(activation=torch.relu, p=0.3)
    assert torch.equal(ours(X, key=7), torch.relu(drop_connect(X, ours.weight, ours.bias, 0.3, key=7)))
    found, mask = ours(X, key=7, return_mask=True)
    assert torch.equal(found, ours(X, key=7))
    torch.testing.assert_close(ours(X, mask=mask), found)
    assert torch.equal(ours.eval()(X), torch.relu(torch.nn.functional.linear(X, ours.weight, ours.bias)))


def test_gaussian_inference() -> None:
    ours = layer(activation=torch.tanh, p=0.3, inference="gaussian", samples=11)
    assert torch.equal(ours(X, key=7), torch.tanh(drop_connect(X, ours.weight, ours.bias, 0.3, key=7)))
    ours.eval()
    want = drop_connect_inference(X, ours.weight, ours.bias, 0.3, activation=torch.tanh, samples=11, key=7, stream=2)
    found, mask = ours(X, key=7, stream=2, return_mask=True)
    assert torch.equal(found, want)
    assert mask.shape == (6, 4, 6)
    assert mask.all()
    torch.manual_seed(1)
    drawn = ours(X)
    assert not torch.equal(drawn, ours(X))
    torch.manual_seed(1)
    assert torch.equal(drawn, ours(X))
    with pytest.raises(ArgumentError, match="`mask` must be left out in Gaussian inference"):
        ours(X, mask=mask)
    ours.generator = torch.Generator().manual_seed(1)
    assert not torch.equal(ours(X), ours(X))


def test_a_schedule_moves_the_gaussian_too() -> None:
    ours = layer(activation=torch.tanh, p=0.3, inference="gaussian", samples=11).eval()
    before = ours(X, key=7)
    ours.follow()
    torch.testing.assert_close(ours(X, key=7), before)
    ours.p = 0.0
    torch.testing.assert_close(ours(X, key=7), torch.tanh(torch.nn.functional.linear(X, ours.weight, ours.bias)))


@pytest.mark.parametrize("training", [True, False])
def test_compiled_code_gives_the_same(training: bool) -> None:
    ours = layer(activation=torch.tanh, p=0.3, inference="gaussian", samples=5).train(training)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    key = torch.tensor(7)
    found, want = compiled(X, key=key), ours(X, key=7)
    torch.testing.assert_close(found, want)
    gradients = [torch.autograd.grad(out.sum(), (ours.weight, ours.bias)) for out in (found, want)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_representation_and_copies() -> None:
    assert repr(layer()) == "DropConnect(in_features=5, out_features=4, bias=True, p=0.5)"
    ours = layer(activation=torch.tanh, p=0.3, inference="gaussian", samples=11)
    text = "in_features=5, out_features=4, bias=True, p=0.3, inference='gaussian', samples=11, activation=tanh"
    assert repr(ours) == f"DropConnect({text})"
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):  # noqa: S301  # our own bytes
        assert repr(twin) == repr(ours)
        assert torch.equal(twin.eval()(X, key=3), copy.copy(ours).eval()(X, key=3))


def test_it_learns_the_weights_behind_noise() -> None:
    """The expected loss of a linear layer is a ridge regression's, whose solution is known."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 3, dtype=torch.float64, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    ours = dropkit.nn.DropConnect(3, 1, p=0.4, bias=False, dtype=torch.float64)
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    chance = torch.tensor([0.4, 0.6], dtype=torch.float64)[masks.long()].prod(-1)
    optimizer = torch.optim.LBFGS(ours.parameters(), line_search_fn="strong_wolfe", tolerance_grad=1e-12, max_iter=100)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        errors = [(ours(x, mask=mask.view(1, 1, 3)) - y).square().sum() for mask in masks]
        total = chance @ torch.stack(errors)
        total.backward()
        return total

    optimizer.step(loss)
    gram = x.T @ x
    ridge = torch.linalg.solve(gram + 0.4 / 0.6 * gram.diag().diag(), x.T @ y)
    torch.testing.assert_close(ours.weight.detach().T, ridge, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inference", ["mean", "gaussian"])
def test_shapes_without_values(inference: str) -> None:
    layer = dropkit.nn.DropConnect(5, 3, device="meta", activation=torch.relu, inference=inference)
    x = torch.ones(2, 5, device="meta")
    assert layer(x).shape == layer.eval()(x).shape == (2, 3)
