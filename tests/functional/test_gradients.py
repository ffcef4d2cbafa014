"""Derivatives of every order and mode, and what is kept for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from dropkit import kernels, random
from dropkit.functional import dropout, eager
from tests.helpers.contract import assert_positive_zero

# PyTorch's own forward mode scripts its formulas on first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "key": {"key": 5},
    "mask": {"mask": torch.eye(3, 4) == 0},
    "shared draws": {"key": 5, "broadcast_dims": 1},
    "shard": {"key": 5, "offset": (2, 3), "full_shape": (9, 9)},
    "slices": {"key": torch.tensor([5, 6, 7]), "p": torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)},
    "original form": {"key": 5, "scale_at": "eval"},
    "original form, evaluation": {"training": False, "scale_at": "eval"},
    "everything": {"key": 5, "p": 1.0},
    "nothing": {"key": 5, "p": 0.0},
    "in place": {"key": 5, "inplace": True},
}


def function(name: str) -> Callable[[Tensor], Tensor]:
    options = {"p": 0.4} | OPTIONS[name]
    if "inplace" in options:
        return lambda x: dropout(x.clone(), **options)
    return lambda x: dropout(x, **options)


def sample(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 4, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_first_and_second_derivatives_in_both_modes(name: str, dtype: torch.dtype) -> None:
    batched = name != "in place"
    assert gradcheck(function(name), sample(dtype), check_forward_ad=True, check_batched_grad=batched)
    assert gradgradcheck(function(name), sample(dtype), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_tangent_is_dropped_out_like_the_input(name: str) -> None:
    tangent = torch.randn(3, 4, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(sample().detach(), tangent)
        found = forward_ad.unpack_dual(function(name)(dual)).tangent
    assert torch.equal(found, function(name)(tangent))


def test_dropped_places_take_no_tangent_or_gradient_whatever_it_is() -> None:
    bad = torch.full((64,), torch.nan)
    keep = torch.from_numpy(random.keep_mask(5, (64,), 0.5))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(64), bad)
        assert_positive_zero(forward_ad.unpack_dual(dropout(dual, 0.5, key=5)).tangent[~keep])
    x = torch.ones(64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dropout(x, 0.5, key=5), x, -torch.inf * torch.ones(64))
    assert_positive_zero(gradient[~keep])
    assert (gradient[keep] == -torch.inf).all()


def test_the_second_derivative_of_a_power_is_that_of_its_survivors() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([True, False, True, True])
    (first,) = torch.autograd.grad(dropout(x, 0.5, mask=keep).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(first, torch.where(keep, 24 * x**2, 0))
    assert torch.equal(second, torch.where(keep, 48 * x, 0))


def saved_bytes(call: Callable[[], Any]) -> int:
    """The bytes of all tensors that autograd keeps during a call."""
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        call()
    return sum(saved)


@pytest.mark.parametrize("size", [10, 10_000])
def test_the_address_is_all_that_is_saved(size: int) -> None:
    x = torch.ones(8, size, requires_grad=True)
    plain = 24 if kernels.info().kernel == "portable" else 0  # compiled kernels take key and threshold as numbers
    assert saved_bytes(lambda: dropout(x, 0.5)) == plain
    assert saved_bytes(lambda: dropout(x, 0.5, key=3, broadcast_dims=1, stream=4)) == 24
    assert saved_bytes(lambda: dropout(x, 0.5, key=3, return_mask=True)) == 24
    assert saved_bytes(lambda: dropout(x * 1, 0.5, inplace=True)) == 24
    keys = torch.arange(8)
    assert saved_bytes(lambda: dropout(x, keys.double() / 8, key=keys, stream=keys)) == 3 * 8 * 8
    assert saved_bytes(lambda: dropout(x, 0.0)) == saved_bytes(lambda: dropout(x, 0.5, False)) == 0
    assert saved_bytes(lambda: torch.nn.functional.dropout(x, 0.5)) >= 8 * size  # what the count would show


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [63, 64, 512, 1024, 1025])
@pytest.mark.parametrize("widest", [0, 2, 4, 8])
def test_a_mask_that_a_cache_holds_may_be_saved_at_a_bit_an_element(
    rows: int, dtype: torch.dtype, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_widest", lambda: widest)
    x = torch.ones(rows, 1024, dtype=dtype, requires_grad=True)
    pays = dtype.itemsize <= widest and 2**16 <= x.numel() <= 2**20
    assert saved_bytes(lambda: dropout(x, 0.5, key=3)) == (x.numel() // 8 if pays else 0)
    out = dropout(x, 0.1, key=3)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(x))
    assert torch.equal(gradient, out)
    assert torch.equal(out != 0, torch.from_numpy(random.keep_mask(3, x.shape, 0.1)))


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_faster_masks_are_drawn_the_fewer_types_have_them_saved(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_widest_found", [])  # another kernel may have served when it was filled
    widest = {"avx512": 2, "avx2": 4, "neon": 4, "scalar": 8}[kernels.info().kernel]
    x = torch.ones(64, 1024, dtype=dtype, requires_grad=True)
    assert saved_bytes(lambda: dropout(x, 0.5, key=3)) == (x.numel() // 8 if dtype.itemsize <= widest else 0)


def test_an_injected_mask_is_saved_as_bool_only() -> None:
    x, mask = torch.ones(8, 100, requires_grad=True), torch.ones(8, 100, dtype=torch.bool)
    assert saved_bytes(lambda: dropout(x, 0.5, mask=mask)) <= 8 * 100 + 8


def test_addresses_that_change_before_the_backward_pass() -> None:
    x, key = torch.ones(64, requires_grad=True), torch.tensor(3)
    out = dropout(x, 0.5, key=key)
    key.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    p, mask = torch.tensor(0.5, dtype=torch.float64), torch.rand(64) > 0.5
    for options, change in (({"p": p, "key": 3}, lambda: p.fill_(0.9)), ({"mask": mask}, mask.logical_not_)):
        out = dropout(x, **options)
        change()
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(gradient, out.detach())


def test_in_place_dropout_gates_the_gradient() -> None:
    x = torch.ones(64, requires_grad=True)
    h = x * 3
    out = dropout(h, 0.5, inplace=True, key=3)
    assert out is h
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_inputs_without_gradients_get_none() -> None:
    assert not dropout(torch.ones(3), 0.5, key=1).requires_grad
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert not dropout(x, 0.5, key=1).requires_grad
    with torch.inference_mode():
        assert torch.equal(dropout(torch.ones(64), 0.5, key=1), dropout(x.detach().new_ones(64), 0.5, key=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64], ids=str)
def test_gradients_keep_the_type(dtype: torch.dtype) -> None:
    x = torch.ones(40, dtype=dtype, requires_grad=True)
    out = dropout(x, 0.3, key=5)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(x))
    assert gradient.dtype == dtype
    assert torch.equal(gradient, out.detach())


def test_gradients_accumulate_over_uses_of_one_input() -> None:
    x = torch.ones(200, requires_grad=True)
    outs = [dropout(x, 0.5, key=key) for key in (1, 2, 3)]
    torch.stack(outs).sum().backward()
    assert torch.equal(x.grad, torch.stack(outs).sum(0).detach())
