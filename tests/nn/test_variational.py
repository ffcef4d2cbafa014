"""Variational dropout: noise of the definition, alpha bounded, shared and counted as the paper says."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.functional import log_uniform_kl
from dropkit.nn import VariationalDropout, VariationalLinear
from tests.helpers.divergence import exact_kl

KEY = 0x720F_0000_1234_5678


def normals(*shape: int) -> Tensor:
    return torch.from_numpy(random.normal(KEY, shape))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_it_starts_as_gaussian_dropout_at_p(p: float) -> None:
    layer, x = VariationalDropout(6, p).double(), drawn(4, 6)
    alpha = p / (1 - p)
    torch.testing.assert_close(layer(x, key=KEY), x * (1 + math.sqrt(alpha) * normals(4, 6)), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(layer.p, torch.full((6,), p).double(), rtol=1e-7, atol=0)
    assert f"p={p}" in repr(layer)


@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 6), -1), ((4, 6, 3, 2), 1), ((4, 3, 6), 2), ((6,), 0), ((4, 6, 3), -2), ((5, 4, 3, 6), -1)]
)
def test_features_lie_on_their_axis(shape: tuple[int, ...], dim: int) -> None:
    layer, x = VariationalDropout(6, dim=dim).double(), drawn(*shape)
    with torch.no_grad():
        layer.log_alpha.copy_(-torch.arange(6.0))
    noise = ((layer(x, key=KEY) / x - 1) / normals(*shape)).movedim(dim, -1)
    torch.testing.assert_close(noise, torch.exp(-0.5 * torch.arange(6.0).double()).expand_as(noise), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("shape", "dim"), [((4, 5), -1), ((6, 5), -1), ((6,), 1), ((), -1), ((4, 6), 5), ((4, 6), -3)])
def test_another_number_of_features_is_refused(shape: tuple[int, ...], dim: int) -> None:
    with pytest.raises(ArgumentError, match=f"`input` must be of 6 features on axis {dim}, got "):
        VariationalDropout(6, dim=dim)(torch.ones(shape))


@pytest.mark.parametrize(("per", "shape"), [("weight", (3, 6)), ("unit", (6,)), ("layer", ())])
def test_a_linear_layer_has_noise_on_each_weight(per: str, shape: tuple[int, ...]) -> None:
    layer, x = VariationalLinear(6, 3, p=0.3, per=per).double(), drawn(4, 6)
    assert layer.log_alpha.shape == shape
    with torch.no_grad():
        layer.log_alpha.copy_(-drawn(*shape).abs())
    variance = linear(x * x, layer.log_alpha.exp().expand(3, 6) * layer.weight**2)
    want = linear(x, layer.weight, layer.bias) + variance.sqrt() * normals(4, 3)
    torch.testing.assert_close(layer(x, key=KEY), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.eval()(x), linear(x, layer.weight, layer.bias))


def test_types_a_and_b_agree_in_mean_and_variance_where_one_input_is_read() -> None:
    one = VariationalLinear(1, 3, False, p=0.3, per="layer").double()
    other = VariationalDropout(1, 0.3).double()
    x = drawn(1, 1).expand(1 << 14, 1)
    a, b = one(x, key=KEY), linear(other(x, key=KEY), one.weight)
    mean, spread = (
        (x[:1] * one.weight.T).detach(),
        (x[0].abs() * one.weight.abs().flatten() * math.sqrt(3 / 7)).detach(),
    )
    for out in (a, b):  # five standard errors: one false alarm in 3e5 numbers
        assert ((out.mean(0) - mean).abs() < 5 * spread / 2**7).all()
        assert ((out.std(0) / spread - 1).abs() < 5 / math.sqrt(2 * 2**14)).all()
    assert torch.corrcoef(b.T).abs().min() > 0.999  # weights that read one unit share its noise
    assert torch.corrcoef(a.T)[0, 1].abs() < 5 / 2**7  # and here they do not


@pytest.mark.parametrize(
    ("layer", "noises"),
    [(VariationalDropout(6, 0.2), 6), (VariationalDropout(6, 0.2, per="layer"), 6),
     (VariationalLinear(6, 3, p=0.2), 18), (VariationalLinear(6, 3, p=0.2, per="unit"), 18),
     (VariationalLinear(6, 3, p=0.2, per="layer"), 18)],
    ids=["units", "unit shared", "weights", "weights by unit", "weights shared"],
)  # fmt: skip
def test_the_divergence_is_summed_over_every_noise(layer: Any, noises: int) -> None:
    one = log_uniform_kl(torch.tensor(math.log(0.25)), "polynomial")
    torch.testing.assert_close(layer.kl(), noises * one)
    assert layer.kl().item() == pytest.approx(noises * exact_kl(math.log(0.25)), abs=0.041 * noises)
    (gradient,) = torch.autograd.grad(layer.kl(), layer.log_alpha)
    share = noises // layer.log_alpha.numel()
    alpha = 0.25
    slope = -(0.5 + 1.16145124 * alpha - 2 * 1.50204118 * alpha**2 + 3 * 0.58629921 * alpha**3)
    torch.testing.assert_close(gradient, torch.full_like(gradient, share * slope))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
@pytest.mark.parametrize("per", ["weight", "unit", "layer"])
def test_a_layer_without_weights_has_no_divergence(per: str) -> None:
    for sizes in ((0, 3), (3, 0)):
        layer = VariationalLinear(*sizes, per=per)
        assert layer.kl().item() == 0
        assert layer(torch.ones(2, sizes[0])).shape == (2, sizes[1])


def test_what_is_learned_has_the_type_and_device_asked_for() -> None:
    for build in (partial(VariationalDropout, 3), partial(VariationalLinear, 3, 2)):
        layer = build(device="meta", dtype=torch.float64)
        assert (layer.log_alpha.dtype, layer.log_alpha.device.type) == (torch.float64, "meta")


def test_above_one_the_divergence_is_that_which_holds_there() -> None:
    layer = VariationalDropout(4, 0.9, max_alpha=1e6)
    torch.testing.assert_close(layer.kl(), 4 * log_uniform_kl(torch.tensor(math.log(9.0)), "sigmoid"))


@pytest.mark.parametrize("build", [partial(VariationalDropout, 3), partial(VariationalLinear, 3, 2)], ids=["B", "A"])
def test_alpha_is_capped_at_one_and_not_its_logarithm(build: Any) -> None:
    layer, x = build().double(), drawn(5, 3)
    at_cap = layer(x, key=KEY)
    with torch.no_grad():
        layer.log_alpha.fill_(0.7)
    assert torch.equal(layer(x, key=KEY), at_cap)
    assert layer.p.max() == 0.5
    layer.kl().backward()  # asks for more noise than there may be
    assert (layer.log_alpha.grad == 0).all()
    layer.log_alpha.grad = None
    layer(x, key=KEY).square().sum().backward()  # and the data for less
    assert (layer.log_alpha.grad >= 0).all()
    assert (layer.log_alpha.grad > 0).any()


def test_an_optimiser_comes_back_from_beyond_the_cap() -> None:
    layer = VariationalDropout(1)
    with torch.no_grad():
        layer.log_alpha.fill_(0.5)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    for step in range(40):
        optimiser.zero_grad()
        (layer(torch.ones(64, 1), key=step) - 1).square().mean().backward()
        optimiser.step()
    assert layer.p.item() < 0.4


@pytest.mark.parametrize("build", [partial(VariationalDropout, 3), partial(VariationalLinear, 3, 2)], ids=["B", "A"])
def test_a_start_beyond_the_cap_is_refused(build: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`p` must be at most 0\.5, where alpha is 1, got 0\.6 \(float\)\. Start"):
        build(p=0.6)
    assert build(p=0.6, max_alpha=2.0).p.mean() > 0.59
    with pytest.raises(ArgumentError, match=r"`p` must be at most 0\.2, where alpha is 0\.25"):
        build(p=0.5, max_alpha=0.25)


def test_it_is_pytorchs_linear_layer_with_one_parameter_more() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 3)
    torch.manual_seed(0)
    layer = VariationalLinear(6, 3)
    assert isinstance(layer, torch.nn.Linear)
    assert torch.equal(layer.weight, plain.weight)
    assert set(layer.state_dict()) - set(plain.state_dict()) == {"log_alpha"}
    with torch.no_grad():
        layer.log_alpha.fill_(-5)
    layer.reset_parameters()
    assert (layer.log_alpha == 0).all()


def test_it_compiles_for_sizes_that_change() -> None:
    layer = VariationalDropout(6, 0.3)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for rows in (3, 5, 1):
        x = torch.ones(rows, 6)
        torch.testing.assert_close(compiled(x, key=torch.tensor(3)), layer(x, key=3))
