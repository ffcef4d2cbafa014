"""Multi-head attention: PyTorch's own without dropout, the formula with it, for all of its options."""

import functools
import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.nn import MultiheadAttention
from tests.helpers.attention import BATCH, HEADS, KEY, KEYS, QUERIES, WIDTH, inputs, pair
from tests.helpers.contract import all_masks, chances, realised, scale

FLAGS = ("bias", "add_bias_kv", "add_zero_attn", "batch_first")


def weights_of(layer: torch.nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of every head and the attention weights, of dense batch-first inputs, by hand."""
    w, b = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = (
        (x @ weight.T + bias).view(*x.shape[:2], layer.num_heads, -1).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), w, b, strict=True)
    )
    return v, torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), -1)


def output_of(layer: torch.nn.MultiheadAttention, weights: Tensor, values: Tensor) -> Tensor:
    return (weights @ values).transpose(1, 2).flatten(-2) @ layer.out_proj.weight.T + layer.out_proj.bias


def test_it_is_pytorchs() -> None:
    ours, theirs = (inspect.signature(kind) for kind in (MultiheadAttention, torch.nn.MultiheadAttention))
    positional = [p for p in ours.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs.parameters.values()]
    ours, theirs = (inspect.signature(kind.forward) for kind in (MultiheadAttention, torch.nn.MultiheadAttention))
    positional = [p for p in ours.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs.parameters.values()]
    assert isinstance(MultiheadAttention(8, 2), torch.nn.MultiheadAttention)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("flags", list(itertools.product((True, False), repeat=3)))
def test_it_has_pytorchs_parameters_and_state(flags: tuple[bool, ...], separate: bool) -> None:
    options = dict(zip(FLAGS, flags, strict=False)) | ({"kdim": 6, "vdim": 10} if separate else {})
    layers, states = [], []
    for kind in (MultiheadAttention, torch.nn.MultiheadAttention):
        torch.manual_seed(0)
        layers.append(kind(8, 2, 0.3, **options, dtype=torch.float64))
        states.append(torch.get_rng_state())
    ours, theirs = (layer.state_dict() for layer in layers)
    assert torch.equal(*states)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [name for name, _ in layers[0].named_parameters()] == [name for name, _ in layers[1].named_parameters()]
    layers[0].load_state_dict(theirs, strict=True)
    layers[1].load_state_dict(ours, strict=True)


def test_the_rate_has_pytorchs_name_too() -> None:
    layer = MultiheadAttention(8, 2, dropout=0.25)
    assert layer.p == layer.dropout == 0.25
    layer.dropout = 0.5
    assert layer.p == 0.5
    layer.p = 1
    assert layer.dropout == 1.0
    layer.follow()
    layer.dropout = 0.25
    assert layer.p == layer.dropout == 0.25
    for name in ("p", "dropout"):
        with pytest.raises(ArgumentError, match=rf"^MultiheadAttention: `{name}` must be a number in \[0, 1\], got 2"):
            setattr(layer, name, 2)
    assert layer.p == 0.25
    assert repr(layer).startswith("MultiheadAttention(\n  p=0.25\n")


@st.composite
def calls(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[Tensor, ...], dict[str, Any]]:
    """Options of a layer, inputs, and options of a call, for which every query has a key to attend to."""
    flag = st.booleans()
    built = {name: draw(flag) for name in FLAGS}
    is_batched, is_self, lengths = draw(flag), draw(flag), (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    batch, queries, keys = draw(st.integers(1, 3)), lengths[0], lengths[0] if is_self else lengths[1]
    widths = (WIDTH, WIDTH)
    if not is_self and draw(flag):
        built |= {"kdim": 6, "vdim": 10}
        widths = (6, 10)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def tensor(length: int, width: int) -> Tensor:
        x = torch.randn(batch, length, width, generator=generator)
        return (x if built["batch_first"] else x.transpose(0, 1)) if is_batched else x[0]

    query = tensor(queries, WIDTH)
    same = is_self or (widths == (WIDTH, WIDTH) and draw(flag))  # whether keys are values
    key = query if is_self else tensor(keys, widths[0])
    value = key if same else tensor(keys, widths[1])
    examples = batch if is_batched else 1
    kind = draw(st.sampled_from(["none", "shared", "causal", "of every head"]))
    mask = {
        "none": None,
        "shared": torch.rand(queries, keys, generator=generator) < 0.4,
        "causal": torch.ones(queries, keys, dtype=torch.bool).triu(1),
        "of every head": torch.rand(examples * HEADS, queries, keys, generator=generator) < 0.4,
    }[kind]
    padding = torch.rand(examples, keys, generator=generator) < 0.4 if draw(flag) else None
    masks = []
    for each in (mask, padding if is_batched or padding is None else padding[0]):
        if each is not None:
            each[..., 0] = False
        masks.append(each)
    if draw(flag):
        masks = [m if m is None else torch.randn(m.shape, generator=generator).masked_fill(m, -math.inf) for m in masks]
    called = {
        "attn_mask": masks[0], "key_padding_mask": masks[1], "need_weights": draw(flag),
        "average_attn_weights": draw(flag), "is_causal": kind == "causal" and masks[0].dtype == torch.bool,
    }  # fmt: skip
    return built, (query, key, value), called


def check_that_it_is_pytorchs_without_dropout(call: Any, records_gradients: bool) -> None:
    built, tensors, called = call
    ours, theirs = pair(0.4, **built)
    adds_keys = built["add_bias_kv"] or built["add_zero_attn"]  # which PyTorch's would hide, at the hint
    hint = called["is_causal"] and not adds_keys
    with torch.set_grad_enabled(records_gradients):
        want, want_weights = theirs.eval()(*tensors, **called | {"is_causal": hint})
        for layer in (ours.eval(), pair(0.0, **built)[0]):
            found, weights = layer(*tensors, **called)
            torch.testing.assert_close(found, want)
            assert (weights is None) == (want_weights is None)
            if weights is not None:
                torch.testing.assert_close(weights, want_weights)


@given(calls(), st.booleans())
@settings(deadline=None, max_examples=30)
def test_without_dropout_it_is_pytorchs(call: Any, records_gradients: bool) -> None:
    check_that_it_is_pytorchs_without_dropout(call, records_gradients)


@pytest.mark.slow
@pytest.mark.exhaustive
@given(calls(), st.booleans())
@settings(deadline=None, max_examples=1000)
def test_without_dropout_it_is_pytorchs_for_many_calls(call: Any, records_gradients: bool) -> None:
    check_that_it_is_pytorchs_without_dropout(call, records_gradients)


@given(calls(), st.sampled_from([0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=20)
def test_in_training_weights_are_dropped_at_the_documented_addresses(call: Any, p: float) -> None:
    built, tensors, called = call
    layer, theirs = pair(p, **built)
    is_batched = tensors[0].dim() == 3
    called |= {"need_weights": True, "average_attn_weights": False, "is_causal": False}
    _, whole = theirs.eval()(*tensors, **called)
    shape = whole.shape if is_batched else (1, *whole.shape)
    keep = torch.from_numpy(random.keep_mask(KEY, shape, p))
    output, weights = layer(*tensors, **called, dropout_key=KEY)
    want = torch.where(keep.view(whole.shape), whole * (scale(p) if p < 1 else 0), 0)
    torch.testing.assert_close(weights, want)
    averaged = layer(*tensors, **called | {"average_attn_weights": True}, dropout_key=KEY)[1]
    torch.testing.assert_close(averaged, want.mean(-3))
    alone, nothing = layer(*tensors, **called | {"need_weights": False}, dropout_key=KEY)
    torch.testing.assert_close(alone, output)
    assert nothing is None
    injected, _ = layer(*tensors, **called, dropout_mask=keep)
    assert torch.equal(injected, output)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_output_and_gradients_are_the_formula(need_weights: bool, batch_first: bool) -> None:
    layer, _ = pair(0.4, batch_first=batch_first, dtype=torch.float64)
    tensors = [x.requires_grad_() for x in inputs(torch.float64)]
    lying = tensors if batch_first else [x.transpose(0, 1) for x in tensors]
    found, _ = layer(*lying, need_weights=need_weights, dropout_key=KEY)
    found = found if batch_first else found.transpose(0, 1)
    values, weights = weights_of(layer, *tensors)
    keep = torch.from_numpy(random.keep_mask(KEY, (BATCH, HEADS, QUERIES, KEYS), 0.4))
    want = output_of(layer, torch.where(keep, weights * scale(0.4), 0), values)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)
    upstream = torch.linspace(-1, 1, want.numel(), dtype=torch.float64).view(want.shape)
    wrt = (*tensors, *layer.parameters())
    for one, other in zip(
        torch.autograd.grad(found, wrt, upstream), torch.autograd.grad(want, wrt, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.9])
def test_moments_over_all_masks(p: float) -> None:
    torch.manual_seed(0)
    layer = MultiheadAttention(3, 1, p, batch_first=True, dtype=torch.float64)
    query, key = torch.randn(1, 2, 3, dtype=torch.float64), torch.randn(1, 4, 3, dtype=torch.float64)
    masks = all_masks(8).view(-1, 1, 2, 4)
    query, key = (x.expand(len(masks), -1, -1) for x in (query, key))
    outputs, weights = layer(query, key, key, dropout_mask=masks)
    weight = chances(masks.flatten(1), p)
    with torch.no_grad():
        want, whole = layer.eval()(query, key, key)
        torch.testing.assert_close(torch.einsum("m,m...->...", weight, outputs), want[0], rtol=1e-12, atol=1e-13)
        rows = weights.sum(-1)
        mean = torch.einsum("m,m...->...", weight, rows)
        torch.testing.assert_close(mean, torch.ones_like(mean), rtol=1e-12, atol=0)
        variance = torch.einsum("m,m...->...", weight, (rows - 1).square())
        odds = realised(p) / (1 - realised(p))
        torch.testing.assert_close(variance, odds * whole[0].square().sum(-1), rtol=1e-12, atol=0)
    layer.train()
    (expected,) = torch.autograd.grad(torch.einsum("m,m...->...", weight, outputs).square().sum(), layer.in_proj_weight)
    (of_mean,) = torch.autograd.grad(layer.eval()(query[:1], key[:1], key[:1])[0].square().sum(), layer.in_proj_weight)
    torch.testing.assert_close(expected, of_mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("floats", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_query_without_keys_attends_to_nothing(training: bool, need_weights: bool, floats: bool) -> None:
    layer, theirs = pair(0.4, batch_first=True)
    tensors = [x.requires_grad_() for x in inputs()]
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[0], padding[1, 2] = True, True
    padding = torch.zeros(padding.shape).masked_fill(padding, -math.inf) if floats else padding
    output, weights = layer.train(training)(*tensors, key_padding_mask=padding, need_weights=need_weights)
    assert torch.equal(output[0], layer.out_proj.bias.expand(output[0].shape))
    if need_weights:
        assert torch.equal(weights[0], torch.zeros_like(weights[0]))
    if not training:
        known = theirs.eval()(*tensors, key_padding_mask=padding, need_weights=need_weights)[0]
        torch.testing.assert_close(output[1:], known[1:])
    gradients = torch.autograd.grad(output.sum(), (*tensors, *layer.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0].any()
    assert gradients[0][1].any()


@pytest.mark.parametrize("need_weights", [True, False])
def test_an_example_has_one_mask_whatever_the_batch(need_weights: bool) -> None:
    tensors = inputs()
    found = {}
    for batch_first in (True, False):
        layer, _ = pair(0.4, batch_first=batch_first)
        lying = tensors if batch_first else [x.transpose(0, 1) for x in tensors]
        output, _ = layer(*lying, need_weights=need_weights, dropout_key=KEY)
        found[batch_first] = output if batch_first else output.transpose(0, 1)
    torch.testing.assert_close(found[True], found[False])
    layer, _ = pair(0.4, batch_first=True)
    first, _ = layer(*(x[:2] for x in tensors), need_weights=need_weights, dropout_key=KEY)
    torch.testing.assert_close(first, found[True][:2])
    alone, _ = layer(*(x[0] for x in tensors), need_weights=need_weights, dropout_key=KEY)
    torch.testing.assert_close(alone, found[True][0])
    keys = torch.tensor([KEY, KEY + 1, KEY])
    own, _ = layer(*tensors, need_weights=need_weights, dropout_key=keys)
    again, _ = layer(*(x[2] for x in tensors), need_weights=need_weights, dropout_key=KEY)
    torch.testing.assert_close(own[0], alone)
    torch.testing.assert_close(own[2], again)


def test_evaluation_draws_nothing_and_training_draws_at_every_call() -> None:
    layer, _ = pair(0.4, batch_first=True)
    x = inputs()[0]
    state = torch.get_rng_state()
    for quiet in (layer.eval(), pair(0.0, batch_first=True)[0]):
        assert torch.equal(quiet(x, x, x)[0], quiet(x, x, x)[0])
        assert torch.equal(torch.get_rng_state(), state)
    for need_weights in (True, False):
        outputs = [layer.train()(x, x, x, need_weights=need_weights)[0] for _ in range(3)]
        assert not any(torch.equal(one, other) for one, other in itertools.combinations(outputs, 2))
        torch.manual_seed(3)
        first = layer(x, x, x, need_weights=need_weights)[0]
        torch.manual_seed(3)
        assert torch.equal(layer(x, x, x, need_weights=need_weights)[0], first)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("flags", list(itertools.product((True, False), repeat=3)))
def test_the_hint_that_a_mask_is_causal_changes_nothing(flags: tuple[bool, ...], p: float) -> None:
    layer, _ = pair(p, **dict(zip(FLAGS[1:], flags, strict=True)))
    x, mask = inputs()[0], torch.nn.Transformer.generate_square_subsequent_mask(QUERIES if layer.batch_first else BATCH)
    for training, need_weights in itertools.product((True, False), repeat=2):
        call = functools.partial(layer.train(training), attn_mask=mask, need_weights=need_weights, dropout_key=KEY)
        torch.testing.assert_close(call(x, x, x, is_causal=True)[0], call(x, x, x)[0])


def test_the_switch_overrides_train_and_eval() -> None:
    layer, theirs = pair(0.4, batch_first=True)
    x = inputs()[0]
    training, evaluation = layer(x, x, x, dropout_key=KEY)[0], theirs.eval()(x, x, x)[0]
    layer.eval().switch = "on"
    with torch.no_grad():  # where PyTorch would take its fused kernel
        assert torch.equal(layer(x, x, x, dropout_key=KEY)[0], training)
    layer.train().switch = "off"
    torch.testing.assert_close(layer(x, x, x)[0], evaluation)


def test_a_generator_of_its_own() -> None:
    x = inputs()[0]
    for need_weights in (True, False):
        layers = []
        for _ in range(2):
            torch.manual_seed(0)
            layers.append(MultiheadAttention(WIDTH, HEADS, 0.4, generator=torch.Generator().manual_seed(4)))
        state = torch.get_rng_state()
        assert torch.equal(
            layers[0](x, x, x, need_weights=need_weights)[0], layers[1](x, x, x, need_weights=need_weights)[0]
        )
        assert torch.equal(torch.get_rng_state(), state)
        before = layers[0].generator.get_state()
        layers[0](x, x, x, need_weights=need_weights, dropout_key=KEY)
        assert torch.equal(layers[0].generator.get_state(), before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_taken_where_pytorch_takes_them_and_refused_elsewhere() -> None:
    ours, theirs = pair(0.4, batch_first=True)
    x = torch.nested.nested_tensor([torch.randn(n, WIDTH) for n in (2, 4)])
    with torch.no_grad():
        found, want = (layer.eval()(x, x, x, need_weights=False)[0] for layer in (ours, theirs))
        for one, other in zip(found.unbind(), want.unbind(), strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(ArgumentTypeError) as caught:
        ours.train()(x, x, x)
    assert str(caught.value) == (
        "MultiheadAttention: `query` must be a dense tensor, not a nested one, got torch.strided (layout). Pad it to "
        "one length, and pass key_padding_mask."
    )


def test_sources_of_noise_are_not_mixed() -> None:
    layer, x = MultiheadAttention(8, 2, 0.4, batch_first=True), inputs()[0]
    mask = torch.ones(BATCH, HEADS, QUERIES, QUERIES, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="`dropout_mask` must be left out where `dropout_key` is given"):
        layer(x, x, x, dropout_key=3, dropout_mask=mask)
