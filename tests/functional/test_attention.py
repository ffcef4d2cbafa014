"""Attention with dropout: PyTorch's numbers where nothing is dropped, one mask however it is computed."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit import kernels
from dropkit.errors import ArgumentError
from dropkit.functional import attention_parts, scaled_dot_product_attention
from dropkit.random import keep_mask
from tests.helpers.threads import single_thread

KEY = 9


def inputs(*shape: int, keys: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of shape (..., heads, queries, width)."""
    *heads, queries, width = shape
    keys = keys or queries
    return (
        torch.randn(*heads, queries, width, dtype=dtype, requires_grad=True),
        torch.randn(*heads, keys, width, dtype=dtype, requires_grad=True),
        torch.randn(*heads, keys, width + 1, dtype=dtype, requires_grad=True),
    )


def by_hand(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, p: float, is_causal: bool) -> Tensor:
    """Attention by its formula, with the mask of `dropkit.random`."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1).nan_to_num(0.0)  # a query that may attend to nothing has no weights
    keep = torch.from_numpy(keep_mask(KEY, tuple(weights.shape), p))
    return (weights * keep / (1 - math.floor(p * 2**32 + 0.5) / 2**32)) @ value


MASKS: dict[str, Callable[..., Tensor | None]] = {
    "none": lambda *_: None,
    "causal": lambda *_: None,
    "bool": lambda heads, queries, keys: (torch.rand(queries, keys) > 0.3).index_fill_(0, torch.tensor([0]), False),
    "numbers": lambda heads, queries, keys: torch.randn(queries, keys, dtype=torch.float64),
    "a head": lambda heads, queries, keys: torch.randn(*heads, queries, keys, dtype=torch.float64),
    "padding": lambda heads, queries, keys: torch.rand(*heads[:-1], *(1,) * bool(heads), 1, keys) > 0.2,
}


@pytest.mark.parametrize("at_once", [2**19, 700, 60])
@pytest.mark.parametrize("shape", [(2, 3, 17, 8), (3, 20, 8), (1, 2, 70, 16), (2, 1, 1, 4)])
@pytest.mark.parametrize("mask", MASKS)
def test_it_is_the_formula_with_the_mask_of_its_key(
    mask: str, shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(attention_parts, "_WEIGHTS_AT_ONCE", at_once)
    monkeypatch.setattr(attention_parts, "_FEWEST_QUERIES", 1)
    tensors = inputs(*shape, keys=shape[-2] + 5)
    attn_mask = MASKS[mask](shape[:-2], shape[-2], shape[-2] + 5)
    is_causal = mask == "causal"
    found = scaled_dot_product_attention(*tensors, attn_mask, 0.3, is_causal, dropout_key=KEY)
    wanted = by_hand(*tensors, attn_mask, 0.3, is_causal)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(wanted)
    for one, other in zip(*(torch.autograd.grad(result, tensors, grad) for result in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def test_the_parts_serve_where_kernels_are_compiled() -> None:
    found = scaled_dot_product_attention(*inputs(2, 3, 17, 8), dropout_p=0.3, dropout_key=KEY)
    name = found.grad_fn.name()
    assert ("Attention" in name) == (kernels.info().kernel != "portable")


@pytest.mark.parametrize("options", [{"training": False, "dropout_p": 0.5}, {"dropout_p": 0.0}])
def test_without_dropout_it_is_pytorchs(options: dict[str, Any]) -> None:
    tensors = inputs(2, 4, 10, 8, dtype=torch.float32)
    state = torch.get_rng_state()
    found = scaled_dot_product_attention(*tensors, is_causal=True, scale=0.3, **options)
    assert torch.equal(found, F.scaled_dot_product_attention(*tensors, is_causal=True, scale=0.3))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn


def test_a_rate_of_one_leaves_zeros_without_a_nan() -> None:
    tensors = inputs(2, 4, 10, 8)
    found = scaled_dot_product_attention(*tensors, dropout_p=1.0)
    assert (found == 0).all()
    assert all((grad == 0).all() for grad in torch.autograd.grad(found.sum(), tensors))


def test_fewer_heads_of_keys_serve_consecutive_heads_of_queries() -> None:
    query, _, _ = inputs(2, 6, 10, 8)
    _, key, value = inputs(2, 2, 10, 8)
    found = scaled_dot_product_attention(query, key, value, dropout_p=0.3, enable_gqa=True, dropout_key=KEY)
    repeated = (tensor.repeat_interleave(3, 1) for tensor in (key, value))
    wanted = by_hand(query, *repeated, None, 0.3, False)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    undropped = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(undropped, F.scaled_dot_product_attention(query, key, value, enable_gqa=True))


@pytest.mark.parametrize(
    ("queries", "keys", "values", "in_parts"),
    [
        ((2, 3, 17, 8), (1, 3, 20, 8), (2, 1, 20, 5), True),
        ((3, 17, 8), (2, 1, 20, 8), (20, 5), True),
        ((17, 8), (4, 20, 8), (4, 20, 5), True),
        ((17, 8), (20, 8), (20, 5), True),
        ((17, 8), (20, 8), (4, 20, 5), False),  # one mask for all values
    ],
)
def test_leading_axes_broadcast(
    queries: tuple[int, ...], keys: tuple[int, ...], values: tuple[int, ...], in_parts: bool
) -> None:
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in (queries, keys, values)]
    found = scaled_dot_product_attention(*tensors, dropout_p=0.3, dropout_key=KEY)
    wanted = by_hand(*tensors, None, 0.3, False)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(wanted)
    for one, other in zip(*(torch.autograd.grad(result, tensors, grad) for result in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)
    if kernels.info().kernel != "portable":
        assert ("Attention" in found.grad_fn.name()) == in_parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "causal", "numbers", "padding"])
def test_half_types_lose_what_rounding_the_result_loses(dtype: torch.dtype, mask: str) -> None:
    """And no more: scores, weights and their gradients are float32."""
    tensors, grad = inputs(2, 4, 100, 16, dtype=dtype), torch.randn(2, 4, 100, 17).to(dtype)
    attn_mask, is_causal = MASKS[mask]((2, 4), 100, 100), mask == "causal"
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(dtype)
    found = scaled_dot_product_attention(*tensors, attn_mask, 0.3, is_causal, dropout_key=KEY)
    wide = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.double()
    wanted = by_hand(*exact, wide, 0.3, is_causal)
    pairs = [(found, wanted), *zip(*(
        torch.autograd.grad(result, of, grad.to(result.dtype)) for result, of in ((found, tensors), (wanted, exact))
    ), strict=True)]  # fmt: skip
    for one, other in pairs:
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= 1.02 * (other.to(dtype).double() - other).norm()


def test_layouts_and_ways_give_the_same() -> None:
    query, key, value = (tensor.detach() for tensor in inputs(2, 4, 10, 8))
    wanted = by_hand(query, key, value, None, 0.3, False)

    def call(*tensors: Tensor, **options: Any) -> Tensor:
        return scaled_dot_product_attention(*tensors, dropout_p=0.3, **{"dropout_key": KEY, **options})

    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    for found in (
        call(*turned),
        call(query, key, value, dropout_key=torch.tensor(KEY)),
        torch.compile(call, backend="eager", fullgraph=True)(query, key, value, dropout_key=torch.tensor(KEY)),
    ):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    mapped = torch.func.vmap(lambda q: call(q, key[0], value[0]))(query[:1])  # an explicit key: the same mask for all
    torch.testing.assert_close(mapped[0], by_hand(query[0], key[0], value[0], None, 0.3, False))


@pytest.mark.parametrize("mask", ["none", "causal", "numbers", "padding"])
def test_derivatives_of_both_orders(mask: str) -> None:
    query, key, value = inputs(2, 5, 3)
    tensors = (query, key[:1].detach().requires_grad_(), value[:1].detach().requires_grad_())
    options: dict[str, Any] = {"attn_mask": MASKS[mask]((2,), 5, 5), "is_causal": mask == "causal", "enable_gqa": True}
    call = partial(scaled_dot_product_attention, dropout_p=0.4, dropout_key=KEY, **options)
    with single_thread():
        assert torch.autograd.gradcheck(call, tensors, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("differentiated", ["q", "k", "v", "qk", "qv", "kv"])
def test_derivatives_of_both_orders_with_respect_to_some(differentiated: str) -> None:
    """As where the encoder of what is attended to is frozen."""
    named = dict(zip("qkv", (tensor[:1].detach() for tensor in inputs(2, 4, 3)), strict=True))
    wanted = [named[name].requires_grad_() for name in differentiated]

    def call(*_: Tensor) -> Tensor:
        return scaled_dot_product_attention(*named.values(), dropout_p=0.4, dropout_key=KEY)

    assert torch.autograd.gradcheck(call, wanted, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, wanted)


def test_keys_and_rates_a_slice_belong_to_the_axis_of_the_weights_though_the_query_broadcasts() -> None:
    query, key, value = (tensor.detach() for tensor in inputs(4, 2, 5, 8))
    one, keys, rates = query[:1], torch.arange(4), torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    found = scaled_dot_product_attention(one, key, value, dropout_p=rates, dropout_key=keys)
    want = scaled_dot_product_attention(one.expand_as(query), key, value, dropout_p=rates, dropout_key=keys)
    assert torch.equal(found, want)
    with pytest.raises(ArgumentError, match=r"`dropout_key`.* 1 values, the query has 4 slices"):
        scaled_dot_product_attention(one, key, value, dropout_p=0.3, dropout_key=keys[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_result_may_be_changed_in_place(dtype: torch.dtype) -> None:
    tensors = inputs(1, 2, 5, 8, dtype=dtype)
    found, want = (scaled_dot_product_attention(*tensors, dropout_p=0.5, dropout_key=KEY) for _ in range(2))
    found.add_(1).transpose(1, 2).mul_(2)
    for changed, plain in zip(*(torch.autograd.grad(out.sum(), tensors) for out in (found, 2 * want)), strict=True):
        assert torch.equal(changed, plain)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("at_once", [32, 2**18])
def test_no_memory_is_read_that_was_not_written(is_causal: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In deterministic mode new memory is full of NaN."""
    monkeypatch.setattr(attention_parts, "_WEIGHTS_AT_ONCE", at_once)
    monkeypatch.setattr(attention_parts, "_FEWEST_QUERIES", 1)
    torch.use_deterministic_algorithms(True)
    try:
        tensors = inputs(2, 2, 7, 4, dtype=torch.float32)
        out = scaled_dot_product_attention(*tensors, dropout_p=0.3, is_causal=is_causal)
        assert all(torch.isfinite(each).all() for each in (out, *torch.autograd.grad(out.sum(), tensors)))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("scale", [np.float32(0.5), np.array(0.5), Fraction(1, 2)], ids=repr)
