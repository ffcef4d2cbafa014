"""Gaussian dropout: the normals of its key, its moments, and gradients through the same noise."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode

from dropkit import random
from dropkit.functional import dropout, gaussian_dropout
from tests.helpers.contract import all_masks, chances, realised
from tests.helpers.statistics import FALSE_ALARM, check_normal

KEY = 0x9A55_0000_1234_5678
RATES = (1e-6, 0.1, 1 / 3, 0.5, 0.9)
X = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def deviation(p: float) -> float:
    return math.sqrt(realised(p) / (1 - realised(p)))


@pytest.mark.parametrize("p", RATES)
def test_the_noise_is_made_of_the_normals_of_the_key(p: float) -> None:
    out, noise = gaussian_dropout(X, p, key=KEY, return_noise=True)
    want = 1 + deviation(p) * random.normal(KEY, tuple(X.shape))
    np.testing.assert_allclose(noise, want, rtol=0, atol=1e-12 * max(deviation(p), 1))
    assert torch.equal(out, X * noise)
    streamed = gaussian_dropout(torch.ones(7, 9).double(), p, key=KEY, stream=5)
    want = 1 + deviation(p) * random.normal(KEY, (7, 9), stream=5)
    np.testing.assert_allclose(streamed, want, rtol=0, atol=1e-12 * max(deviation(p), 1))


@pytest.mark.parametrize("p", RATES)
def test_mean_and_variance_are_those_of_dropout(p: float) -> None:
    """Noise is put in at the nodes of a quadrature that is exact for moments of the normal law."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    x = torch.tensor([0.36, -0.13, 7.0], dtype=torch.float64)
    inputs = x.expand(5, 3).clone().requires_grad_()
    noise = (1 + deviation(p) * nodes).unsqueeze(1)
    out = gaussian_dropout(inputs, p, noise=noise)
    masks = all_masks(3)
    dropped, chance = dropout(x.expand(masks.shape), p, mask=masks), chances(masks, p)
    mean, variance = weights @ out.detach(), weights @ (out.detach() - x).square()
    torch.testing.assert_close(mean, chance @ dropped, rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, chance @ (dropped - x).square(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), inputs)
    assert torch.equal(gradient, noise.expand(5, 3))


def test_two_layers_multiply_one_plus_their_variances() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    rates = (0.2, 0.5)
    first, second = (1 + deviation(p) * nodes for p in rates)
    x = torch.full((5, 5), 3.0, dtype=torch.float64)
    out = gaussian_dropout(gaussian_dropout(x, noise=first.reshape(5, 1)), noise=second.reshape(1, 5))
    square = (weights.outer(weights) * out.square()).sum() / 9
    assert square.item() == pytest.approx(math.prod(1 + deviation(p) ** 2 for p in rates), rel=1e-12)


def test_the_gradient_goes_through_the_same_noise() -> None:
    x = X.clone().requires_grad_()
    upstream = torch.randn_like(X)
    for options in ({"key": KEY}, {"key": torch.arange(4)}, {}):
        out, noise = gaussian_dropout(x, 0.3, return_noise=True, **options)
        (gradient,) = torch.autograd.grad(out, x, upstream)
        assert torch.equal(gradient, upstream * noise)


def test_noise_that_is_put_in_has_a_gradient() -> None:
    x, noise = X.clone().requires_grad_(), torch.randn(4, 1, 5, dtype=torch.float64, requires_grad=True)
    out, same = gaussian_dropout(x, 0.3, noise=noise, return_noise=True)
    assert same is noise
    assert torch.equal(out, x * noise)
    gradients = torch.autograd.grad(out.sum(), (x, noise))
    torch.testing.assert_close(gradients[0], noise.expand(X.shape).detach())
    torch.testing.assert_close(gradients[1], X.sum(1, keepdim=True))


def test_evaluation_and_a_rate_of_zero_give_the_input() -> None:
    state = torch.get_rng_state()
    for options in ({"p": 0.5, "training": False}, {"p": 0.0}):
        assert gaussian_dropout(X, **options) is X
        out, noise = gaussian_dropout(X, return_noise=True, **options)
        assert out is X
        assert torch.equal(noise, torch.ones_like(X))
    assert torch.equal(torch.get_rng_state(), state)
    assert gaussian_dropout(X, 0.5, False, noise=torch.zeros_like(X)) is X
    assert torch.equal(gaussian_dropout(X, torch.tensor(0.0).double(), key=KEY), X)
    assert torch.equal(gaussian_dropout(X, 0.0, noise=torch.zeros_like(X)), 0 * X)


def test_rates_that_round_to_one_give_finite_noise() -> None:
    assert gaussian_dropout(X, math.nextafter(1.0, 0.0), key=KEY).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_multiplied_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = X.to(dtype).requires_grad_()
    out, noise = gaussian_dropout(x, 0.3, key=KEY, return_noise=True)
    assert noise.dtype == torch.float32
    assert out.dtype == dtype
    assert torch.equal(out, (x.float() * noise).to(dtype))
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(x))
    assert torch.equal(gradient, noise.to(dtype))
    want = 1 + deviation(0.3) * random.normal(KEY, tuple(X.shape), dtype="float32").astype(np.float64)
    np.testing.assert_allclose(noise, want, rtol=0, atol=6e-6)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_a_complex_number_is_one_unit(dtype: torch.dtype) -> None:
    x = torch.complex(X.float(), -X.float().flip(0)).to(dtype)
    x.view(-1)[0] = complex(math.inf, 1.0)
    out, noise = gaussian_dropout(x, 0.3, key=KEY, return_noise=True)
    real = torch.view_as_real(x).to(noise.dtype) * noise.unsqueeze(-1)
    assert torch.equal(torch.view_as_real(out), real.to(torch.view_as_real(x).dtype))
    if dtype == torch.complex32:
        return
    x = torch.complex(X, X.flip(1)).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.view_as_real(gaussian_dropout(x, 0.3, key=KEY)).sum(), x)
    torch.testing.assert_close(torch.view_as_real(gradient), noise.unsqueeze(-1).expand(*X.shape, 2))
    conjugated = gaussian_dropout(x.conj(), 0.3, key=KEY)
    torch.testing.assert_close(conjugated, gaussian_dropout(x, 0.3, key=KEY).conj())


