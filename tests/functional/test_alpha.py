"""Alpha dropout: the paper's constants, closed forms over all masks, PyTorch's results, and gradients."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode

from dropkit import random
from dropkit.functional import alpha_dropout, dropout, feature_alpha_dropout
from dropkit.functional.alpha import SATURATION
from dropkit.nn import AlphaDropout
from tests.helpers.contract import RATES, all_masks, assert_positive_zero, chances, realised
from tests.helpers.statistics import FALSE_ALARM

KEY = 0xA19A_0000_1234_5678
FIXED_POINTS = [(0.0, 1.0), (1.0, 2.0), (-0.5, 0.25), (SATURATION, 1.0)]
PAPERS = {0.05: (0.954844476, 0.083935572), 0.1: (0.921284516, 0.161970970), 0.2: (0.878903584, 0.309039962),
          0.5: (0.886404895, 0.779193931)}  # fmt: skip
BOTH = pytest.mark.parametrize("function", [alpha_dropout, feature_alpha_dropout])
X = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def constants(p: float, mean: float = 0.0, variance: float = 1.0) -> tuple[float, float]:
    """The formula by hand, at the realised rate."""
    r = realised(p)
    q = 1 - r
    a = math.sqrt(variance / (q * (r * (SATURATION - mean) ** 2 + variance)))
    return a, mean - a * (q * mean + r * SATURATION)


def test_what_is_said_of_dropped_elements() -> None:
    said = re.findall(r"as (-[\d.]+) at p = (0\.\d)", " ".join(inspect.getdoc(AlphaDropout).split()))
    assert [p for _, p in said] == ["0.5", "0.1"]
    for value, p in said:
        scale, shift = constants(float(p))
        assert f"{scale * SATURATION + shift:.4f}" == value


def test_the_saturation_is_that_of_selu() -> None:
    assert pytest.approx(-1.7580993408473766, abs=1e-15) == SATURATION
    torch.testing.assert_close(F.selu(torch.tensor(-1e4).double()).item(), SATURATION)


@pytest.mark.parametrize("p", PAPERS)
def test_the_constants_are_the_papers(p: float) -> None:
    zero_and_one = torch.tensor([0.0, 1.0], dtype=torch.float64)
    shift, both = alpha_dropout(zero_and_one, p, mask=torch.ones(2, dtype=torch.bool)).tolist()
    assert both - shift == pytest.approx(PAPERS[p][0], abs=2e-9)
    assert shift == pytest.approx(PAPERS[p][1], abs=2e-9)
    dropped = alpha_dropout(zero_and_one, p, mask=torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(dropped, torch.full((2,), (both - shift) * SATURATION + shift, dtype=torch.float64))


@pytest.mark.parametrize(("mean", "variance"), FIXED_POINTS)
@pytest.mark.parametrize("p", [p for p in RATES if p < 0.99])
def test_mean_variance_and_gradient_over_all_masks(p: float, mean: float, variance: float) -> None:
    x = torch.tensor([0.36, -0.13, 0.42, 7.0, SATURATION], dtype=torch.float64)
    masks = all_masks(len(x))
    inputs = x.expand(masks.shape).clone().requires_grad_()
    out = alpha_dropout(inputs, p, mask=masks, mean=mean, variance=variance)
    (a, b), r, weights = constants(p, mean, variance), realised(p), chances(masks, p)
    found = weights @ out.detach()
    torch.testing.assert_close(found, a * ((1 - r) * x + r * SATURATION) + b, rtol=1e-12, atol=1e-12)
    spread = weights @ (out.detach() - found).square()
    torch.testing.assert_close(spread, a**2 * r * (1 - r) * (x - SATURATION).square(), rtol=1e-11, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.sum(), inputs)
    torch.testing.assert_close(gradient, a * masks.double(), rtol=1e-12, atol=0)
    assert_positive_zero(gradient[~masks])


@pytest.mark.parametrize(("mean", "variance"), FIXED_POINTS)
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_inputs_of_a_mean_and_variance_keep_them(p: float, mean: float, variance: float) -> None:
    x = mean + math.sqrt(variance) * torch.tensor([-1.0, 1.0], dtype=torch.float64)  # each with chance 1/2
    masks = torch.tensor([True, False])
    out = alpha_dropout(x.expand(2, 2), p, mask=masks.unsqueeze(1).expand(2, 2), mean=mean, variance=variance)
    weights = torch.tensor([1 - realised(p), realised(p)], dtype=torch.float64).unsqueeze(1) / 2
    found = (weights * out).sum()
    torch.testing.assert_close(found, torch.tensor(mean, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    spread = (weights * (out - found).square()).sum()
    torch.testing.assert_close(spread, torch.tensor(variance, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(F.alpha_dropout, alpha_dropout), (F.feature_alpha_dropout, feature_alpha_dropout)],
    ids=["elements", "channels"],
)
def test_the_results_are_pytorchs_under_its_mask(theirs: Any, ours: Any, p: float) -> None:
    x = X.exp().requires_grad_()  # above 0, so that what is dropped shows
    want = theirs(x, p, True)
    mask = want > 0
    shape = x.shape if ours is alpha_dropout else (*x.shape[:2], 1, 1)
    mask = mask if ours is alpha_dropout else mask[:, :, :1, :1]
    assert 0 < mask.sum() < mask.numel()
    out, kept = ours(x, p, mask=mask, return_mask=True)
    assert kept.shape == shape
    torch.testing.assert_close(out, want, rtol=1e-8, atol=1e-8)  # PyTorch's rate is not rounded to 2**-32
    (found,), (gradient,) = torch.autograd.grad(out.sum(), x), torch.autograd.grad(want.sum(), x)
    torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-8)


@BOTH
def test_it_takes_pytorchs_arguments_in_their_order(function: Callable[..., Any]) -> None:
    ours = inspect.signature(function).parameters
    theirs = list(inspect.signature(getattr(F, function.__name__)).parameters)
    assert [name for name, found in ours.items() if found.kind is not found.KEYWORD_ONLY] == theirs
    assert ours["training"].default is True


def test_its_masks_are_those_of_dropout() -> None:
    for options in ({"key": KEY}, {"key": KEY, "stream": 3}, {"key": torch.arange(4)}):
        _, mask = alpha_dropout(X, 0.4, return_mask=True, **options)
        assert torch.equal(mask, dropout(X, 0.4, return_mask=True, **options)[1])
        out, mask = feature_alpha_dropout(X, 0.4, return_mask=True, **options)
        assert torch.equal(mask, dropout(X, 0.4, return_mask=True, broadcast_dims=(2, 3), **options)[1])
        assert torch.equal(out, feature_alpha_dropout(X, 0.4, mask=mask))


def test_a_channel_is_an_element_where_there_is_nothing_else() -> None:
    assert torch.equal(feature_alpha_dropout(X[..., 0, 0], 0.4, key=3), alpha_dropout(X[..., 0, 0], 0.4, key=3))


def test_what_is_dropped_has_no_influence() -> None:
    mask = torch.tensor([False, False, False, True, True])
    x = torch.tensor([math.nan, math.inf, -math.inf, math.nan, math.inf], dtype=torch.float64, requires_grad=True)
    out = alpha_dropout(x, 0.3, mask=mask)
    a, b = constants(0.3)
    torch.testing.assert_close(out[:3], torch.full((3,), a * SATURATION + b, dtype=torch.float64), rtol=1e-12, atol=0)
    assert out[3].isnan()
    assert out[4] == math.inf
    (gradient,) = torch.autograd.grad(out, x, torch.ones(5).double())
    torch.testing.assert_close(gradient, a * mask.double(), rtol=1e-12, atol=0)
    assert_positive_zero(gradient[:3])


@BOTH
@pytest.mark.parametrize("p", [1.0, torch.tensor(1.0).double(), torch.ones(4).double()], ids=str)
def test_at_a_rate_of_one_all_is_zero(function: Callable[..., Any], p: Any) -> None:
    x = X.clone()
    x[0] = math.nan
    x.requires_grad_()
    for options in ({"key": KEY}, {"mask": torch.ones(4, 3, 1, 1, dtype=torch.bool)}):
        out = function(x, p, **options)
        assert_positive_zero(out)
        assert_positive_zero(torch.autograd.grad(out.sum(), x)[0])


@pytest.mark.parametrize(("mean", "variance"), [*FIXED_POINTS, (-1.0, 1.0)])
def test_at_a_rate_of_one_zeros_are_positive_whatever_mean_is_kept(mean: float, variance: float) -> None:
    for options in ({"key": KEY}, {"mask": torch.ones_like(X, dtype=torch.bool)}):
        for tensor in (X, X.transpose(1, 2).contiguous().transpose(1, 2)):  # in order and not
            assert_positive_zero(alpha_dropout(tensor, 1.0, mean=mean, variance=variance, **options))


@pytest.mark.parametrize("mean", [1e200, -1e200])
def test_a_mean_may_be_beyond_the_square_root_of_the_largest_number(mean: float) -> None:
    rates = torch.tensor([0.0, 0.5, 0.9, 1.0]).double()
    out = alpha_dropout(X, rates, mean=mean, key=KEY)
    assert torch.equal(out[0], X[0])
    assert torch.equal(out[1:3], torch.full_like(X[1:3], mean))
    assert_positive_zero(out[3])
    assert torch.equal(alpha_dropout(X, 0.5, mean=mean, key=KEY), torch.full_like(X, mean))


@BOTH
def test_evaluation_and_a_rate_of_zero_give_the_input(function: Callable[..., Any]) -> None:
    state = torch.get_rng_state()
    mask_shape = X.shape if function is alpha_dropout else (4, 3, 1, 1)
    for options in ({"p": 0.5, "training": False}, {"p": 0.0}):
        assert function(X, **options) is X
        out, mask = function(X, return_mask=True, **options)
        assert out is X
        assert mask.shape == mask_shape
        assert mask.all()
    assert torch.equal(torch.get_rng_state(), state)
    zero = torch.tensor(0.0).double()
    assert torch.equal(function(X, zero, key=KEY), X)
    mask = torch.zeros(mask_shape, dtype=torch.bool)
    assert torch.equal(function(X, 0.0, mask=mask), torch.full_like(X, SATURATION))
    assert function(X, 0.5, False, mask=mask) is X


@BOTH
def test_rates_and_keys_of_slices(function: Callable[..., Any]) -> None:
    rates, keys = torch.tensor([0.0, 0.2, 0.7, 1.0]).double(), torch.arange(4) + 5
    x = X.clone().requires_grad_()
    out, masks = function(x, rates, key=keys, return_mask=True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    for i, p in enumerate(rates.tolist()):
        one = X[i : i + 1].clone().requires_grad_()
        want, mask = function(one, p, key=keys[i : i + 1], return_mask=True)
        assert torch.equal(out[i : i + 1], want)
        assert torch.equal(masks[i : i + 1], mask)
        assert torch.equal(gradient[i : i + 1], torch.autograd.grad(want.sum(), one)[0])
    shared = function(x, rates, key=KEY)
    for i, p in enumerate(rates.tolist()):
        assert torch.equal(shared[i], function(X, p, key=KEY)[i])


@BOTH
@pytest.mark.parametrize("p", [0.4, torch.tensor([0.1, 0.4, 0.9, 0.5]).double()], ids=["one", "slices"])
def test_strides_change_nothing(function: Callable[..., Any], p: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = X.to(dtype)
        want = function(x, p, key=KEY)
        for other in (
            x.contiguous(memory_format=torch.channels_last),
            x.transpose(0, 2).contiguous().transpose(0, 2),
            torch.stack([x, x], -1)[..., 1],
        ):
            out = function(other.requires_grad_(), p, key=KEY)
            assert torch.equal(out, want)
            (gradient,) = torch.autograd.grad(out.sum(), other)
            assert torch.equal(gradient, torch.autograd.grad(function(x.requires_grad_(), p, key=KEY).sum(), x)[0])
            if other.untyped_storage().nbytes() == x.numel() * x.element_size():
                assert out.stride() == other.stride()
                mask = torch.rand(4, 3, 1, 1) > 0.3
                assert function(other, p, mask=mask).stride() == other.stride()
        expanded = x[:1].expand(x.shape)
        assert torch.equal(function(expanded, p, key=KEY), function(expanded.contiguous(), p, key=KEY))


@BOTH
def test_the_input_is_overwritten_if_asked(function: Callable[..., Any]) -> None:
    for options in ({"key": KEY}, {"mask": torch.rand(4, 3, 1, 1) > 0.5}):
        x, want = X.clone(), function(X, 0.4, **options)
        before = X.clone()
        assert function(x, 0.4, True, True, **options) is x
        assert torch.equal(x, want)
        assert torch.equal(X, before)
    leaf = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    function(2 * leaf, 0.4, True, True, key=KEY).sum().backward()
    want = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    function(2 * want, 0.4, key=KEY).sum().backward()
    assert torch.equal(leaf.grad, want.grad)


def test_nothing_but_the_address_and_a_scale_is_kept() -> None:
    saved: list[int] = []
    x = torch.ones(100, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        alpha_dropout(x, 0.5)
    assert sum(saved) <= 4 * 8


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@BOTH
def test_transforms_equal_loops(function: Callable[..., Any]) -> None:
    keys = torch.arange(3) + 9
    batch = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    found = vmap(lambda x, key: function(x, 0.4, key=key))(batch, keys)
    gradients = vmap(grad(lambda x, key: function(x, 0.4, key=key).square().sum()))(batch, keys)
    masks = torch.rand(3, 4, 1, 1) > 0.5
    masked = vmap(lambda x, mask: function(x, 0.4, mask=mask))(batch, masks.expand(3, 4, 5, 1))
    for i in range(3):
        one = batch[i].clone().requires_grad_()
        want = function(one, 0.4, key=keys[i])
        torch.testing.assert_close(found[i], want)
        torch.testing.assert_close(gradients[i], torch.autograd.grad(want.square().sum(), one)[0])
        torch.testing.assert_close(masked[i], function(batch[i], 0.4, mask=masks[i].expand(4, 5, 1)))
    x, tangent = batch[0], batch[1]
    out, change = jvp(lambda v: function(v, 0.4, key=KEY), (x,), (tangent,))
    want = torch.where(function(x, 0.4, key=KEY, return_mask=True)[1], constants(0.4)[0] * tangent, 0.0)
    torch.testing.assert_close(out, function(x, 0.4, key=KEY))
    torch.testing.assert_close(change, want, rtol=1e-12, atol=0)


@pytest.mark.slow
@BOTH
def test_compiled_code_equals_eager_code(function: Callable[..., Any]) -> None:
    def run(x: Tensor, p: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        out, mask = function(x, p, key=key, return_mask=True)
        return out, mask, *torch.autograd.grad(out.square().sum(), x)

    def transformed(x: Tensor, p: Tensor, key: Tensor) -> Tensor:
        return vmap(grad(lambda v: function(v, p, key=key).square().sum()))(x)

    torch._dynamo.reset()
    compiled = torch.compile(lambda *v: function(v[0], v[1], key=v[2]), backend="aot_eager", fullgraph=True)
    batched = torch.compile(transformed, backend="aot_eager", fullgraph=True)
    for p, key in ((0.2, 7), (0.6, -9)):
        arguments = X.clone().requires_grad_(), torch.tensor(p).double(), torch.tensor(key)
        out, _, gradient = run(*arguments)
        found = compiled(*arguments)
        assert torch.equal(found, out)
        assert torch.equal(torch.autograd.grad(found.square().sum(), arguments[0])[0], gradient)
        torch.testing.assert_close(batched(*arguments), transformed(*arguments))
    torch._dynamo.reset()


@pytest.mark.slow
def test_several_means_and_variances_through_one_compiled_function() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(alpha_dropout, backend="eager", fullgraph=True)
    for mean, variance in ((0.0, 1.0), (0.5, 1.0), (-1.5, 2.0)):
        found = compiled(X, 0.3, mean=mean, variance=variance, key=torch.tensor(5))
        torch.testing.assert_close(found, alpha_dropout(X, 0.3, mean=mean, variance=variance, key=5))
    torch._dynamo.reset()


def test_the_gradient_of_a_checkpointed_forward_has_the_same_mask() -> None:
    from torch.utils.checkpoint import checkpoint

    x = X.clone().requires_grad_()
    out = checkpoint(lambda v: alpha_dropout(v, 0.4), x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    a, b = constants(0.4)
    kept = ~torch.isclose(out, torch.tensor(a * SATURATION + b, dtype=torch.float64))
    torch.testing.assert_close(gradient, a * kept.double(), rtol=1e-12, atol=0)


@BOTH
def test_modes_see_the_call(function: Callable[..., Any]) -> None:
    class Recorder(TorchFunctionMode):
        calls: list[Any] = []  # noqa: RUF012  # of this test alone

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls.append(func)
            return func(*args, **(kwargs or {}))

    want = function(X, 0.4, key=3, mean=0.5)
    with Recorder() as mode:
        assert torch.equal(function(X, 0.4, key=3, mean=0.5), want)
    assert mode.calls[0] is function


def test_normal_inputs_keep_mean_and_variance() -> None:
    """False-alarm rate 1e-6 each: of means and of variances, from the exact moments of the result."""
    n, p = 1_000_000, 0.1
    x = torch.from_numpy(random.normal(KEY, (n,)))
    out = alpha_dropout(x, p, key=KEY + 1).numpy()
    (a, b), r = constants(p), realised(p)
    normal = [3 * a**4 + 6 * a**2 * b**2 + b**4, (a * SATURATION + b) ** 4]
    fourth = (1 - r) * normal[0] + r * normal[1]
    deviations = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(out.mean()) < deviations / math.sqrt(n)
    assert abs(np.square(out).mean() - 1) < deviations * math.sqrt((fourth - 1) / n)
