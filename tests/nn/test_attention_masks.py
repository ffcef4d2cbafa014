"""Masks of the layers that attend: given and returned as documented, and the moments over all of them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.nn import Dropout, LockedDropout, MultiheadAttention, TransformerEncoderLayer
from tests.helpers.contract import all_masks, chances, realised, scale

KEY = 0x720F_0000_1234_5678
BATCH, LENGTH, WIDTH, HEADS, HIDDEN = 3, 5, 8, 2, 16
PLACES = ("self_attn", "dropout1", "dropout", "dropout2")
RATES = {"attention_p": 0.4, "sublayer_p": 0.3, "feedforward_p": 0.2}
RATE_OF = dict(zip(PLACES, (0.4, 0.3, 0.2, 0.3), strict=True))
SHAPES = {
    "self_attn": (BATCH, HEADS, LENGTH, LENGTH),
    "dropout1": (BATCH, LENGTH, WIDTH),
    "dropout": (BATCH, LENGTH, HIDDEN),
    "dropout2": (BATCH, LENGTH, WIDTH),
}
PADDING = torch.arange(LENGTH) >= torch.tensor([5, 3, 1])[:, None]
MULTIHEAD, ENCODER = MultiheadAttention, TransformerEncoderLayer


def made(kind: Any, *sizes: Any, **options: Any) -> Any:
    """A layer in float64 made from the one seed, with parameters of which none is 0 or 1."""
    torch.manual_seed(0)
    layer = kind(*sizes, **{"batch_first": True, "dtype": torch.float64} | options)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return layer


def encoder(**options: Any) -> TransformerEncoderLayer:
    return made(ENCODER, WIDTH, HEADS, HIDDEN, **RATES | options)


def data(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape or (BATCH, LENGTH, WIDTH), dtype=torch.float64, generator=generator)


def defined(place: str, **options: Any) -> Tensor:
    key = random.field(KEY, PLACES.index(place))
    return torch.from_numpy(random.keep_mask(key, SHAPES[place], RATE_OF[place], **options))


def close(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", torch.tanh], ids=["fused", "plain"])
def test_an_encoder_layers_masks_are_the_definition(norm_first: bool, activation: Any) -> None:
    layer, x = encoder(norm_first=norm_first, activation=activation), data()
    out, masks = layer(x, src_key_padding_mask=PADDING, key=KEY, return_masks=True)
    assert list(masks) == [*PLACES]
    assert all(torch.equal(masks[place], defined(place)) for place in PLACES)
    close(layer(x, src_key_padding_mask=PADDING, key=KEY), out)
    state = torch.get_rng_state()
    assert torch.equal(layer(x, src_key_padding_mask=PADDING, masks=masks), out)
    assert torch.equal(torch.get_rng_state(), state)
    for place in PLACES:
        close(layer(x, src_key_padding_mask=PADDING, key=KEY, masks={place: masks[place]}), out)
        turned = masks | {place: ~masks[place]}
        other, returned = layer(x, src_key_padding_mask=PADDING, masks=turned, return_masks=True)
        assert not torch.equal(other, out)
        assert all(torch.equal(returned[name], turned[name]) for name in PLACES)


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_layers_masks_lie_batch_first(norm_first: bool) -> None:
    layer, x = encoder(norm_first=norm_first), data()
    out, masks = layer(x, key=KEY, return_masks=True)
    turned, same = encoder(norm_first=norm_first, batch_first=False)(x.transpose(0, 1), key=KEY, return_masks=True)
    close(turned.transpose(0, 1), out)
    alone, own = layer(x[0], key=KEY, return_masks=True)
    close(alone, out[0])
    for place in PLACES:
        assert torch.equal(same[place], masks[place])
        assert torch.equal(own[place], masks[place][:1])
    close(layer(x[1], masks={place: masks[place][1:2] for place in PLACES}), out[1])
    shared = {place: masks[place][:1, :1] for place in PLACES}
    whole = {place: mask.expand(SHAPES[place]) for place, mask in shared.items()}
    assert torch.equal(layer(x, masks=shared), layer(x, masks=whole))


def test_evaluation_of_an_encoder_layer_returns_masks_that_drop_nothing() -> None:
    layer, x = encoder().eval(), data()
    state, want = torch.get_rng_state(), layer(x)
    given = {place: ~defined(place) for place in PLACES}
    for options in ({}, {"masks": given}):
        out, masks = layer(x, return_masks=True, **options)
        close(out, want)
        close(layer(x, **options), want)
        assert {place: tuple(mask.shape) for place, mask in masks.items()} == SHAPES
        assert all(mask.all() for mask in masks.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_of_an_encoder_layer_at_rates_of_zero_and_one() -> None:
    x, masks = data(), {place: defined(place) for place in PLACES}
    without = encoder(attention_p=0.0, sublayer_p=0.0, feedforward_p=0.0, norm_first=True)
    out = without(x, masks=masks | {"dropout2": torch.zeros(1, 1, 1, dtype=torch.bool)})
    kept = masks["dropout1"]
    assert torch.equal(out[~kept], x[~kept])  # nothing is scaled, but what the mask drops is dropped
    assert (out[kept] != x[kept]).all()
    assert all(mask.all() for mask in without(x, return_masks=True)[1].values())
    whole = encoder(sublayer_p=1.0, norm_first=True)
    assert torch.equal(whole(x, masks={place: mask | True for place, mask in masks.items()}), x)


def test_streams_of_an_encoder_layer() -> None:
    layer, x = encoder(), data()
    first, masks = layer(x, key=KEY, stream=1, return_masks=True)
    assert all(torch.equal(masks[place], defined(place, stream=1)) for place in PLACES)
    close(layer(x, key=KEY, stream=1), first)
    assert not torch.equal(layer(x, key=KEY), first)
    streams = torch.tensor([0, 1, 0])  # a slice with a stream of its own has the mask of a sequence alone
    want = torch.stack([layer(row, key=KEY, stream=int(stream)) for row, stream in zip(x, streams, strict=True)])
    close(layer(x, key=KEY, stream=streams), want)
    close(layer(x, key=torch.tensor([KEY] * 3), stream=streams), want)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_sequences_have_the_masks_of_the_padded_batch() -> None:
    layer, x, lengths = encoder(), data(), (~PADDING).sum(1).tolist()
    want, masks = layer(x, src_key_padding_mask=PADDING, key=KEY, return_masks=True)
    nested = torch.nested.nested_tensor([row[:n] for row, n in zip(x, lengths, strict=True)])
    found, drawn = layer(nested, key=KEY, return_masks=True)
    assert all(torch.equal(drawn[place], masks[place]) for place in PLACES)
    for each in (found, layer(nested, masks=masks)):
        for row, whole, length in zip(each.unbind(), want, lengths, strict=True):
            close(row, whole[:length])
    evaluated, masks = layer.eval()(nested, return_masks=True)
    assert all(mask.all() for mask in masks.values())
    close(evaluated.unbind()[1], layer(x, src_key_padding_mask=PADDING)[1, : lengths[1]])


def test_what_stands_in_the_place_of_dropout_has_a_mask_if_it_is_ours() -> None:
    layer, x = encoder(), data()
    layer.dropout1, layer.dropout2 = LockedDropout(0.3), Dropout(0.3, broadcast_dims=1)
    out, masks = layer(x, key=KEY, return_masks=True)
    assert list(masks) == ["self_attn", "dropout", "dropout2"]
    assert masks["dropout2"].shape == (BATCH, 1, WIDTH)
    close(layer(x, key=KEY, masks=masks), out)
    with pytest.raises(
        ArgumentError, match=r"got 'dropout1' \(str\)\. They are \['self_attn', 'dropout', 'dropout2'\]\.$"
    ):
        layer(x, masks={"dropout1": defined("dropout1")})
    layer.self_attn = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    assert list(layer(x, key=KEY, return_masks=True)[1]) == ["dropout", "dropout2"]


@pytest.mark.slow
def test_compiled_code_takes_and_returns_masks() -> None:
    layer, x, graphs = encoder(), data(), CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    out, masks = compiled(x, key=torch.tensor(KEY), return_masks=True)
    close(out, layer(x, key=KEY))
    assert all(torch.equal(masks[place], defined(place)) for place in PLACES)
    close(compiled(x, masks=masks), out)
    assert graphs.frame_count == 2
    attention = made(MULTIHEAD, WIDTH, HEADS, 0.4)
    compiled = torch.compile(attention, backend=graphs, fullgraph=True)
    found, _, mask = compiled(x, x, x, dropout_key=torch.tensor(KEY), return_dropout_mask=True)
    close(found, attention(x, x, x, dropout_key=KEY)[0])
    assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, SHAPES["self_attn"], 0.4)))


def test_vmap_with_masks() -> None:
    layer, several = encoder(), torch.stack([data(), -data()])
    masks = {place: defined(place) for place in PLACES}
    found = torch.func.vmap(lambda x: layer(x, masks=masks))(several)
    for one, x in zip(found, several, strict=True):
        close(one, layer(x, masks=masks))


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_returns_its_mask(need_weights: bool) -> None:
    layer, x = made(MULTIHEAD, WIDTH, HEADS, 0.4), data()
    options = {"need_weights": need_weights, "return_dropout_mask": True}
    for stream in (0, 1):
        out, weights, mask = layer(x, x, x, dropout_key=KEY, stream=stream, **options)
        assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, SHAPES["self_attn"], 0.4, stream=stream)))
        assert (weights is not None) == need_weights
        close(layer(x, x, x, dropout_key=KEY, stream=stream, need_weights=False)[0], out)
        assert torch.equal(layer(x, x, x, dropout_mask=mask)[0], out)
        assert torch.equal(layer(x[0], x[0], x[0], dropout_key=KEY, stream=stream, **options)[2], mask[:1])
    keys, streams = torch.tensor([KEY, KEY, KEY]), torch.tensor([0, 1, 0])
    found = layer(x[[0, 0, 0]], x[[0, 0, 0]], x[[0, 0, 0]], dropout_key=keys, stream=streams, **options)[2]
    assert torch.equal(found[1], mask[0])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    state = torch.get_rng_state()
    for quiet in (layer.eval(), made(MULTIHEAD, WIDTH, HEADS, 0.0)):
        out, _, mask = quiet(x, x, x, **options)
        close(out, layer(x, x, x)[0])
        assert mask.shape == SHAPES["self_attn"]
        assert mask.all()
    assert torch.equal(torch.get_rng_state(), state)


# What follows enumerates masks: r is the realised rate, and scale is 1 / (1 - r).


def check_mean(chance: Tensor, outputs: Tensor, mean: Tensor, wrt: list[Tensor]) -> None:
    """Compare the mean over all masks, and its gradients, with a closed form and its gradients."""
    found = torch.einsum("m,m...->...", chance, outputs)
    close(found, mean)
    upstream = torch.linspace(-1, 1, mean.numel(), dtype=torch.float64).view(mean.shape)
    gradients = (torch.autograd.grad(each, wrt, upstream, materialize_grads=True) for each in (found, mean))
    for one, other in zip(*gradients, strict=True):
        close(one, other)


def check_variance(chance: Tensor, outputs: Tensor, mean: Tensor, variance: Tensor) -> None:
    found = torch.einsum("m,m...->...", chance, (outputs - mean).square())
    torch.testing.assert_close(found, variance, rtol=1e-12, atol=1e-15)


def contributions(attention: MultiheadAttention, x: Tensor) -> Tensor:
    """What each weight contributes to the output of a sequence: (heads, queries, keys, width)."""
    whole = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for part in whole.chunk(3, -1))
    weights = torch.softmax(q @ k.mT / q.size(-1) ** 0.5, -1)
    columns = attention.out_proj.weight.unflatten(1, (attention.num_heads, -1))
    return torch.einsum("hqk,hkd,whd->hqkw", weights, v, columns)


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.9])
def test_moments_of_attention_over_all_masks(p: float) -> None:
    layer = made(MULTIHEAD, 4, 2, p)
    x = data(2, 4).requires_grad_()
    masks = all_masks(8).view(-1, 2, 2, 2)
    chance, r = chances(masks.flatten(1), p), realised(p)
    many = x.expand(len(masks), -1, -1)
    outputs = layer(many, many, many, dropout_mask=masks)[0]
    parts = contributions(layer, x)
    mean = parts.sum((0, 2)) + layer.out_proj.bias
    check_mean(chance, outputs, mean, [x, *layer.parameters()])
    check_variance(chance, outputs, mean, r / (1 - r) * parts.square().sum((0, 2)))
    close(layer.eval()(x, x, x)[0], mean)


def network(layer: TransformerEncoderLayer, h: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden units of a layer that normalises first, and what the network adds to the residual without dropout."""
    hidden = layer.activation(layer.linear1(layer.norm2(h)))
    return hidden, layer.linear2(hidden)


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.9])
def test_moments_over_all_masks_of_the_attending_half(p: float) -> None:
    """Weights and what attention adds are dropped together; the mask of the other half drops all of it."""
    layer = made(ENCODER, 2, 1, 3, norm_first=True, attention_p=p, sublayer_p=0.3)
    x = data(2, 2).requires_grad_()
    bits = all_masks(8)
    of_weights, of_sums = bits[:, :4].view(256, 1, 2, 2), bits[:, 4:].view(256, 2, 2)
    chance = chances(of_weights.flatten(1), p) * chances(of_sums.flatten(1), 0.3)
    masks = {"self_attn": of_weights, "dropout1": of_sums, "dropout2": torch.zeros(1, 1, 1, dtype=torch.bool)}
    outputs = layer(x.expand(256, -1, -1), masks=masks)
    parts = contributions(layer.self_attn, layer.norm1(x))
    added = parts.sum((0, 2)) + layer.self_attn.out_proj.bias
    half = [*layer.self_attn.parameters(), *layer.norm1.parameters()]
    check_mean(chance, outputs, x + added, [x, *half])
    r, of_added = realised(p), (realised(0.3), scale(0.3))
    inner = r / (1 - r) * parts.square().sum((0, 2))
    check_variance(chance, outputs, x + added, inner * of_added[1] + added.square() * of_added[0] * of_added[1])


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.9])
@pytest.mark.parametrize("activation", ["gelu", torch.tanh], ids=["gelu", "tanh"])
def test_moments_over_all_masks_of_the_network(p: float, activation: Any) -> None:
    """Hidden units and what the network adds are dropped together."""
    layer = made(ENCODER, 4, 1, 4, 0.0, activation, norm_first=True, feedforward_p=p, sublayer_p=0.3)
    x = data(1, 4).requires_grad_()
    of_hidden, of_sums = (masks.view(256, 1, 4) for masks in all_masks(8).split(4, 1))
    chance = chances(of_hidden.flatten(1), p) * chances(of_sums.flatten(1), 0.3)
    masks = {"dropout1": torch.ones(1, 1, 1, dtype=torch.bool), "dropout": of_hidden, "dropout2": of_sums}
    outputs = layer(x.expand(256, -1, -1), masks=masks)
    h = x + scale(0.3) * layer.self_attn(*[layer.norm1(x)] * 3)[0]
    hidden, added = network(layer, h)
    check_mean(chance, outputs, h + added, [x, *layer.parameters()])
    r, of_added = realised(p), (realised(0.3), scale(0.3))
    inner = r / (1 - r) * hidden.square() @ layer.linear2.weight.square().T
    check_variance(chance, outputs, h + added, inner * of_added[1] + added.square() * of_added[0] * of_added[1])


