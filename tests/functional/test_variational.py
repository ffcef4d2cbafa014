"""Learned Gaussian noise: the prior's divergence, noise on activations, and local reparameterisation."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from dropkit import random
from dropkit.errors import ArgumentTypeError
from dropkit.functional import local_reparameterization, log_uniform_kl, variational_dropout
from dropkit.functional.variational import bounded
from tests.helpers.divergence import exact_kl, integrated_kl
from tests.helpers.statistics import check_normal

KEY = 0x5EED_0000_1234_5678
TABLE = {-8: 4.63501, -4: 2.62575, -2: 1.54415, -1: 0.914531, 0: 0.426686, 1: 0.173194, 2: 0.066168, 3: 0.024688,
         4: 0.009130}  # fmt: skip


def normals(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.normal(KEY, shape))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("log_alpha", "value"), TABLE.items())
def test_the_oracle_is_the_divergence(log_alpha: float, value: float) -> None:
    assert exact_kl(log_alpha) == pytest.approx(value, rel=2e-5, abs=2e-6)
    assert integrated_kl(log_alpha) == pytest.approx(exact_kl(log_alpha), abs=1e-7)


def errors(approximation: str, low: float, high: float) -> np.ndarray:
    grid = np.linspace(low, high, 401)
    found = log_uniform_kl(torch.from_numpy(grid), approximation).numpy()
    return found - np.array([exact_kl(each) for each in grid])


def test_the_sigmoid_is_near_the_divergence_everywhere() -> None:
    found = errors("sigmoid", -8, 8)
    assert np.abs(found).max() < 0.0095
    assert np.abs(found).max() > 0.009  # the bound is sharp: at about -3.5
    assert np.abs(errors("sigmoid", 0, 8)).max() < 0.0055
    assert log_uniform_kl(torch.tensor(0.0, dtype=torch.float64)).item() == pytest.approx(0.431239, abs=1e-6)


def test_the_polynomial_is_near_the_divergence_up_to_one() -> None:
    found = errors("polynomial", math.log(0.0025), 0)
    assert 0.040 < np.abs(found).max() < 0.041
    assert found[-1] == pytest.approx(0.3895 - 0.4267, abs=2e-4)
    above = log_uniform_kl(torch.tensor([0.0, 0.5, 3.0]), "polynomial")
    assert torch.equal(above, above[:1].expand(3))


@pytest.mark.parametrize("approximation", ["sigmoid", "polynomial"])
def test_noise_lowers_the_divergence(approximation: str) -> None:
    log_alpha = torch.linspace(-20, 0, 200, dtype=torch.float64, requires_grad=True)
    value = log_uniform_kl(log_alpha, approximation)
    (slope,) = torch.autograd.grad(value.sum(), log_alpha)
    assert (slope < 0).all()
    torch.testing.assert_close(slope[0].item(), -0.5, rtol=1e-6, atol=0)  # without noise, that of -0.5 ln(alpha)
    assert (value > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("approximation", ["sigmoid", "polynomial"])
def test_the_divergence_is_computed_wide_and_for_every_alpha(dtype: torch.dtype, approximation: str) -> None:
    found = log_uniform_kl(torch.tensor([-1e4, -10.0, 100.0, 1e4], dtype=dtype), approximation)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own
def test_a_bound_lets_gradients_lead_back() -> None:
    value = torch.tensor([-1.0, 0.5, 2.0, 2.0], requires_grad=True)
    out = bounded(value, 0.5)
    assert torch.equal(out, value.clamp(max=0.5))
    (grad,) = torch.autograd.grad(out, value, torch.tensor([-3.0, -3.0, -3.0, 3.0]))
    assert torch.equal(grad, torch.tensor([-3.0, -3.0, 0.0, 3.0]))
    inside = drawn(5).clamp(max=0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: bounded(v, 1.0), inside)
    assert torch.autograd.gradgradcheck(lambda v: bounded(v, 1.0), inside)
    direction = torch.tensor([1.0, 2.0, 3.0, 4.0])
    _, slope = torch.func.jvp(lambda v: bounded(v, 0.5), (value.detach(),), (direction,))
    assert torch.equal(slope, torch.tensor([1.0, 2.0, 0.0, 0.0]))
    batched = torch.func.vmap(lambda v: bounded(v, 0.5))(value)
    assert torch.equal(batched, out)


@pytest.mark.parametrize("shape", [(), (6,), (3, 1), (3, 6)])
def test_noise_on_activations_has_mean_one_and_variance_alpha(shape: tuple[int, ...]) -> None:
    x, log_alpha = drawn(3, 6), drawn(*shape) - 1
    out = variational_dropout(x, log_alpha, key=KEY)
    torch.testing.assert_close(out, x * (1 + log_alpha.exp().sqrt() * normals((3, 6))), rtol=1e-12, atol=1e-14)


def test_noise_on_activations_is_normal() -> None:
    alpha = 0.3
    out = variational_dropout(torch.full((1 << 16,), 2.0, dtype=torch.float64), torch.tensor(math.log(alpha)), key=KEY)
    check_normal(((out / 2 - 1) / math.sqrt(alpha)).numpy())


def moments_over_all_signs(
    operation: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, weight: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of an output whose weights are, one by one, a deviation above or below their mean."""
    signs = itertools.product((-1.0, 1.0), repeat=weight.numel())
    outputs = torch.stack([
        operation(x, weight + torch.tensor(sign, dtype=weight.dtype).view_as(weight) * variance.sqrt(), None)
        for sign in signs
    ])  # fmt: skip
    return outputs.mean(0), outputs.var(0, correction=0)