def test_rates_and_keys_of_slices() -> None:
    rates, keys = torch.tensor([0.0, 0.2, 0.7, 0.99]).double(), torch.arange(4) + 5
    out, noise = gaussian_dropout(X, rates, key=keys, return_noise=True)
    assert torch.equal(out, X * noise)
    for i, p in enumerate(rates.tolist()):
        assert torch.equal(out[i : i + 1], gaussian_dropout(X[i : i + 1], p, key=keys[i : i + 1]))
        torch.testing.assert_close(out[i], gaussian_dropout(X[i], p, key=keys[i]))
    shared = gaussian_dropout(X, rates, key=KEY)
    for i, p in enumerate(rates.tolist()):
        assert torch.equal(shared[i], gaussian_dropout(X, p, key=KEY)[i])


def test_strides_change_nothing() -> None:
    x = torch.randn(4, 3, 5, 2)
    want = gaussian_dropout(x, 0.3, key=KEY)
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([x, x], -1)[..., 1],
    ):
        out = gaussian_dropout(other, 0.3, key=KEY)
        assert torch.equal(out, want)
        if other.untyped_storage().nbytes() == x.numel() * x.element_size():
            assert out.stride() == other.stride()
            assert gaussian_dropout(other, noise=torch.randn(4, 3, 1, 1)).stride() == other.stride()
    expanded = x[:1].expand(x.shape)
    assert torch.equal(gaussian_dropout(expanded, key=KEY), gaussian_dropout(expanded.contiguous(), key=KEY))


def test_nothing_but_the_address_and_a_deviation_is_kept() -> None:
    saved: list[int] = []
    x = torch.ones(100, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        gaussian_dropout(x, 0.5)
    assert sum(saved) <= 3 * 8


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_transforms_equal_loops() -> None:
    keys = torch.arange(4) + 9
    found = vmap(lambda x, key: gaussian_dropout(x, 0.4, key=key))(X, keys)
    gradients = vmap(grad(lambda x, key: gaussian_dropout(x, 0.4, key=key).square().sum()))(X, keys)
    noises = torch.randn(4, 3, 1, dtype=torch.float64)
    multiplied = vmap(lambda noise: gaussian_dropout(X[0], 0.4, noise=noise))(noises)
    for i in range(4):
        one = X[i].clone().requires_grad_()
        want = gaussian_dropout(one, 0.4, key=keys[i])
        torch.testing.assert_close(found[i], want)
        torch.testing.assert_close(gradients[i], torch.autograd.grad(want.square().sum(), one)[0])
        torch.testing.assert_close(multiplied[i], X[0] * noises[i])
    out, change = jvp(lambda v: gaussian_dropout(v, 0.4, key=KEY), (X,), (X.flip(0),))
    torch.testing.assert_close(out, gaussian_dropout(X, 0.4, key=KEY))
    torch.testing.assert_close(change, gaussian_dropout(X.flip(0), 0.4, key=KEY))


@pytest.mark.slow
def test_compiled_code_equals_eager_code() -> None:
    def run(x: Tensor, p: Tensor, key: Tensor) -> Tensor:
        return gaussian_dropout(x, p, key=key)

    def transformed(x: Tensor, p: Tensor, key: Tensor) -> Tensor:
        return vmap(grad(lambda v: gaussian_dropout(v, p, key=key).square().sum()))(x)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    batched = torch.compile(transformed, backend="aot_eager", fullgraph=True)
    for p, key in ((0.2, 7), (0.6, -9)):
        arguments = X.clone().requires_grad_(), torch.tensor(p).double(), torch.tensor(key)
        want, found = run(*arguments), compiled(*arguments)
        assert torch.equal(found, want)
        gradients = [torch.autograd.grad(out.square().sum(), arguments[0])[0] for out in (found, want)]
        assert torch.equal(*gradients)
        torch.testing.assert_close(batched(*arguments), transformed(*arguments))
    torch._dynamo.reset()


def test_modes_see_the_call() -> None:
    calls: list[Any] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    want = gaussian_dropout(X, 0.4, key=3)
    with Recorder():
        assert torch.equal(gaussian_dropout(X, 0.4, key=3), want)
    assert calls[0] is gaussian_dropout


def test_drawn_noise_is_normal() -> None:
    """False-alarm rate 1e-6 for each of the mean, the variance and the law."""
    torch.manual_seed(11)
    noise = gaussian_dropout(torch.ones(1_000_000), 0.2).double().numpy()
    z = (noise - 1) / deviation(0.2)
    assert abs(z.mean()) < stats.norm.isf(FALSE_ALARM / 2) / 1000
    check_normal(z)
