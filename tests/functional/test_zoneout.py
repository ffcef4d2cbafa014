"""Zoneout as a function: always one of two states, in expectation a mixture of them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dropkit import random
from dropkit.errors import ArgumentTypeError
from dropkit.functional import zoneout
from tests.helpers.contract import RATES, all_masks, chances, realised
from tests.helpers.statistics import check_count

KEY = 0x2013_0000_1234_5678
OLD = torch.tensor([0.36, -0.13, 0.42, 7.0, -1.5], dtype=torch.float64)
NEW = torch.tensor([-2.0, 0.25, 0.42, 1e-3, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("p", RATES)
def test_moments_over_all_masks(p: float) -> None:
    masks, r = all_masks(len(NEW)), realised(p)
    out = zoneout(NEW.expand(masks.shape), OLD.expand(masks.shape), p, mask=masks)
    assert torch.equal(out, torch.where(masks, NEW, OLD))
    mean = chances(masks, p) @ out
    torch.testing.assert_close(mean, r * OLD + (1 - r) * NEW, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(zoneout(NEW, OLD, p, training=False), mean, rtol=1e-12, atol=1e-15)
    variance = chances(masks, p) @ (out - mean).square()
    torch.testing.assert_close(variance, r * (1 - r) * (NEW - OLD).square(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("p", RATES)
def test_gradients_over_all_masks(p: float) -> None:
    masks, r = all_masks(len(NEW)), realised(p)
    new, old = (state.expand(masks.shape).clone().requires_grad_() for state in (NEW, OLD))
    gradients = torch.autograd.grad(zoneout(new, old, p, mask=masks).sum(), (new, old))
    assert torch.equal(gradients[0], masks.double())
    assert torch.equal(gradients[1], (~masks).double())
    new, old = NEW.clone().requires_grad_(), OLD.clone().requires_grad_()
    expected = torch.autograd.grad(zoneout(new, old, p, training=False).sum(), (new, old))
    for gradient, share in zip(expected, (1 - r, r), strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, share), rtol=1e-12, atol=0)


def test_the_rate_is_that_of_the_old_state() -> None:
    new, old = torch.ones(300, 400), torch.zeros(300, 400)
    out, mask = zoneout(new, old, 0.2, key=KEY, return_mask=True)
    assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, (300, 400), 0.2)))
    assert torch.equal(out, mask.float())
    check_count((out == 0).sum(), out.numel(), realised(0.2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_at_zero_and_one_it_is_one_state_even_beside_nan(training: bool, kind: Any) -> None:
    nan = torch.full_like(NEW, math.nan)
    rate = {0: 0.0, 1: 1.0} if kind is float else {p: torch.tensor(p, dtype=torch.float64) for p in (0, 1)}
    assert torch.equal(zoneout(NEW, nan, rate[0], training), NEW)
    assert torch.equal(zoneout(nan, OLD, rate[1], training), OLD)
    if kind is float:
        assert zoneout(NEW, nan, rate[0], training) is NEW
    keep = torch.ones(5, dtype=torch.bool)
    assert torch.equal(zoneout(nan, OLD, 1.0, mask=keep), OLD)


def test_what_is_not_chosen_has_no_say_whatever_it_is() -> None:
    new, old = (torch.full((6,), math.inf, requires_grad=True) for _ in range(2))
    mask = torch.tensor([True, False] * 3)
    with torch.no_grad():
        new[mask], old[~mask] = 1.0, 2.0
    out = zoneout(new, old, 0.5, mask=mask)
    assert torch.equal(out, torch.tensor([1.0, 2.0] * 3))
    for gradient, chosen in zip(torch.autograd.grad(out.sum(), (new, old)), (mask, ~mask), strict=True):
        assert torch.equal(gradient, chosen.float())
        assert not gradient.signbit().any()


def test_rates_and_keys_of_slices() -> None:
    new, old = torch.ones(3, 50), torch.zeros(3, 50)
    rates, keys = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.tensor([1, 2, 3])
    out = zoneout(new, old, rates, key=keys)
    for i in range(3):
        assert torch.equal(out[i], zoneout(new[i], old[i], float(rates[i]), key=int(keys[i])))
    torch.testing.assert_close(zoneout(new, old, rates, training=False)[:, 0], torch.tensor([1.0, 0.5, 0.0]))
    _, mask = zoneout(new, old, rates, training=False, return_mask=True)
    assert mask.shape == (3, 50)
    assert mask.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_expectation_of_half_types_is_rounded_once(dtype: torch.dtype) -> None:
    new, old = torch.randn(2, 1000).to(dtype)
    found = zoneout(new, old, 0.3, training=False)
    wide = zoneout(new.float(), old.float(), 0.3, training=False)
    assert torch.equal(found, wide.to(dtype))


def test_constant_state_and_plain_network() -> None:
    cell, h0 = torch.nn.GRUCell(3, 4), torch.randn(2, 4)
    for p, constant in ((1.0, True), (0.0, False)):
        h = plain = h0
        for step in range(5):
            x = torch.randn(2, 3)
            h, plain = zoneout(cell(x, h), h, p, key=step), cell(x, plain)
        assert torch.equal(h, h0 if constant else plain)


def test_a_mode_sees_it() -> None:
    seen: list[Any] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((func, args, kwargs))
            return func(*args, **(kwargs or {}))

    with Recorder():
        zoneout(NEW, OLD, 0.3, key=3)
    assert seen[0][0] is zoneout
    assert seen[0][1][0] is NEW
    assert seen[0][2]["key"] == 3


@pytest.mark.parametrize("training", [True, False])
def test_autocast_mixes_types(training: bool) -> None:
    layer, x, h = torch.nn.Linear(3, 4), torch.randn(2, 3), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        new = layer(x)
        found = zoneout(new, h, 0.3, training, key=KEY)
        with pytest.raises(ArgumentTypeError, match="`old` must be of the new state's type"):
            zoneout(new, h.double(), 0.3, training, key=KEY)
    assert new.dtype == torch.bfloat16
    assert torch.equal(found, zoneout(new.float(), h, 0.3, training, key=KEY))


def test_complex_states() -> None:
    new, old = torch.complex(NEW, OLD), torch.complex(OLD, NEW)
    mask = torch.tensor([True, False, False, True, True])
    assert torch.equal(zoneout(new, old, 0.4, mask=mask), torch.where(mask, new, old))
    r = realised(0.4)
    torch.testing.assert_close(zoneout(new, old, 0.4, training=False), r * old + (1 - r) * new, rtol=1e-12, atol=0)


def test_vmap_with_randomness_different_draws_for_each() -> None:
    new, old = torch.ones(3, 60), torch.zeros(3, 60)

    def call(new: Tensor, old: Tensor) -> Any:
        return zoneout(new, old, 0.5)

    different = torch.func.vmap(call, randomness="different")(new, old)
    same = torch.func.vmap(call, randomness="same")(new, old)
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])
