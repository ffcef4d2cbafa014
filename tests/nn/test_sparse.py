"""Sparse variational layers: additive noise, weights left out in evaluation, PyTorch's layers otherwise."""

import copy
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from dropkit import random
from dropkit.functional import log_uniform_kl
from dropkit.nn import SparseVariationalConv2d, SparseVariationalLinear, WeightDrop

KEY = 0x720F_0000_1234_5678


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def layers() -> list[Any]:
    torch.manual_seed(0)
    return [SparseVariationalLinear(6, 4).double(), SparseVariationalConv2d(2, 4, 3, padding=1).double()]


@pytest.mark.parametrize("log_sigma2", [-10.0, -2.0])
def test_outputs_are_drawn_from_the_sum_of_independent_weights(log_sigma2: float) -> None:
    layer, x = SparseVariationalLinear(6, 4, log_sigma2=log_sigma2).double(), drawn(5, 6)
    spread = linear(x * x, torch.full((4, 6), math.exp(log_sigma2), dtype=x.dtype)).sqrt()
    want = linear(x, layer.weight, layer.bias) + spread * torch.from_numpy(random.normal(KEY, (5, 4)))
    torch.testing.assert_close(layer(x, key=KEY), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1, "bias": False}, {"stride": 2, "padding": "valid"},
     {"groups": 2, "dilation": 2, "padding": "same"},
     {"padding": 1, "padding_mode": "circular"}, {"padding": (1, 0), "padding_mode": "reflect"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("shape", [(2, 4, 6, 7), (4, 6, 7)])
def test_a_convolution_pads_its_variance_as_its_mean(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    layer, x = SparseVariationalConv2d(4, 6, 3, log_sigma2=-3.0, **options).double(), drawn(*shape)
    plain = torch.nn.Conv2d(4, 6, 3, **options).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    mean = plain(x)
    plain.weight.data.fill_(math.exp(-3.0))
    plain.bias = None
    spread = plain(x * x).sqrt()
    noise = torch.from_numpy(random.normal(KEY, tuple(mean.shape)))
    torch.testing.assert_close(layer(x, key=KEY), mean + spread * noise, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_the_mean_has_no_noise_factor() -> None:
    layer, x = SparseVariationalLinear(3, 2, False, log_sigma2=0.0).double(), drawn(4, 3)
    layer(x, key=KEY).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, 3))


@pytest.mark.parametrize("layer", layers(), ids=["linear", "conv2d"])
def test_evaluation_leaves_out_the_noisiest_weights(layer: Any) -> None:
    x = drawn(3, 6) if isinstance(layer, torch.nn.Linear) else drawn(3, 2, 5, 5)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.log_sigma2.fill_(math.log(0.25) + 2.999)
        layer.log_sigma2.view(-1)[::3] = math.log(0.25) + 3.001
    noisy = torch.zeros_like(layer.weight, dtype=torch.bool)
    noisy.view(-1)[::3] = True
    assert torch.equal(layer.pruned_weight == 0, noisy)
    assert layer.sparsity == pytest.approx(noisy.double().mean().item())
    operation = linear if isinstance(layer, torch.nn.Linear) else lambda *v: conv2d(*v, padding=1)
    want = operation(x, torch.where(noisy, 0.0, layer.weight), layer.bias)
    torch.testing.assert_close(layer.eval()(x), want)
    spread = operation(x * x, layer.log_sigma2.exp(), None).sqrt()
    noise = torch.from_numpy(random.normal(KEY, tuple(want.shape)))
    whole = operation(x, layer.weight, layer.bias) + spread * noise
    torch.testing.assert_close(layer.train()(x, key=KEY), whole)  # in training nothing is left out
    layer.threshold = 4.0
    assert layer.sparsity == 0


def test_a_weight_of_zero_is_noise_and_has_finite_gradients() -> None:
    layer = SparseVariationalLinear(3, 2)
    with torch.no_grad():
        layer.weight.zero_()
    assert layer.sparsity == 1
    layer.kl().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.log_sigma2.grad.isfinite().all()


@pytest.mark.parametrize("layer", layers(), ids=["linear", "conv2d"])
def test_the_divergence_is_summed_over_all_weights(layer: Any) -> None:
    log_alpha = layer.log_sigma2 - layer.weight.square().log()
    torch.testing.assert_close(layer.kl(), log_uniform_kl(log_alpha).sum(), rtol=1e-4, atol=0)
    gradients = torch.autograd.grad(layer.kl(), (layer.weight, layer.log_sigma2))
    assert (gradients[0] * layer.weight > 0).all()  # it draws means to 0
    assert (gradients[1] < 0).all()  # and asks for noise


class Doubled(torch.nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


@pytest.mark.parametrize("layer", layers(), ids=["linear", "conv2d"])
def test_what_others_put_in_the_place_of_the_bias_is_used(layer: Any) -> None:
    x = drawn(3, 6) if isinstance(layer, torch.nn.Linear) else drawn(3, 2, 5, 5)
    layer = layer.eval()
    whole, bias = layer(x), layer.bias.view(-1, *(1,) * (x.dim() - 2))
    dropped = WeightDrop(torch.nn.Sequential(copy.deepcopy(layer)), 1.0, "0.bias")
    dropped.switch = "on"
    torch.testing.assert_close(dropped(x), whole - bias)
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    torch.testing.assert_close(layer(x), whole + bias)


@pytest.mark.parametrize("ours", [SparseVariationalLinear, SparseVariationalConv2d])
def test_it_is_pytorchs_layer_with_one_parameter_more(ours: Any) -> None:
    theirs = ours.__mro__[ours.__mro__.index(torch.nn.Module) - (1 if ours is SparseVariationalLinear else 2)]
    assert theirs in {torch.nn.Linear, torch.nn.Conv2d}
    mine, plain = (dict(inspect.signature(each).parameters) for each in (ours, theirs))
    positional = [name for name, value in mine.items() if value.kind is not value.KEYWORD_ONLY]
    assert positional == list(plain)
    assert all(mine[name].default == plain[name].default for name in plain)
    arguments = (6, 4) if theirs is torch.nn.Linear else (2, 4, 3)
    torch.manual_seed(0)
    other = theirs(*arguments)
    torch.manual_seed(0)
    layer = ours(*arguments)
    assert isinstance(layer, theirs)
    assert torch.equal(layer.weight, other.weight)
    assert set(layer.state_dict()) - set(other.state_dict()) == {"log_sigma2"}
    missing, unexpected = layer.load_state_dict(other.state_dict(), strict=False)
    assert (missing, unexpected) == (["log_sigma2"], [])
    assert repr(layer) == repr(other).replace(theirs.__name__, ours.__name__)[:-1] + ", threshold=3.0)"
    with torch.no_grad():
        layer.log_sigma2.fill_(3)
    layer.reset_parameters()
    assert (layer.log_sigma2 == -10).all()


def test_it_prunes_what_carries_nothing_and_keeps_what_does() -> None:
    torch.manual_seed(0)
    layer = SparseVariationalLinear(4, 1, log_sigma2=-6.0).double()
    x = torch.randn(256, 4, dtype=torch.float64)
    y = 2 * x[:, :1] - x[:, 1:2]
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.99)
    for _ in range(400):
        optimiser.zero_grad()
        (50 * (layer(x) - y).square().mean() + layer.kl() / 256).backward()
        optimiser.step()
        schedule.step()
    assert (layer.pruned_weight == 0).tolist() == [[False, False, True, True]]
    torch.testing.assert_close(layer.weight[0, :2], torch.tensor([2.0, -1.0]).double(), rtol=0.05, atol=0)