@pytest.mark.parametrize(
    ("operation", "x", "weight"),
    [(linear, drawn(4, 3), drawn(3, 3)), (partial(conv2d, padding=1), drawn(2, 2, 3, 3), drawn(1, 2, 2, 2)),
     (partial(conv2d, stride=2), drawn(2, 1, 4, 4), drawn(2, 1, 2, 2))],
    ids=["linear", "conv2d", "strided"],
)  # fmt: skip
def test_outputs_have_the_moments_of_sampled_weights(operation: Any, x: Tensor, weight: Tensor) -> None:
    variance = drawn(*weight.shape).square()
    mean, spread = moments_over_all_signs(operation, x, weight, variance)
    out = local_reparameterization(operation, x, weight, variance, key=KEY)
    torch.testing.assert_close(out, mean + spread.sqrt() * normals(tuple(mean.shape)), rtol=1e-12, atol=1e-12)
    assert torch.equal(
        local_reparameterization(operation, x, weight, variance, None, False), operation(x, weight, None)
    )


def test_equal_rows_have_independent_noise() -> None:
    x, weight = torch.ones(1 << 12, 3, dtype=torch.float64), drawn(16, 3)
    variance, bias = drawn(16, 3).square(), drawn(16)
    out = local_reparameterization(linear, x, weight, variance, bias, key=KEY)
    z = (out - linear(x, weight, bias)) / variance.sum(1).sqrt()
    check_normal(z.numpy())
    check_normal(((z[0::2] - z[1::2]) / math.sqrt(2)).numpy())  # of two rows
    check_normal(((z[:, 0::2] + z[:, 1::2]) / math.sqrt(2)).numpy())  # and of two outputs


def test_an_input_of_zeros_has_no_noise_and_finite_gradients() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    weight, log_variance = drawn(4, 3).requires_grad_(), drawn(4, 3).requires_grad_()
    out = local_reparameterization(linear, x, weight, log_variance.exp(), key=KEY)
    assert torch.equal(out, torch.zeros(2, 4).double())
    grads = torch.autograd.grad(out.sum(), (x, weight, log_variance))
    assert all(grad.isfinite().all() for grad in grads)
    assert torch.equal(grads[0], weight.sum(0).expand(2, 3))


