"""DropConnect's arithmetic: moments over all masks, addresses, gradients, and inference by Gaussian draws."""

import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.functional import connections, drop_connect, drop_connect_inference
from tests.helpers.contract import all_masks, chances, realised, scale

KEY = 0x0123_4567_89AB_CDEF
RATES = (0.1, 0.5, 0.75, 1 - 2.0**-32)


def tensors(outputs: int = 3, inputs: int = 4, examples: tuple[int, ...] = (5,)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((*examples, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return x, weight, bias


def by_hand(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, p: float) -> Tensor:
    """The paper's formula, example by example, survivors scaled."""
    inputs, examples = weight.size(1), x.reshape(-1, x.size(-1))
    masks = mask.expand(*x.shape[:-1], *mask.shape[-2:]).reshape(-1, *mask.shape[-2:])
    rows = []
    for example, keep in zip(examples, masks, strict=True):
        row = (weight * keep[:, :inputs]) @ example
        rows.append(row if bias is None else row + bias * keep[:, inputs])
    return torch.stack(rows).reshape(*x.shape[:-1], -1) * scale(p)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("p", RATES)
def test_mean_and_variance_over_all_masks(p: float, has_bias: bool) -> None:
    x, weight, bias = tensors(2, 3 if has_bias else 4, ())
    columns = 4
    masks = all_masks(2 * columns).reshape(-1, 2, columns)
    chance = chances(masks.flatten(1), p)
    found = drop_connect(x.expand(len(masks), -1), weight, bias if has_bias else None, p, mask=masks)
    mean = F.linear(x, weight, bias if has_bias else None)
    # Cancellation costs digits where the scale is large.
    loss = scale(p) * 1e-15
    torch.testing.assert_close(chance @ found, mean, rtol=1e-12, atol=loss)
    r = realised(p)
    squares = F.linear(x**2, weight**2, bias**2 if has_bias else None)
    torch.testing.assert_close(
        chance @ (found - mean) ** 2, r / (1 - r) * squares, rtol=1e-9 if p > 0.9 else 1e-12, atol=0
    )


def test_the_moments_are_those_of_the_original_form() -> None:
    x, weight, _ = tensors(2, 4, ())
    p = 0.3
    r = realised(p)
    original = weight / (1 - r)
    masks = all_masks(8).reshape(-1, 2, 4)
    chance = chances(masks.flatten(1), p)
    unscaled = (torch.where(masks, original, 0.0) @ x) * (1 - r) * scale(p)
    torch.testing.assert_close(drop_connect(x.expand(len(masks), -1), weight, None, p, mask=masks), unscaled)
    mean, variance = (1 - r) * original @ x, r * (1 - r) * original**2 @ x**2  # as the paper has them
    torch.testing.assert_close(chance @ unscaled, mean, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(chance @ (unscaled - mean) ** 2, variance, rtol=1e-12, atol=0)


def test_gradients_over_all_masks_have_the_plain_ones_as_their_mean() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors(2, 3, ()))
    masks = all_masks(8).reshape(-1, 2, 4)
    chance = chances(masks.flatten(1), 0.4)
    upstream = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = drop_connect(x.expand(len(masks), -1), weight, bias, 0.4, mask=masks)
    got = torch.autograd.grad(found, (x, weight, bias), chance[:, None] * upstream)
    want = torch.autograd.grad(F.linear(x, weight, bias), (x, weight, bias), upstream)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("examples", [(), (5,), (2, 3), (0,), (2, 0), (0, 2)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_the_formula_under_the_masks_of_the_definition(examples: tuple[int, ...], has_bias: bool) -> None:
    x, weight, bias = tensors(3, 4, examples)
    chosen = bias if has_bias else None
    found, mask = drop_connect(x, weight, chosen, 0.3, key=KEY, return_mask=True)
    whole = (*examples, 3, 4 + has_bias)
    assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, whole, 0.3)))
    assert found.shape == (*examples, 3)
    for got in (found, drop_connect(x, weight, chosen, 0.3, key=KEY), drop_connect(x, weight, chosen, 0.3, mask=mask)):
        if mask.numel():
            torch.testing.assert_close(got, by_hand(x, weight, chosen, mask, 0.3), rtol=1e-12, atol=1e-15)


def test_each_example_has_a_mask_of_its_own_whatever_the_batch() -> None:
    x, weight, bias = tensors(40, 30, (1,))
    found = drop_connect(x.expand(6, -1), weight, bias, key=KEY)
    assert len({tuple(row.tolist()) for row in found}) == 6
    torch.testing.assert_close(drop_connect(x.expand(2, -1), weight, bias, key=KEY), found[:2])


@pytest.mark.parametrize("most", [1, 24, 10**6])
def test_parts_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    x, weight, bias = tensors(3, 4, (2, 5))
    _, mask = drop_connect(x, weight, bias, 0.4, key=KEY, return_mask=True)
    monkeypatch.setattr(connections, "_CPU_WEIGHTS", most)
    check_gradients(x, weight, bias, {"key": KEY}, mask, 0.4)


def check_gradients(x: Tensor, weight: Tensor, bias: Tensor | None, source: Any, mask: Tensor, p: Any) -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    upstream = torch.linspace(-1, 2, x[..., 0].numel() * len(weight), dtype=x.dtype).reshape(*x.shape[:-1], -1)
    results = []
    for options in (source, {"mask": mask}):
        found = drop_connect(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None, p, **options)
        results.append((found, *torch.autograd.grad(found, leaves, upstream)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("source", ["keys", "rates", "streams", "keys and rates"])
def test_slices_of_axis_0_have_keys_streams_and_rates_of_their_own(source: str, has_bias: bool) -> None:
    x, weight, bias = tensors(3, 4, (3, 2))
    chosen = bias if has_bias else None
    keys = torch.tensor([5, -7, 9]) if "keys" in source else torch.tensor(KEY)
    rates = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64) if "rates" in source else 0.5
    streams = torch.tensor([0, 3, 1]) if source == "streams" else 0
    options = {"key": keys, "stream": streams}
    _, mask = drop_connect(x, weight, chosen, rates, return_mask=True, **options)
    check_gradients(x, weight, chosen, options, mask, rates)
    if source in {"keys", "keys and rates"}:
        for i, key in enumerate((5, 2**64 - 7, 9)):
            p = rates[i].item() if isinstance(rates, Tensor) else rates
            assert torch.equal(mask[i], torch.from_numpy(random.keep_mask(key, mask.shape[1:], p)))


def test_what_is_dropped_has_a_gradient_of_plus_zero_and_may_be_nan() -> None:
    x, weight, bias = tensors(3, 4, ())
    _, mask = drop_connect(x, weight, bias, key=KEY, return_mask=True)
    dropped = ~mask
    assert 0 < dropped.sum() < dropped.numel()
    weight[dropped[:, :4]] = math.nan
    bias[dropped[:, 4]] = math.inf
    for options in ({"key": KEY}, {"mask": mask}):
        leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        found = drop_connect(x, *leaves, **options)
        assert found.isfinite().all()
        gradients = torch.autograd.grad(-found.sum(), leaves)
        for gradient, gone in zip(gradients, (dropped[:, :4], dropped[:, 4]), strict=True):
            assert torch.equal(gradient[gone], torch.zeros_like(gradient[gone]))
            assert not gradient[gone].signbit().any()
            assert (gradient[~gone] != 0).all()


def test_derivatives_of_first_and_second_order_of_all_tensors() -> None:
    leaves = [tensor.requires_grad_() for tensor in tensors(2, 3, (2,))]
    for options in ({"key": KEY}, {"mask": torch.rand(2, 2, 4) < 0.5}):
        assert torch.autograd.gradcheck(
            lambda *v, o=options: drop_connect(*v, 0.4, **o), leaves, check_batched_grad=True
        )
        assert torch.autograd.gradgradcheck(lambda *v, o=options: drop_connect(*v, 0.4, **o), leaves)
    some = [leaves[0].detach(), leaves[1], leaves[2].detach()]
    assert torch.autograd.gradgradcheck(lambda *v: drop_connect(*v, 0.4, key=KEY), some)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms_and_forward_mode() -> None:
    x, weight, bias = tensors(2, 3, (4,))

    def loss(weight: Tensor, row: Tensor) -> Tensor:
        return drop_connect(row, weight, bias, 0.4, key=KEY).square().sum()

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    for row, found in zip(x, per_example, strict=True):
        leaf = weight.clone().requires_grad_()
        (want,) = torch.autograd.grad(loss(leaf, row), leaf)
        torch.testing.assert_close(found, want)
    _, along = torch.func.jvp(lambda v: drop_connect(v, weight, bias, 0.4, key=KEY), (x,), (x,))
    without_bias = drop_connect(x, weight, bias * 0, 0.4, key=KEY)
    torch.testing.assert_close(along, without_bias)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        found = torch.autograd.forward_ad.unpack_dual(drop_connect(dual, weight, bias, 0.4, key=KEY))
    torch.testing.assert_close(found.tangent, without_bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = (tensor.to(dtype) for tensor in tensors(3, 4, (50,)))
    found = drop_connect(x, weight, bias, 0.3, key=KEY)
    wide = drop_connect(x.double(), weight.double(), bias.double(), 0.3, key=KEY)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps * torch.exp2(wide.abs().clamp(min=1e-3).log2().floor())
    assert ((found.double() - wide).abs() <= 0.51 * unit).all()


def test_autocast_gives_its_type() -> None:
    linear = [tensor.float() for tensor in tensors()]
    half = [tensor.bfloat16() for tensor in linear]

    def results(linear: list[Tensor]) -> list[Tensor]:
        inferred = drop_connect_inference(*linear, activation=torch.relu, samples=3, key=KEY)
        return [drop_connect(*linear, key=KEY), drop_connect(*linear, training=False), inferred]

    with torch.autocast("cpu", torch.bfloat16):
        found = results(linear)
    for one, want in zip(found, results(half), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_autocast_leaves_wide_and_complex_types_alone(dtype: torch.dtype) -> None:
    linear = [tensor.to(dtype) for tensor in tensors()]
    with torch.autocast("cpu", torch.bfloat16):
        found = drop_connect(*linear, key=KEY)
    assert torch.equal(found, drop_connect(*linear, key=KEY))


def test_complex_numbers() -> None:
    x, weight, bias = (torch.complex(tensor, tensor.flip(-1)) for tensor in tensors())
    found, mask = drop_connect(x, weight, bias, 0.3, key=KEY, return_mask=True)
    torch.testing.assert_close(found, by_hand(x, weight, bias, mask, 0.3))


def test_neither_masks_nor_masked_weights_are_kept() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors(64, 64, (100,)))
    saved: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        drop_connect(x, weight, bias, key=KEY).sum()
    assert sum(saved.values()) <= x.nbytes + weight.nbytes + bias.nbytes + 100


def test_evaluation_and_a_rate_of_zero_are_linear() -> None:
    x, weight, bias = tensors()
    state = torch.get_rng_state()
    for p, training in ((0.0, True), (0.5, False), (1.0, False)):
        found, mask = drop_connect(x, weight, bias, p, training, return_mask=True)
        assert torch.equal(found, F.linear(x, weight, bias))
        assert mask.shape == (5, 3, 5)
        assert mask.all()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rate_of_one_is_zero_whatever_the_input() -> None:
    x, weight, bias = tensors()
    x[0, 0], x[1, 1] = math.nan, math.inf
    for options in ({"key": KEY}, {"mask": torch.ones(5, 3, 5, dtype=torch.bool)}):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        found, mask = drop_connect(*leaves, 1.0, return_mask=True, **options)
        assert torch.equal(found, torch.zeros_like(found))
        assert not mask.any()


def test_one_vector_has_no_slices() -> None:
    x, weight, bias = tensors(3, 4, ())
    with pytest.raises(ArgumentError, match=r"^drop_connect: `key` must be of shape \(\), got \(4,\)"):
        drop_connect(x, weight, bias, key=torch.arange(4))


def integral(function: Any, mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of a function of a Gaussian, by quadrature."""
    at = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-(at**2) / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(function(mean[..., None] + deviation[..., None] * at) * density, at)


@pytest.mark.parametrize("activation", [torch.relu, torch.sigmoid, torch.tanh])
def test_inference_averages_the_activation_over_a_gaussian_with_the_moments_of_the_masks(activation: Any) -> None:
    x, weight, bias = tensors(3, 4, (2,))
    p, samples = 0.4, 200_000
    r = realised(p)
    mean, deviation = F.linear(x, weight, bias), (r / (1 - r) * F.linear(x**2, weight**2, bias**2)).sqrt()
    found = drop_connect_inference(x, weight, bias, p, activation=activation, samples=samples, key=KEY)
    want = integral(activation, mean, deviation)
    error = (integral(lambda u: activation(u) ** 2, mean, deviation) - want**2).sqrt() / math.sqrt(samples)
    assert ((found - want).abs() <= 5 * error).all()  # 6 outputs: wrong alarms below 4e-6, and the key is fixed
    plain = activation(mean)
    assert ((found - plain).abs() > 20 * error).any()


def test_of_a_linear_map_and_few_inputs_the_gaussian_has_the_exact_moments() -> None:
    """All masks of one output, of which the identity keeps the mean and the square the variance."""
    x, weight, bias = tensors(1, 7, ())
    masks = all_masks(8).reshape(-1, 1, 8)
    exact = drop_connect(x.expand(len(masks), -1), weight, bias, 0.4, mask=masks)
    chance, samples = chances(masks.flatten(1), 0.4), 400_000
    found = [drop_connect_inference(x, weight, bias, 0.4, activation=f, samples=samples, key=KEY)
             for f in (torch.nn.Identity(), torch.square)]  # fmt: skip
    moments = [chance @ exact, chance @ exact**2]
    variance = moments[1] - moments[0] ** 2
    assert (found[0] - moments[0]).abs() <= 5 * (variance / samples).sqrt()
    spread = (2 * variance**2 + 4 * variance * moments[0] ** 2).sqrt()
    assert (found[1] - moments[1]).abs() <= 5 * spread / math.sqrt(samples)


def test_draws_are_the_definitions_normals_at_example_sample_output(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = tensors(3, 4, (2,))
    r = realised(0.4)
    mean, deviation = F.linear(x, weight, bias), (r / (1 - r) * F.linear(x**2, weight**2, bias**2)).sqrt()
    normal = torch.from_numpy(random.normal(KEY, (2, 7, 3), dtype="float64"))
    want = torch.relu(mean[:, None] + deviation[:, None] * normal).mean(1)
    for most in (1, 2**20, 13):
        monkeypatch.setattr(sys.modules[drop_connect.__module__], "_NORMALS_AT_ONCE", most)
        found = drop_connect_inference(x, weight, bias, 0.4, activation=torch.relu, samples=7, key=KEY)
        torch.testing.assert_close(found, want)
    keys = torch.tensor([4, 5])
    found = drop_connect_inference(x, weight, bias, 0.4, activation=torch.relu, samples=7, key=keys)
    for i in range(2):
        normal = torch.from_numpy(random.normal(4 + i, (7, 3), dtype="float64"))
        torch.testing.assert_close(found[i], torch.relu(mean[i] + deviation[i] * normal).mean(0))


def test_inference_without_noise_is_the_plain_layer() -> None:
    x, weight, bias = tensors()
    found = drop_connect_inference(x, weight, bias, 0.0, activation=torch.tanh, samples=3)
    torch.testing.assert_close(found, torch.tanh(F.linear(x, weight, bias)))
    nothing = drop_connect_inference(x, weight, bias, 1.0, activation=torch.cos, samples=3)
    torch.testing.assert_close(nothing, torch.ones_like(nothing))


def test_inference_is_differentiable_even_where_nothing_varies() -> None:
    x, weight, bias = tensors(2, 3, (2,))
    x[0] = 0
    for tensor in (x, weight, bias):
        tensor.requires_grad_()

    def infer(*linear: Tensor) -> Tensor:
        return drop_connect_inference(*linear, 0.4, activation=torch.tanh, samples=5, key=KEY)

    assert torch.autograd.gradcheck(lambda w, b: infer(x, w, b), (weight, bias))
    with torch.no_grad():
        bias.zero_()
    for gradient in torch.autograd.grad(infer(x, weight, bias).sum(), (x, weight, bias)):
        assert gradient.isfinite().all()
