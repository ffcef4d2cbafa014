"""Relaxed dropout: the mask it relaxes, the law of the relaxed mask, and the gradient of its rate."""

import math
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor

from dropkit import random
from dropkit.functional import concrete_dropout, dropout
from dropkit.functional.concrete import relaxed_factor
from tests.helpers.statistics import check_count

KEY = 0x5EED_0000_1234_5678
MEANS = {
    (0.1, 0.05): 0.949293, (0.1, 0.1): 0.898817, (0.1, 0.2): 0.798437, (0.1, 0.3): 0.698642,
    (2 / 3, 0.1): 0.854714, (2 / 3, 0.2): 0.751151, (2 / 3, 0.3): 0.661860, (0.1, 0.5): 0.5, (2 / 3, 0.5): 0.5,
}  # fmt: skip


def logit(p: float) -> Tensor:
    return torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)


def moment(p: float, temperature: float, power: int) -> float:
    """Integrate over the uniform the mask is made of."""

    def integrand(u: float) -> float:
        factor = relaxed_factor(logit(p), torch.tensor(u, dtype=torch.float64), temperature)
        return (factor.item() * (1 - p)) ** power

    return integrate.quad(integrand, 0, 1, points=[p], epsabs=1e-9, limit=200)[0]


@pytest.mark.parametrize(("case", "mean"), MEANS.items())
def test_the_mean_of_the_relaxed_mask(case: tuple[float, float], mean: float) -> None:
    temperature, p = case
    assert moment(p, temperature, 1) == pytest.approx(mean, abs=1e-6)


def test_the_variance_of_the_relaxed_mask() -> None:
    assert moment(0.1, 0.1, 2) - moment(0.1, 0.1, 1) ** 2 == pytest.approx(0.081878, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 2 / 3, 5.0])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.75])
def test_it_relaxes_the_mask_of_dropout(p: float, temperature: float) -> None:
    x = torch.ones(200, 50, dtype=torch.float64)
    relaxed = concrete_dropout(x, logit(p), temperature, key=KEY) * (1 - p)
    assert (relaxed >= 0).all()
    assert (relaxed <= 1 + 1e-15).all()
    above = relaxed > 0.5
    assert torch.equal(above, torch.from_numpy(random.keep_mask(KEY, (200, 50), p)))
    check_count(int(above.sum()), above.numel(), 1 - p)


def test_it_becomes_dropout_as_the_temperature_falls() -> None:
    x = torch.randn(50, 50, dtype=torch.float64)
    found = concrete_dropout(x, logit(0.25), 1e-6, key=KEY)
    assert (found - dropout(x, 0.25, key=KEY)).abs().gt(1e-9).sum() <= 1  # but for a draw at the very threshold


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_by_hand_from_the_uniforms(p: float) -> None:
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    u = torch.from_numpy(random.uniform(KEY, (4, 5, 3)))
    q, t = 1 - p, 2 / 3
    # The paper's formula draws with 1 - u in the place of u, which has the same law.
    z = 1 - torch.sigmoid((math.log(p) - math.log(q) + torch.log(1 - u) - torch.log(u)) / t)
    torch.testing.assert_close(concrete_dropout(x, logit(p), t, key=KEY), x * z / q, rtol=1e-12, atol=1e-14)


def test_shared_axes_have_one_draw() -> None:
    x = torch.ones(4, 5, 3, 2, dtype=torch.float64)
    out = concrete_dropout(x, logit(0.3), 2 / 3, broadcast_dims=(2, 3), key=KEY)
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    assert len(out[:, :, 0, 0].unique()) == 20
    assert torch.equal(
        out[..., 0, 0] > 0.5 / 0.7,
        torch.from_numpy(random.keep_mask(KEY, (4, 5, 3, 2), 0.3, broadcast_dims=(2, 3)))[..., 0, 0],
    )


def test_derivatives_with_respect_to_input_and_rate() -> None:
    x, rate = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), logit(0.3).requires_grad_()
    function = lambda x, rate: concrete_dropout(x, rate, 2 / 3, key=KEY)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, rate))
    assert torch.autograd.gradgradcheck(function, (x, rate))
    (slope,) = torch.autograd.grad(concrete_dropout(x.detach(), rate, key=KEY).square().sum(), rate)
    assert slope != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_wide_and_rounded_once(dtype: torch.dtype) -> None:
    x = torch.randn(64, 64).to(dtype)
    wide = concrete_dropout(x.float(), logit(0.1).float(), key=KEY)
    assert torch.equal(concrete_dropout(x, logit(0.1).float(), key=KEY), wide.to(dtype))


@pytest.mark.parametrize("p", [1e-6, 1 - 1e-6])
def test_extreme_rates_stay_finite(p: float) -> None:
    rate = logit(p).float().requires_grad_()
    out = concrete_dropout(torch.ones(1000), rate, key=KEY)
    (slope,) = torch.autograd.grad(out.sum(), rate)
    assert out.isfinite().all()
    assert slope.isfinite()


@pytest.mark.parametrize("rate", [-200.0, -100.0, 100.0, 200.0])
def test_rates_that_round_to_zero_and_one_keep_and_drop_everything(rate: float) -> None:
    x, learned = torch.randn(1000, requires_grad=True), torch.tensor(rate, requires_grad=True)
    out = concrete_dropout(x, learned, key=KEY)
    assert torch.equal(out, x if rate < 0 else torch.zeros(1000))
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(out.sum(), (x, learned)))


def test_evaluation_is_the_input_itself() -> None:
    x, state = torch.randn(3, 4), torch.get_rng_state()
    assert concrete_dropout(x, torch.tensor(0.0), training=False) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_slices_with_keys_of_their_own_and_vmap() -> None:
    x, keys = torch.randn(3, 4, 5, dtype=torch.float64), torch.tensor([KEY, 5, KEY])
    out = concrete_dropout(x, logit(0.3), key=keys)
    for i, key in enumerate(keys.tolist()):
        assert torch.equal(out[i], concrete_dropout(x[i], logit(0.3), key=key))
    batched = torch.func.vmap(lambda v: concrete_dropout(v, logit(0.3), key=KEY))(x)
    torch.testing.assert_close(batched[1], concrete_dropout(x[1], logit(0.3), key=KEY))


def test_a_function_mode_sees_it_even_in_evaluation() -> None:
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **kwargs or {})

    with Watch():
        concrete_dropout(torch.ones(2), torch.tensor(0.0), training=False)
    assert concrete_dropout in seen
