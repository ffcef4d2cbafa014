"""Using `moments`: either mode, any structure, nothing changed, and what has no rule is named."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.uncertainty import Moments, moments
from tests.uncertainty.written import Written, drop


def gated(self: Written, x: Tensor) -> Tensor:
    if self.training:
        x = F.dropout(x, 0.5)
    return self.layers[0](x)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("run", [gated, lambda self, x: self.layers[0](drop(self, x, 0.5))], ids=["gated", "flag"])
def test_functional_dropout_is_met_in_either_mode(run: Callable[..., Tensor], mode: bool) -> None:
    model = Written(run, nn.Linear(3, 2)).double().train(mode)
    x = torch.randn(2, 3).double()
    weight = model.layers[0].weight.detach()
    expected = torch.stack([weight @ torch.diag(row**2) @ weight.T for row in x])
    torch.testing.assert_close(moments(model)(x).covariance, expected)
    assert model.training is mode


def test_anything_may_run_before_the_first_site() -> None:
    torch.manual_seed(0)
    prefix = nn.Sequential(nn.Embedding(10, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True))
    model = nn.Sequential(prefix, nn.LayerNorm(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 2)).eval()
    tokens = torch.randint(10, (4, 3))
    h = model[2](model[1](prefix(tokens))).detach()
    weight = model[4].weight.detach()
    found = moments(model)(tokens)
    torch.testing.assert_close(found.mean, model(tokens).detach())
    torch.testing.assert_close(found.variance, (h**2) @ (weight**2).T, rtol=1e-5, atol=1e-6)


def test_outputs_keep_their_structure() -> None:
    def run(self: Written, x: Tensor, *, scale: float) -> dict[str, Any]:
        h = drop(self, x, 0.5)
        return {"logits": scale * self.layers[0](h), "plain": x, "number": 3}

    model = Written(run, nn.Linear(3, 2))
    found = moments(model)(torch.ones(2, 3), scale=2.0)
    assert isinstance(found["logits"], Moments)
    assert found["logits"].mean.shape == (2, 2)
    assert torch.equal(found["plain"].std, torch.zeros(2, 3))
    assert found["number"] == 3


def test_rates_that_change_are_followed() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), nn.Dropout(0.0)).double()
    x, propagate = torch.randn(2, 3).double(), moments(model)
    before = propagate(x).variance
    model[0].p = 0.2
    torch.testing.assert_close(propagate(x).variance, before / 4, rtol=1e-8, atol=0)
    model[2].p = 0.5
    torch.testing.assert_close(propagate(x).variance, moments(model)(x).variance)
    assert (propagate(x).variance > before / 4).all()


def state_of(model: nn.Module) -> list[Any]:
    values = [value.clone() for value in model.state_dict().values()]
    return [[module.training for module in model.modules()], values, torch.get_rng_state()]


@pytest.mark.parametrize("last", [nn.Linear(4, 2), nn.LayerNorm(4)], ids=["works", "raises"])
def test_a_model_is_left_as_it_was(last: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4), nn.ReLU(inplace=True), last)
    model[0].eval()
    model[2].weight.grad = torch.ones(4, 3)
    x = torch.randn(5, 3)
    given, before = x.clone(), state_of(model)
    if isinstance(last, nn.LayerNorm):
        with pytest.raises(UnsupportedError):
            moments(model)(x)
    else:
        assert not moments(model)(x).mean.requires_grad
    after = state_of(model)
    assert after[0] == before[0]
    assert all(map(torch.equal, after[1], before[1]))
    assert torch.equal(after[2], before[2])
    assert torch.equal(model[2].weight.grad, torch.ones(4, 3))
    assert torch.equal(x, given)


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "layer_norm": (lambda: nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(4)), (2, 4), "layer_norm has no rule .* '1'"),
    "softmax": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Softmax(1)), (2, 4), "softmax has no rule .* '1'"),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 1, 4, 0.5, batch_first=True), (2, 3, 4), "multi_head_attention, has no"),
    "lstm": (lambda: nn.LSTM(4, 4, 2, dropout=0.5), (2, 3, 4), "lstm, has no rule"),
    "learned": (lambda: nn.Sequential(dropkit.nn.ConcreteDropout(nn.Linear(4, 4))), (2, 4), "concrete_dropout, has no"),
    "product": (
        lambda: Written(lambda self, x: drop(self, x, 0.5) * drop(self, x, 0.5)), (2, 4), "of two random tensors"),
    "batch_mean": (lambda: Written(lambda self, x: drop(self, x, 0.5).mean(0)), (2, 4), "the axis of examples"),
    "batch_mixed": (lambda: Written(lambda self, x: drop(self, x, 0.5).view(1, 8)), (2, 4), "across the examples"),
    "batch_turned": (lambda: Written(lambda self, x: drop(self, x, 0.5).permute(1, 0)), (4, 4), "across the examples"),
    "squeezed": (
        lambda: nn.Sequential(nn.Dropout(0.5), Written(lambda self, x: x.squeeze())), (1, 4), r"as in squeeze\(-1\)"),
    "batch_norm": (
        lambda: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4, track_running_stats=False)), (2, 4),
        "batch_norm with the statistics of the batch has no rule, in module '1'"),
    "no_batch": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(2, 2, 1)), (2, 3, 3), "without an axis of examples"),
    "weights": (
        lambda: Written(lambda self, x: F.linear(x, drop(self, self.layers[0].weight, 0.5)), nn.Linear(4, 2)), (2, 4),
        "such as weights"),
    "random_weights": (
        lambda: Written(lambda self, x: F.linear(x, drop(self, torch.ones(2, 4), 0.5))), (2, 4), "with random weights"),
    "native": (
        lambda: Written(lambda self, x: torch.native_dropout(x, 0.5, self.training)[0]), (2, 4),
        "torch.native_dropout returns its mask, too, and so has no rule"),
    "own_mask": (
        lambda: Written(lambda self, x: dropkit.functional.dropout(x, 0.5, self.training, return_mask=True)[0]), (2, 4),
        "dropout with a mask of its own has no rule"),
    "stale_view": (
        lambda: Written(lambda self, x: _overwritten(drop(self, x, 0.5))), (2, 4), "overwritten in place"),
    "comparison": (lambda: Written(lambda self, x: drop(self, x, 0.5) > 0), (2, 4), "has no rule"),
    "value": (lambda: Written(lambda self, x: x if drop(self, x, 0.5).sum() > 0 else -x), (2, 4), "has no rule"),
}  # fmt: skip


GENERATOR = np.random.default_rng(0)
NOISE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "randn_like": lambda self, x: x + torch.randn_like(x),
    "in_training": lambda self, x: x + torch.randn(x.shape) if self.training else x,
    "normal_": lambda self, x: x + torch.empty(x.shape).normal_(),
    "rsample": lambda self, x: torch.distributions.Normal(x, 1.0).rsample(),
    "gumbel_softmax": lambda self, x: F.gumbel_softmax(x),
    "rrelu": lambda self, x: F.rrelu(x, 0.1, 0.3, True),
    "randperm": lambda self, x: x[:, torch.randperm(4)],
    "multinomial": lambda self, x: x[:, torch.multinomial(torch.ones(4), 4)],
    "skipped_layers": lambda self, x: x if torch.rand(1) < 0.5 else 2 * x,
    "pooling": lambda self, x: F.fractional_max_pool2d(x.view(-1, 1, 2, 2), 1, output_size=1).expand(-1, 1, 2, 2),
    "numpy": lambda self, x: x + torch.from_numpy(np.random.randn(2, 4)).float(),  # noqa: NPY002
    "numpy_of_the_model": lambda self, x: x + torch.from_numpy(self.generator.normal(size=(2, 4))).float(),
    "numpy_of_a_file": lambda self, x: x + torch.from_numpy(GENERATOR.normal(size=(2, 4))).float(),
    "python": lambda self, x: x + random.random(),  # noqa: S311
}


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", NOISE)
def test_other_noise_than_dropout_is_refused(name: str, is_after: bool) -> None:
    def run(self: Written, x: Tensor) -> Tensor:
        first = x if is_after else NOISE[name](self, x).flatten(1)
        h = self.layers[0](drop(self, first, 0.5))
        return h + NOISE[name](self, x).flatten(1) if is_after else h

    model = Written(run, nn.Linear(4, 4))
    model.generator = np.random.default_rng(0)
    before = model.generator.bit_generator.state
    with pytest.raises(UnsupportedError, match=r"draws other noise than dropout.* Sample instead: "):
        moments(model)(torch.rand(2, 4))
    assert model.generator.bit_generator.state == before


def test_a_random_rectifier_draws_nothing_in_evaluation() -> None:
    torch.manual_seed(0)
    parts = nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)
    random_one, plain = nn.RReLU(0.1, 0.3), nn.LeakyReLU(0.2)
    x = torch.randn(2, 4)
    one, other = (moments(nn.Sequential(each, *parts, each))(x) for each in (random_one, plain))
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.covariance, other.covariance)


def _overwritten(x: Tensor) -> Tensor:
    view = x.view(2, 4)
    x.relu_()
    return view + 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_named(name: str) -> None:
    build, shape, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message) as caught:
        moments(build())(torch.randn(shape))
    assert str(caught.value).endswith("Sample instead: dropkit.uncertainty.mc.")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"model": 3}, ArgumentTypeError, "`model` must be a torch.nn.Module", id="model"),
        pytest.param({"rank": 0}, ArgumentError, "`rank` must be an integer", id="zero"),
        pytest.param({"rank": 2.0}, ArgumentTypeError, "`rank` must be an integer", id="float"),
        pytest.param({"rank": float("nan")}, ArgumentTypeError, "`rank` must be an integer", id="nan"),
        pytest.param({"rank": True}, ArgumentTypeError, "`rank` must be an integer", id="bool"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        moments(**{"model": nn.Dropout(0.5), **arguments})


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Dropout(0.0)], ids=["none", "rate_of_zero"])
def test_a_model_without_dropout_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="a model with active dropout"):
        moments(model)(torch.ones(1, 2))


@pytest.mark.parametrize("is_traced", [True, False], ids=["traced", "scripted"])
def test_dropout_in_torchscript_is_named(is_traced: bool) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, and that traced dropout is random
        x = torch.ones(2, 4)
        traced = torch.jit.trace(model, x, check_trace=False) if is_traced else torch.jit.script(model)
    with pytest.raises(UnsupportedError, match="moments: the model is a TorchScript module that draws dropout"):
        moments(traced)(torch.ones(2, 4))


def test_a_single_example_without_an_axis_of_examples_is_told_the_remedy() -> None:
    with pytest.raises(UnsupportedError, match=r"linear without an axis of examples \(give a single .* as x\[None\]\)"):
        moments(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)))(torch.ones(4))