def test_a_scale_may_be_any_number(scale: Any) -> None:
    tensors = inputs(1, 2, 5, 8)
    found, want = (
        scaled_dot_product_attention(*tensors, dropout_p=0.5, scale=each, dropout_key=KEY) for each in (scale, 0.5)
    )
    assert torch.equal(found, want)


def test_drawn_masks_follow_the_seed_and_differ() -> None:
    tensors = inputs(2, 4, 10, 8)
    torch.manual_seed(0)
    first, second = (scaled_dot_product_attention(*tensors, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(scaled_dot_product_attention(*tensors, dropout_p=0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_many_weights_are_not_kept_for_the_backward_pass(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels.info().kernel == "portable":
        pytest.skip("portable operations keep the weights, as PyTorch does")
    monkeypatch.setattr("dropkit.functional.attention_parts._MOST_KEPT", 2 * 300 * 300 - 1)
    tensors = inputs(1, 2, 300, 8, dtype=dtype)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        scaled_dot_product_attention(*tensors, dropout_p=0.5)
    assert max(kept) == 2 * 300 * 9


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
def test_gradients_are_the_same_whether_weights_are_kept_or_not(
    is_causal: bool, has_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_causal and has_mask:
        return
    query, key, value = inputs(2, 2, 150, 8, dtype=torch.float64)
    mask = torch.rand(2, 1, 150, key.size(-2)) < 0.7 if has_mask else None
    found = []
    for most, threads in ((2**22, 1), (2**22, 2), (0, 1), (0, 2)):
        monkeypatch.setattr("dropkit.functional.attention_parts._MOST_KEPT", most)
        output = scaled_dot_product_attention(query, key, value, mask, 0.5, is_causal, dropout_key=7)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # the backward pass takes the parts of the forward pass, whatever came since
        try:
            found.append((output, *torch.autograd.grad(output.square().sum(), (query, key, value))))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("most", [0, 2**22])
def test_heads_that_lie_apart_are_not_copied(
    is_causal: bool, has_mask: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_causal and has_mask:
        return
    monkeypatch.setattr("dropkit.functional.attention_parts._MOST_KEPT", most)
    monkeypatch.setattr("dropkit.functional.attention_parts._FEWEST_ALONE", 1)
    weights = 2 * 70 * 70  # of two heads of three
    monkeypatch.setattr("dropkit.functional.attention_parts._WEIGHTS_AT_ONCE", weights)
    apart = [torch.randn(2, 70, 3, 8, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in range(3)]
    side_by_side = [tensor.detach().contiguous().requires_grad_() for tensor in apart]
    mask = torch.rand(2, 3, 70, 70) < 0.7 if has_mask else None
    found = []
    for tensors in (apart, side_by_side):
        output = scaled_dot_product_attention(*tensors, mask, 0.5, is_causal, dropout_key=7)
        found.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    if kernels.info().kernel != "portable":
        assert all(one.stride() == apart[0].stride() for one in found[0])


def peak(call: Callable[[], Tensor], grad: Tensor) -> int:
    """Return how many bytes more than before are in use at once, forward and backward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        call().backward(grad)
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mask", ["none", "padding", "numbers"])
def test_at_2048_tokens_it_takes_a_fifth_of_pytorchs_memory_at_most(dtype: torch.dtype, mask: str) -> None:
    if kernels.info().kernel == "portable":
        pytest.skip("portable operations keep the weights, as PyTorch does")
    query, key, value = (torch.randn(2, 1, 2048, 64).to(dtype).requires_grad_() for _ in range(3))
    grad = torch.randn(2, 1, 2048, 64).to(dtype)
    padding = torch.arange(2048) < torch.tensor([2000, 1500]).reshape(2, 1, 1, 1)
    attn_mask = {"none": None, "padding": padding, "numbers": torch.randn(2, 1, 1, 2048).to(dtype)}[mask]
    ours = peak(lambda: scaled_dot_product_attention(query, key, value, attn_mask, dropout_p=0.1), grad)
    pytorchs = peak(lambda: F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p=0.1), grad)
    assert 5 * ours <= pytorchs


@pytest.mark.parametrize("options", [{}, {"training": False}, {"is_causal": True}, {"attn_mask": torch.zeros(5, 5)}])
def test_autocast_computes_in_its_type_as_pytorchs(options: dict[str, Any]) -> None:
    query, key, value = (tensor.requires_grad_() for tensor in inputs(2, 3, 5, 8, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        out = scaled_dot_product_attention(query, key, value.bfloat16(), dropout_p=0.3, dropout_key=7, **options)
        wanted = F.scaled_dot_product_attention(query, key, value, dropout_p=0.3)
        out.float().sum().backward()  # as nobody should, but some do
    assert out.dtype == wanted.dtype == torch.bfloat16
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (query, key, value)]
    mask = {name: tensor.bfloat16() if name == "attn_mask" else tensor for name, tensor in options.items()}
    plain = scaled_dot_product_attention(*half, dropout_p=0.3, dropout_key=7, **mask)
    plain.float().sum().backward()
    assert torch.equal(out, plain)
    for found, one in zip((query, key, value), half, strict=True):
        assert found.grad is not None
        assert one.grad is not None
        torch.testing.assert_close(found.grad, one.grad.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 6, 8), (2, 0, 8), (2, 0, 5)),
        ((2, 0, 8), (2, 7, 8), (2, 7, 5)),
        ((2, 6, 8), (2, 7, 8), (2, 7, 0)),
        ((2, 6, 0), (2, 7, 0), (2, 7, 5)),
        ((0, 6, 8), (0, 7, 8), (0, 7, 5)),
    ],
)
def test_empty_axes(shapes: tuple[tuple[int, ...], ...], p: float) -> None:
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    out = scaled_dot_product_attention(query, key, value, dropout_p=p)
    assert out.shape == F.scaled_dot_product_attention(query, key, value).shape
    out.sum().backward()
    assert not out.isnan().any()
    assert query.grad is not None
    assert not query.grad.isnan().any()