@pytest.mark.parametrize("bad", [math.nan, -0.5])
def test_what_is_no_variance_gives_nan(bad: float) -> None:
    x, weight, variance = drawn(2, 3), drawn(4, 3), drawn(4, 3).square()
    variance[1, 2] = bad  # small beside what else the output reads
    x[0] = torch.tensor([10.0, 10.0, 0.1])
    out = local_reparameterization(linear, x, weight, variance, key=KEY)
    assert out.isnan().tolist() == [[bad < 0, True, bad < 0, bad < 0]] * 2
    noise = variational_dropout(x, torch.tensor([0.0, math.nan, 0.0]), key=KEY)
    assert noise.isnan().tolist() == [[False, True, False]] * 2


def test_small_variances_survive_half_types_and_autocast() -> None:
    x, weight = torch.full((64, 8), 300.0), torch.zeros(16, 8)
    variance = torch.full((16, 8), 1e-9)  # 0 in float16, and the square of the input infinity
    for dtype in (torch.float16, torch.bfloat16):
        out = local_reparameterization(linear, x.to(dtype), weight.to(dtype), variance, key=KEY)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float().std(), torch.tensor(300 * math.sqrt(8e-9)), rtol=0.1, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        out = local_reparameterization(linear, x, weight, variance, key=KEY)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float().std(), torch.tensor(300 * math.sqrt(8e-9)), rtol=0.1, atol=0)


def test_derivatives() -> None:
    x, weight, log_variance = drawn(3, 4), drawn(2, 4), drawn(2, 4) - 2

    def apply(x: Tensor, weight: Tensor, log_variance: Tensor) -> Tensor:
        return local_reparameterization(linear, x, weight, log_variance.exp(), key=KEY)

    def noise(x: Tensor, log_alpha: Tensor) -> Tensor:
        return variational_dropout(x, log_alpha, key=KEY)

    for function, inputs in ((apply, (x, weight, log_variance)), (noise, (x, drawn(4)))):
        leaves = [each.clone().requires_grad_() for each in inputs]
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


def test_slices_with_keys_of_their_own() -> None:
    x, weight, variance = drawn(3, 2, 4), drawn(5, 4), drawn(5, 4).square()
    keys = torch.tensor([KEY, 5, KEY])
    out = local_reparameterization(linear, x, weight, variance, key=keys)
    noise = variational_dropout(x, torch.tensor(0.0), key=keys)
    for i, key in enumerate(keys.tolist()):
        torch.testing.assert_close(out[i], local_reparameterization(linear, x[i], weight, variance, key=key))
        torch.testing.assert_close(noise[i], variational_dropout(x[i], torch.tensor(0.0), key=key))


def test_vmap_with_a_key_has_one_noise_for_all() -> None:
    x, weight, variance = drawn(3, 2, 4), drawn(5, 4), drawn(5, 4).square()
    for function in (
        lambda v: local_reparameterization(linear, v, weight, variance, key=KEY),
        lambda v: variational_dropout(v, torch.tensor(0.0), key=KEY),
    ):
        torch.testing.assert_close(torch.func.vmap(function)(x), torch.stack([function(each) for each in x]))


def test_streams_differ_and_a_generator_reproduces() -> None:
    x, log_alpha = drawn(8), torch.tensor(0.0)
    assert not torch.equal(*(variational_dropout(x, log_alpha, key=KEY, stream=stream) for stream in (0, 1)))
    draws = [variational_dropout(x, log_alpha, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_a_function_mode_sees_them_even_in_evaluation() -> None:
    seen: list[Any] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **kwargs or {})

    x, weight = drawn(2, 3), drawn(4, 3)
    with Watch():
        variational_dropout(x, torch.tensor(0.0), False)
        local_reparameterization(linear, x, weight, weight, None, False)
        log_uniform_kl(x)
    assert {variational_dropout, local_reparameterization, log_uniform_kl} <= set(seen)


def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(ArgumentTypeError, match="`input` must be a dense tensor, not a nested one"):
        variational_dropout(nested, torch.tensor(0.0))