@pytest.mark.parametrize("norm_first", [True, False])
def test_all_masks_of_all_places_at_once(norm_first: bool) -> None:
    """Every output is the formula's, and so are the mean over all masks and its gradients."""
    layer = made(ENCODER, 3, 1, 3, activation="gelu", norm_first=norm_first, **RATES)
    x = data(1, 3).requires_grad_()
    sizes, shapes = (1, 3, 3, 3), ((1, 1, 1), (1, 3), (1, 3), (1, 3))
    masks = {
        place: part.view(-1, *shape)
        for place, part, shape in zip(PLACES, all_masks(10).split(sizes, 1), shapes, strict=True)
    }
    chance = torch.stack([chances(masks[place].flatten(1), p) for place, p in RATE_OF.items()]).prod(0)
    close(chance.sum(), torch.ones((), dtype=torch.float64))
    outputs = layer(x.expand(1024, -1, -1), masks=masks)

    def dropped(x: Tensor, place: str) -> Tensor:
        return torch.where(masks[place].view(-1, 1, x.size(-1)), x * scale(RATE_OF[place]), 0)

    def attention(x: Tensor) -> Tensor:  # of one query and key, whose weight is 1
        attention = layer.self_attn
        value = functional.linear(x, attention.in_proj_weight[6:], attention.in_proj_bias[6:])
        return dropped(attention.out_proj(dropped(torch.ones(1, 1).double(), "self_attn") * value), "dropout1")

    def fed(x: Tensor) -> Tensor:
        return dropped(layer.linear2(dropped(layer.activation(layer.linear1(x)), "dropout")), "dropout2")

    if norm_first:
        h = x + attention(layer.norm1(x))
        want = h + fed(layer.norm2(h))
        # Given the first half, the second has the mean that it has without dropout.
        close(*(torch.einsum("m,m...->...", chance, each) for each in (outputs, h + network(layer, h)[1])))
    else:
        h = layer.norm1(x + attention(x))
        want = layer.norm2(h + fed(h))
    close(outputs, want)
    check_mean(chance, outputs, torch.einsum("m,m...->...", chance, want), [x, *layer.parameters()])
