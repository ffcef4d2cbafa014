"""Concrete dropout: before or around a layer, its rate learned, its term that of the paper."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dropkit
from dropkit.errors import ArgumentError
from dropkit.functional import concrete_dropout
from dropkit.nn import ConcreteDropout

KEY = 0x720F_0000_1234_5678


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_drops_the_inputs_of_a_linear_layer() -> None:
    linear = torch.nn.Linear(6, 3).double()
    layer, x = ConcreteDropout(linear, 0.2), drawn(4, 6)
    assert layer.p_logit.dtype == torch.float64
    logit = torch.tensor(math.log(0.25)).double()
    torch.testing.assert_close(
        layer(x, dropout_key=KEY), linear(concrete_dropout(x, logit, 0.1, key=KEY)), rtol=1e-7, atol=1e-9
    )
    assert torch.equal(layer.eval()(x), linear(x))
    torch.testing.assert_close(layer.p, torch.tensor(0.2).double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("conv", "shape", "axes"),
    [(torch.nn.Conv1d(3, 4, 2), (5, 3, 7), (2,)), (torch.nn.Conv2d(3, 4, 2), (5, 3, 7, 6), (2, 3)),
     (torch.nn.Conv3d(3, 4, 2), (5, 3, 4, 4, 4), (2, 3, 4)), (torch.nn.Conv2d(3, 4, 2), (3, 7, 6), (1, 2)),
     (torch.nn.ConvTranspose2d(3, 4, 2), (5, 3, 7, 6), (2, 3))],
    ids=["1d", "2d", "3d", "one image", "transposed"],
)  # fmt: skip
def test_a_convolution_loses_whole_channels(conv: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    conv = copy.deepcopy(conv).double()
    layer, x = ConcreteDropout(conv, wraps=False), drawn(*shape)
    assert (layer.features, layer.spatial, layer.temperature) == (3, True, 2 / 3)
    want = concrete_dropout(x, layer.p_logit, 2 / 3, broadcast_dims=axes, key=KEY)
    assert torch.equal(layer(x, dropout_key=KEY), want)
    assert torch.equal(ConcreteDropout(conv)(x, dropout_key=KEY), conv(want))


def test_the_form_may_be_chosen() -> None:
    x = drawn(2, 3, 5, 5)
    single = ConcreteDropout(torch.nn.Conv2d(3, 4, 2).double(), spatial=False, wraps=False)
    assert (single.temperature, single.features) == (0.1, 3)
    assert torch.equal(single(x, dropout_key=KEY), concrete_dropout(x, single.p_logit, 0.1, key=KEY))
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2)).double()
    whole = ConcreteDropout(block, features=3, spatial=True, temperature=1.0)
    want = block(concrete_dropout(x, whole.p_logit, 1.0, broadcast_dims=(2, 3), key=KEY))
    assert torch.equal(whole(x, dropout_key=KEY), want)


def test_any_layer_may_be_wrapped_with_what_else_it_takes() -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(4, 5, batch_first=True)
    layer, x, state = ConcreteDropout(lstm, features=4), torch.randn(2, 3, 4), torch.zeros(1, 2, 5)
    out, _ = layer.eval()(x, (state, state))
    torch.testing.assert_close(out, lstm(x, (state, state))[0])
    attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    _, weights = ConcreteDropout(attention, features=4)(x, key=x, value=x, need_weights=False)
    assert weights is None
    with pytest.raises(ArgumentError, match="`features` must be given for a layer of type LSTM, got None"):
        ConcreteDropout(lstm)


@pytest.mark.parametrize("lazy", [torch.nn.LazyLinear(3), torch.nn.LazyConv2d(3, 2)], ids=["linear", "conv"])
def test_a_layer_that_does_not_know_its_inputs_yet_needs_their_number(lazy: Any) -> None:
    with pytest.raises(ArgumentError, match=f"`features` must be given for a layer of type {type(lazy).__name__}, got"):
        ConcreteDropout(lazy)
    assert ConcreteDropout(lazy, features=6).features == 6


@pytest.mark.parametrize(
    ("layer", "options", "features"),
    [(torch.nn.Linear(6, 3), {}, 6), (torch.nn.Conv2d(4, 6, 3), {}, 4), (torch.nn.Conv2d(4, 6, 3, groups=2), {}, 4),
     (torch.nn.Linear(6, 3, bias=False), {"features": 2}, 2), (torch.nn.LSTM(5, 4), {"features": 5}, 5)],
    ids=["linear", "conv", "grouped", "given", "lstm"],
)  # fmt: skip
@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_term_and_its_gradients_are_those_of_the_paper(
    layer: Any, options: dict[str, Any], features: int, wraps: bool, p: float
) -> None:
    layer = copy.deepcopy(layer).double()
    concrete = ConcreteDropout(layer, p, length_scale=0.3, wraps=wraps, **options)
    weights = [value for name, value in layer.named_parameters() if "weight" in name]
    square = sum(weight.detach().square().sum().item() for weight in weights)
    rows, tau = 50, 4.0
    w, d = 0.3**2 / (tau * rows), 2 / (tau * rows)
    term = 2 / tau * dropkit.nn.regularization(concrete, rows)
    q = 1 - p
    assert term.item() == pytest.approx(w * square / q + d * features * (p * math.log(p) + q * math.log(q)), rel=1e-6)
    term.backward()
    by_hand = p * q * (w * square / q**2 + d * features * math.log(p / q))
    assert concrete.p_logit.grad.item() == pytest.approx(by_hand, rel=1e-6, abs=1e-9)
    for weight in weights:
        torch.testing.assert_close(weight.grad, 2 * w * weight / q, rtol=1e-6, atol=0)
    assert all(value.grad is None for name, value in layer.named_parameters() if "bias" in name)


def test_the_term_has_a_gradient_at_a_rate_that_rounds_to_one() -> None:
    concrete = ConcreteDropout(torch.nn.Linear(3, 2))
    with torch.no_grad():
        concrete.p_logit.fill_(85.0)
    (slope,) = torch.autograd.grad(concrete.kl(), concrete.p_logit)
    square = concrete.layer.weight.square().sum().item()
    assert slope.item() == pytest.approx(0.5e-8 * square * math.exp(85), rel=1e-5)


def test_without_data_or_weights_the_rate_goes_to_one_half() -> None:
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.zero_()
    concrete = ConcreteDropout(layer, 0.1)
    optimiser = torch.optim.Adam([concrete.p_logit], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        concrete.kl().backward()
        optimiser.step()
    assert concrete.p.item() == pytest.approx(0.5, abs=0.01)


def test_data_lower_the_rate() -> None:
    torch.manual_seed(0)
    concrete = ConcreteDropout(torch.nn.Linear(8, 1), 0.3)
    x = torch.randn(500, 8)
    y = x.sum(1, keepdim=True)
    optimiser = torch.optim.Adam(concrete.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        ((concrete(x) - y).square().mean() + dropkit.nn.regularization(concrete, 500)).backward()
        optimiser.step()
    assert concrete.p < 0.05


def test_before_a_layer_the_model_gains_one_parameter_and_no_name_changes() -> None:
    linear = torch.nn.Linear(4, 2)
    model = torch.nn.Sequential(ConcreteDropout(linear, wraps=False), linear)
    assert list(model.state_dict()) == ["0.p_logit", "1.weight", "1.bias"]
    assert len(list(model.parameters())) == 3
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[1].weight.mul_(1000)
    assert twin[0].kl() > model[0].kl()  # the copy stands before the copy
    assert "wraps=False" in repr(model)
    x = torch.ones(3, 4)
    assert model[0].eval()(x) is x


def test_weights_with_a_prior_of_their_own_are_left_out() -> None:
    wrapped, followed, plain = (torch.nn.Linear(4, 4) for _ in range(3))
    noise = (ConcreteDropout(wrapped), ConcreteDropout(followed, wraps=False), dropkit.nn.VariationalLinear(4, 4))
    model = torch.nn.Sequential(*noise, followed, plain)
    outer = ConcreteDropout(model, features=4, length_scale=1.0)
    want = ConcreteDropout(torch.nn.Identity(), features=4).kl() + 0.5 * plain.weight.square().sum() / 0.9
    torch.testing.assert_close(outer.kl(), want)
    torch.testing.assert_close(dropkit.nn.regularization(outer, 1), want + sum(layer.kl() for layer in noise))
