"""Passes along axis 0: every example has in each of them what a call with the number of the pass draws for it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dropkit.functional as ours
from dropkit import random
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.functional.examples import NumberedKey, Runs
from dropkit.nn import GRU, LSTM, TransformerEncoderLayer

KEY = 0x5EED_0000_0000_0009
STREAMS = (3, 1, 2**30 - 1)
ORDERS: dict[str, Runs] = {
    "in order": ((0, 4),),
    "from 3 on": ((3, 4),),
    "unordered": ((5, 1), (0, 2), (9, 1)),
    "one for all": ((2, 1),) * 4,
    "twice two": ((6, 2), (6, 2)),
}
SCALE = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
WEIGHT = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
BIAS = torch.tensor([0.5, -0.5, 1.0, 2.0], dtype=torch.float64)
TOKENS = torch.arange(5) % 3


def of_maps(name: str) -> Callable[..., Any]:
    axes = 2 if name.endswith("1d") else 3
    return lambda x, **how: getattr(ours, name)(x.reshape(-1, 5, 3, *(1,) * (axes - 2)), 0.5, **how)


def of_blocks(dims: int) -> Callable[..., Any]:
    shape = (1,) * (dims - 1) + (15,)
    return lambda x, **how: getattr(ours, f"drop_block{dims}d")(x.reshape(-1, 1, *shape), 0.4, block_size=3, **how)


def attention(x: Tensor, key: Any, stream: Any = 0, **more: Any) -> Any:
    heads = x.unsqueeze(1).expand(-1, 2, -1, -1)
    return ours.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5, dropout_key=key, stream=stream, **more)


def embedded(x: Tensor, **how: Any) -> Any:
    return ours.embedding_dropout(x, TOKENS.expand(len(x), -1), 3, 0.5, return_mask=True, **how)


# Of batches (examples, 5, 3).
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dropout": lambda x, **how: ours.dropout(x, 0.3, **how),
    "dropout, mask": lambda x, **how: ours.dropout(x, 0.3, return_mask=True, **how),
    "dropout, shared": lambda x, **how: ours.dropout(x, 0.5, broadcast_dims=1, return_mask=True, **how),
    "dropout, unscaled": lambda x, **how: ours.dropout(x, 0.5, scale_at="eval", **how),
    "dropout, in place": lambda x, **how: ours.dropout(x.clone(), 0.5, inplace=True, **how),
    "dropout, half": lambda x, **how: ours.dropout(x.half(), 0.5, **how),
    "dropout, complex": lambda x, **how: ours.dropout(x.to(torch.complex128), 0.5, **how),
    "dropout, other strides": lambda x, **how: ours.dropout(x.transpose(1, 2), 0.5, **how),
    "dropout, of one axis": lambda x, **how: ours.dropout(x[:, 0, 0].contiguous(), 0.5, **how),
    "dropout1d": of_maps("dropout1d"),
    "dropout2d": of_maps("dropout2d"),
    "locked_dropout": lambda x, **how: ours.locked_dropout(x, 0.5, **how),
    "alpha_dropout": lambda x, **how: ours.alpha_dropout(x, 0.5, return_mask=True, **how),
    "feature_alpha_dropout": lambda x, **how: ours.feature_alpha_dropout(x, 0.5, **how),
    "drop_path": lambda x, **how: ours.drop_path(x, 0.5, **how),
    "skip_path": lambda x, **how: ours.skip_path(torch.tanh, x, 0.5, **how),
    "zoneout": lambda x, **how: ours.zoneout(x, -x, 0.5, **how),
    "gaussian_dropout": lambda x, **how: ours.gaussian_dropout(x, 0.5, return_noise=True, **how),
    "gaussian_dropout, alone": lambda x, **how: ours.gaussian_dropout(x, 0.5, **how),
    "concrete_dropout": lambda x, **how: ours.concrete_dropout(x, SCALE, broadcast_dims=-1, **how),
    "variational_dropout": lambda x, **how: ours.variational_dropout(x, SCALE, **how),
    "local_reparameterization": lambda x, **how: ours.local_reparameterization(
        F.linear, x, WEIGHT, WEIGHT.square(), BIAS, **how
    ),
    "dropout_add": lambda x, **how: ours.dropout_add(x, 2 * x, 0.5, **how),
    "dropout_add_layer_norm": lambda x, **how: ours.dropout_add_layer_norm(x, 2 * x, SCALE, p=0.5, **how),
    "dropout_add_rms_norm, sums": lambda x, **how: ours.dropout_add_rms_norm(x, 2 * x, p=0.5, prenorm=True, **how),
    "activation_dropout": lambda x, **how: ours.activation_dropout(x, "gelu", bias=SCALE, p=0.5, **how),
    "word_dropout": lambda x, **how: ours.word_dropout(x, 0.5, return_mask=True, **how),
    "embedding_dropout": embedded,
    "drop_connect": lambda x, **how: ours.drop_connect(x, WEIGHT, BIAS, **how),
    "drop_connect, masks": lambda x, **how: ours.drop_connect(x, WEIGHT, BIAS, return_mask=True, **how),
    "drop_connect, rows": lambda x, **how: ours.drop_connect(x[:, 0], WEIGHT, BIAS, **how),
    "drop_connect, rows without a bias": lambda x, **how: ours.drop_connect(x[:, 0], WEIGHT, **how),
    "drop_connect_inference": lambda x, **how: ours.drop_connect_inference(
        x, WEIGHT, BIAS, activation=torch.tanh, samples=9, **how
    ),
    "drop_block1d": of_blocks(1),
    "drop_block2d": of_blocks(2),
    "drop_block3d": of_blocks(3),
    "attention": attention,
    "attention, masks": lambda x, **how: attention(x, return_dropout_mask=True, **how),
}
# Those that scale by what is kept of the whole batch, unless it is numbered.
SCALED = ("drop_block1d", "drop_block2d", "drop_block3d")


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def several(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def ids(runs: Runs) -> list[int]:
    return [first + i for first, length in runs for i in range(length)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_example_has_what_a_call_of_the_pass_draws_for_it(name: str, order: str) -> None:
    function, runs, x = FUNCTIONS[name], ORDERS[order], numbers(len(STREAMS), 4, 5, 3)
    together = several(function(x.flatten(0, 1), key=NumberedKey(KEY, runs, STREAMS)))
    for number, stream in enumerate(STREAMS):
        alone = several(function(x[number], key=NumberedKey(KEY, runs, (stream,))))
        batch = torch.zeros(10, 5, 3, dtype=x.dtype)
        batch[ids(runs)] = x[number]  # of repeated examples the last one
        counted = {"key": KEY, "stream": stream}
        if name in SCALED:
            counted = {"key": NumberedKey(KEY, ((0, 10),)), "stream": stream}
        whole = several(function(batch, **counted))
        for found, wanted, full in zip(together, alone, whole, strict=True):
            assert found.shape == (len(STREAMS) * wanted.size(0), *wanted.shape[1:])
            part = found.unflatten(0, (len(STREAMS), -1))[number]
            torch.testing.assert_close(part, wanted, rtol=1e-12, atol=1e-12)
            if len(set(ids(runs))) == 4:
                torch.testing.assert_close(part, full[ids(runs)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_pass_without_numbers_is_the_call_with_its_stream(name: str) -> None:
    function, x = FUNCTIONS[name], numbers(4, 5, 3)
    found = several(function(x, key=NumberedKey(KEY, (), (7,))))
    for one, wanted in zip(found, several(function(x, key=KEY, stream=7)), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[0], several(function(x, key=NumberedKey(KEY, (), (8,))))[0])


@pytest.mark.parametrize("order", ORDERS)
def test_plain_dropout_has_the_masks_of_the_definition_and_their_gradients(order: str) -> None:
    runs, x = ORDERS[order], numbers(12, 5, 3).requires_grad_()
    whole = [random.keep_mask(KEY, (10, 5, 3), 0.5, stream=stream)[ids(runs)] for stream in STREAMS]
    kept = torch.cat([torch.from_numpy(each) for each in whole])
    found, mask = ours.dropout(x, 0.5, key=NumberedKey(KEY, runs, STREAMS), return_mask=True)
    assert torch.equal(mask, kept)
    wanted = torch.where(kept, 2 * x, 0.0)
    for _ in range(2):  # the result, then its gradient
        assert torch.equal(found, wanted)
        sums = (each.square().sum() for each in (found, wanted))
        found, wanted = (torch.autograd.grad(each, x, create_graph=True)[0] for each in sums)


def test_examples_of_a_pass_that_begin_at_0_are_the_whole_mask() -> None:
    x = numbers(4, 5, 3)
    for stream in STREAMS:
        mask = ours.dropout(x, 0.5, key=NumberedKey(KEY, ((0, 4),), (stream,)), return_mask=True)[1]
        assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, (4, 5, 3), 0.5, stream=stream)))


@pytest.mark.parametrize("order", ORDERS)
def test_rates_of_every_row(order: str) -> None:
    runs, x, rates = ORDERS[order], numbers(12, 5, 3), torch.linspace(0.1, 0.9, 12, dtype=torch.float64)
    for function in (ours.dropout, ours.alpha_dropout, ours.gaussian_dropout, ours.zoneout):
        given: Any = (x, -x) if function is ours.zoneout else (x,)
        found = function(*given, rates, key=NumberedKey(KEY, runs, STREAMS))
        for number, stream in enumerate(STREAMS):
            rows = slice(4 * number, 4 * number + 4)
            key = NumberedKey(KEY, runs, (stream,))
            alone = function(*(each[rows] for each in given), rates[rows], key=key)
            torch.testing.assert_close(found[rows], alone, rtol=1e-12, atol=1e-12)
    connected = ours.drop_connect(x, WEIGHT, None, rates, key=NumberedKey(KEY, runs, STREAMS))
    alone = ours.drop_connect(x[4:8], WEIGHT, None, rates[4:8], key=NumberedKey(KEY, runs, STREAMS[1:2]))
    torch.testing.assert_close(connected[4:8], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "name", ["attention", "drop_connect", "drop_connect, rows", "gaussian_dropout, alone", "alpha_dropout"]
)
def test_gradients_are_those_of_the_passes(name: str, order: str) -> None:
    function, runs, x = FUNCTIONS[name], ORDERS[order], numbers(12, 5, 3).requires_grad_()
    found = several(function(x, key=NumberedKey(KEY, runs, STREAMS)))[0]
    parts = [
        several(function(part, key=NumberedKey(KEY, runs, (stream,))))[0]
        for part, stream in zip(x.split(4), STREAMS, strict=True)
    ]
    gradients = [torch.autograd.grad(each.square().sum(), x)[0] for each in (found, torch.cat(parts))]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_that_is_computed_in_parts_and_kept_for_no_gradient(is_causal: bool) -> None:
    x = numbers(12, 3, 70, 8)
    for runs in ORDERS.values():
        key = NumberedKey(KEY, runs, STREAMS)
        found = ours.scaled_dot_product_attention(x, x, x, dropout_p=0.5, dropout_key=key, is_causal=is_causal)
        kept = [random.keep_mask(KEY, (10, 3, 70, 70), 0.5, stream=stream)[ids(runs)] for stream in STREAMS]
        mask = torch.cat([torch.from_numpy(each) for each in kept])
        wanted = ours.scaled_dot_product_attention(x, x, x, dropout_p=0.5, dropout_mask=mask, is_causal=is_causal)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


NETWORKS: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: LSTM(3, 4, num_layers=2, dropout=0.5, recurrent_p=0.5, batch_first=True),
    "GRU": lambda: GRU(3, 4, num_layers=2, dropout=0.5, zoneout=0.3, batch_first=True),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, order: str) -> None:
    torch.manual_seed(0)
    network, runs, x = NETWORKS[name]().double(), ORDERS[order], numbers(12, 5, 3)
    found = network(x, key=NumberedKey(KEY, runs, STREAMS))[0]
    for part, stream, own in zip(x.split(4), STREAMS, found.split(4), strict=True):
        alone = network(part, key=NumberedKey(KEY, runs, (stream,)))[0]
        torch.testing.assert_close(own, alone, rtol=1e-12, atol=1e-12)
        whole = network(part, key=NumberedKey(KEY, (), (stream,)))[0]
        torch.testing.assert_close(whole, network(part, key=KEY, stream=stream)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_an_encoder_whose_places_are_fields_of_one_key(order: str) -> None:
    torch.manual_seed(0)
    layer, runs, x = TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True).double(), ORDERS[order], numbers(12, 5, 8)
    found = layer(x, key=NumberedKey(KEY, runs, STREAMS))
    for part, stream, own in zip(x.split(4), STREAMS, found.split(4), strict=True):
        alone = layer(part, key=NumberedKey(KEY, runs, (stream,)))
        torch.testing.assert_close(own, alone, rtol=1e-12, atol=1e-12)
        whole = layer(part, key=NumberedKey(KEY, (), (stream,)))
        torch.testing.assert_close(whole, layer(part, key=KEY, stream=stream), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    parts = [numbers(length, 3) for length in (3, 5, 2, 4)] * len(STREAMS)
    for runs in ORDERS.values():
        x = torch.nested.nested_tensor(parts, layout=layout)
        found = ours.dropout(x, 0.5, key=NumberedKey(KEY, runs, STREAMS)).unbind()
        places = [(stream, number) for stream in STREAMS for number in ids(runs)]
        for part, own, (stream, number) in zip(parts, found, places, strict=True):
            place: Any = {"offset": (number, 0, 0), "full_shape": (number + 1, 2**32, 3), "stream": stream}
            kept = torch.from_numpy(random.keep_mask(KEY, (1, *part.shape), 0.5, **place)[0])
            assert torch.equal(own, torch.where(kept, 2 * part, 0.0))
        whole = ours.dropout(x, 0.5, key=NumberedKey(KEY, (), (7,))).unbind()
        for own, wanted in zip(whole, ours.dropout(x, 0.5, key=KEY, stream=7).unbind(), strict=True):
            assert torch.equal(own, wanted)


SHARED: dict[str, Callable[[Tensor, Any], Any]] = {
    "axis 0 of dropout": lambda x, key: ours.dropout(x, 0.5, broadcast_dims=(0, 1), key=key),
    "a path of the whole batch": lambda x, key: ours.drop_path(x, 0.5, mode="batch", key=key),
    "a locked mask along axis 0": lambda x, key: ours.locked_dropout(x, 0.5, batch_first=False, key=key),
    "relaxed": lambda x, key: ours.concrete_dropout(x, SCALE, broadcast_dims=0, key=key),
    "word types": lambda x, key: ours.embedding_dropout(x, TOKENS.expand(len(x), -1), 3, 0.5, per="batch", key=key),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_examples_share_is_drawn_in_one_pass_alone(name: str) -> None:
    x = numbers(4, 5, 3)
    found = SHARED[name](x, NumberedKey(KEY, ((2, 4),), (7,)))
    assert torch.equal(found, SHARED[name](x, NumberedKey(KEY, (), (7,))))
    with pytest.raises(UnsupportedError, match="all examples of a pass share this noise"):
        SHARED[name](x, NumberedKey(KEY, ((0, 2),), (1, 2)))


def test_a_key_keeps_its_numbers() -> None:
    key = NumberedKey(KEY, ((2, 4),), (1, 2))
    for other in (pickle.loads(pickle.dumps(key)), copy.deepcopy(key)):  # noqa: S301
        assert (type(other), other, other.runs, other.streams) == (NumberedKey, KEY, ((2, 4),), (1, 2))
    assert (key.field(3), key.field(3).streams) == (random.field(KEY, 3), (1, 2))
    assert NumberedKey(KEY, ()).streams == (0,)


def test_bad_passes() -> None:
    x = numbers(4, 5, 3)
    for streams in ((), (1, 2)):
        with pytest.raises(ArgumentError, match="NumberedKey: `streams` must be one number of a pass"):
            NumberedKey(KEY, (), streams)
    for key in (NumberedKey(KEY, ((0, 4),), (2,)), NumberedKey(KEY, ((0, 2),), (1, 2))):
        with pytest.raises(ArgumentError, match="dropout: `stream` must be 0 in passes that are numbered"):
            ours.dropout(x, 0.5, key=key, stream=3)
    with pytest.raises(ArgumentError, match="of 6 examples along axis 0"):
        ours.dropout(x, 0.5, key=NumberedKey(KEY, ((0, 2),), (1, 2, 3)))
