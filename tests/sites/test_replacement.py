"""Any call that draws dropout, on dropkit's own operations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import dropkit.functional as ours
from dropkit import random
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.sites.calls.functions import FUNCTIONS, Call, find_call
from dropkit.sites.calls.replacement import replaced
from tests.helpers.stock import with_masks

P = 0.3


def call_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    call = find_call(function, args, kwargs)
    assert call is not None
    return call


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def heads(**given: Any) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """A call of multi-head attention as a module makes it: 3 examples, 5 queries, 4 keys, 2 heads of width 4."""
    options = {"bias_kv": False, "zero": False, "batched": True, "separate": False} | given
    batch = (3,) if options["batched"] else ()
    query, keys = x(5, *batch, 8), x(4, *batch, 8)
    weights = {"in_proj_weight": x(24, 8)}
    if options["separate"]:
        weights = {"in_proj_weight": None} | {f"{name}_proj_weight": x(8, 8) for name in "qkv"}
    extra = [x(1, 1, 8), x(1, 1, 8)] if options["bias_kv"] else [None, None]
    args = [query, keys, keys, 8, 2, weights.pop("in_proj_weight"), x(24), *extra, options["zero"], P, x(8, 8), x(8)]
    more = {name: value for name, value in given.items() if name not in ("bias_kv", "zero", "batched", "separate")}
    return F.multi_head_attention_forward, args, {"use_separate_proj_weight": options["separate"], **weights, **more}


def network(kind: str, layers: int = 3, both: bool = False, proj: int = 0, packed: bool = False, **flags: bool) -> Any:
    """A call of a recurrent network as a module makes it."""
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(kind, torch.nn.RNN)
    options = {"proj_size": proj} if proj else {}
    one = module(3, 4, layers, bidirectional=both, dtype=torch.float64, **options)
    lengths = (5, 3, 2)
    directions = 2 if both else 1
    states = [x(layers * directions, 3, size) for size in ((proj or 4), 4)]
    hx = tuple(states) if kind == "lstm" else states[0]
    rest = (hx, one._flat_weights, True, layers, P, True, both)
    if packed:
        sequences = pack_sequence([torch.randn(length, 3, dtype=torch.float64) for length in lengths])
        return getattr(torch, kind), [sequences.data.requires_grad_(), sequences.batch_sizes, *rest], {}
    batch_first = flags.get("batch_first", False)
    return getattr(torch, kind), [x(3, 5, 3) if batch_first else x(5, 3, 3), *rest, batch_first], {}


CALLS: dict[str, Callable[[], Any]] = {
    "F.dropout": lambda: (F.dropout, [x(4, 6), P], {}),
    "dropout of maps with one axis": lambda: (F.dropout1d, [x(4, 6, 5), P], {}),
    "dropout of maps with one axis, unbatched": lambda: (F.dropout1d, [x(40, 6), P], {}),
    "dropout of maps with two axes": lambda: (F.dropout2d, [x(4, 6, 5, 2), P], {}),
    "dropout of maps with two axes, unbatched": lambda: (F.dropout2d, [x(4, 6, 5), P], {}),
    "dropout of maps with three axes": lambda: (F.dropout3d, [x(4, 6, 2, 2, 2), P], {}),
    "dropout of maps with three axes, unbatched": lambda: (F.dropout3d, [x(6, 2, 2, 2), P], {}),
    "F.alpha_dropout": lambda: (F.alpha_dropout, [x(4, 6), P, True], {}),
    "F.feature_alpha_dropout": lambda: (F.feature_alpha_dropout, [x(4, 6, 3), P, True], {}),
    "torch.dropout": lambda: (torch.dropout, [x(4, 6), P, True], {}),
    "torch.dropout by name": lambda: (torch.dropout, [], {"input": x(4, 6), "p": P, "train": True}),
    "torch.feature_dropout": lambda: (torch.feature_dropout, [x(4, 6, 2, 3), P, True], {}),
    "torch.alpha_dropout": lambda: (torch.alpha_dropout, [x(4, 6), P, True], {}),
    "torch.feature_alpha_dropout": lambda: (torch.feature_alpha_dropout, [x(4, 6, 2), P, True], {}),
    "attention": lambda: (F.scaled_dot_product_attention, [x(2, 3, 5, 8), x(2, 3, 4, 8), x(2, 3, 4, 6), None, P], {}),
    "causal attention": lambda: (F.scaled_dot_product_attention, [*(x(2, 3, 5, 8) for _ in "qkv"), None, P, True], {}),
    "attention with a mask": lambda: (
        F.scaled_dot_product_attention,
        [x(2, 3, 5, 8), x(2, 3, 4, 8), x(2, 3, 4, 8)],
        {"attn_mask": torch.rand(2, 1, 5, 4) < 0.8, "dropout_p": P, "scale": 0.5},
    ),
    "attention of groups": lambda: (
        F.scaled_dot_product_attention,
        [x(2, 4, 5, 8), x(2, 2, 4, 8), x(2, 2, 4, 8)],
        {"dropout_p": P, "enable_gqa": True},
    ),
    "attention of three axes": lambda: (
        F.scaled_dot_product_attention,
        [x(3, 5, 8), x(3, 4, 8), x(3, 4, 8), None, P],
        {},
    ),
    "heads": heads,
    "heads, weights of each": lambda: heads(average_attn_weights=False),
    "heads without weights": lambda: heads(need_weights=False),
    "heads, padded": lambda: heads(key_padding_mask=torch.tensor([[False] * 3 + [True]] * 3)),
    "heads, padded and without weights": lambda: heads(
        key_padding_mask=torch.tensor([[False] * 3 + [True]] * 3), need_weights=False
    ),
    "heads with added keys": lambda: heads(bias_kv=True, zero=True, attn_mask=torch.ones(5, 4).triu(2).bool()),
    "heads with added keys, without weights": lambda: heads(bias_kv=True, zero=True, need_weights=False),
    "heads, unbatched": lambda: heads(batched=False),
    "heads, unbatched and without weights": lambda: heads(batched=False, need_weights=False),
    "heads, projected apart": lambda: heads(separate=True, need_weights=False),
    "heads with given keys": lambda: heads(static_k=x(6, 4, 4), static_v=x(6, 4, 4)),
    "LSTM": lambda: network("lstm"),
    "LSTM, batch first": lambda: network("lstm", batch_first=True),
    "LSTM in both directions": lambda: network("lstm", both=True),
    "LSTM with projections": lambda: network("lstm", both=True, proj=2),
    "LSTM, packed": lambda: network("lstm", packed=True),
    "LSTM in both directions, packed": lambda: network("lstm", both=True, packed=True),
    "GRU": lambda: network("gru"),
    "GRU, packed": lambda: network("gru", both=True, packed=True),
    "tanh": lambda: network("rnn_tanh", both=True),
    "rectifier": lambda: network("rnn_relu", batch_first=True),
}


def build(name: str) -> Call:
    function, args, kwargs = CALLS[name]()
    return call_of(function, *args, **kwargs)


def tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def leaves(call: Call) -> list[Tensor]:
    return [tensor for tensor in tensors(dict(call.arguments)) if tensor.requires_grad]


def gradients(found: Any, call: Call) -> list[Tensor | None]:
    total = sum((tensor * torch.arange(tensor.numel()).view(tensor.shape).cos()).sum() for tensor in tensors(found))
    return list(torch.autograd.grad(total, leaves(call), allow_unused=True))


def as_drawn(call: Call, mask: Any) -> tuple[Tensor, ...]:
    """Masks in the layout in which PyTorch draws them."""
    kind, given = call.function.kind, call.arguments
    if kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        if "batch_sizes" in given:
            active = torch.arange(3) < given["batch_sizes"][:, None]
            return tuple(one.transpose(0, 1)[active] for one in mask)
        return tuple(one.transpose(0, 1) for one in mask)
    if kind == "multi_head_attention" and given["need_weights"]:
        return (mask.flatten(0, 1),)
    if kind in ("dropout1d", "dropout3d") and call.input.dim() == {"dropout1d": 2, "dropout3d": 4}[kind]:
        return (mask.unsqueeze(0),)
    return (mask,)


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("name", CALLS)
def test_equals_pytorch_with_the_same_mask(name: str) -> None:
    call = build(name)
    found, mask = replaced(call, return_mask=True)
    with with_masks(*as_drawn(call, mask)):
        expected = call.run()
    assert type(found) is type(expected)
    kept = torch.cat([one.flatten() for one in tensors(mask)])
    assert 0 < kept.double().mean() < 1
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)  # the scale is that of p rounded to 2**-32
    for one, other in zip(gradients(found, call), gradients(expected, call), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("name", CALLS)
def test_key_and_mask_are_one_noise(name: str) -> None:
    call = build(name)
    found, mask = replaced(call, key=7, return_mask=True)
    again = replaced(call, key=7)
    given, same = replaced(call, mask=mask, return_mask=True)
    other = replaced(call, key=8)
    for one, two, three in zip(tensors(found), tensors(again), tensors(given), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one, three, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, tensors(mask), tensors(same)))
    assert not torch.equal(tensors(found)[0], tensors(other)[0])


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("name", CALLS)
def test_drawn_noise_is_that_of_the_generator(name: str) -> None:
    call = build(name)
    torch.manual_seed(3)
    one = replaced(call)
    torch.manual_seed(3)
    two = replaced(call)
    three = replaced(call)
    assert all(map(torch.equal, tensors(one), tensors(two)))
    assert not torch.equal(tensors(one)[0], tensors(three)[0])


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("name", CALLS)
def test_inactive_calls_run_as_they_are(name: str) -> None:
    call = build(name)
    off = call.switched(False)
    expected = off.run()
    found, mask = replaced(off, key=7, return_mask=True)
    assert mask is None
    assert all(map(torch.equal, tensors(found), tensors(expected)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("LSTM", (3, 5, 4)), ("LSTM in both directions, packed", (3, 5, 8)), ("rectifier", (3, 5, 4))],
)
def test_masks_between_layers_are_fields_of_the_key(name: str, shape: tuple[int, ...]) -> None:
    _, masks = replaced(build(name), key=7, return_mask=True)
    assert len(masks) == 2
    for number, mask in enumerate(masks):
        key = random.fold(7, number, 0) if number else 7
        expected = random.keep_mask(key, shape, P, full_shape=(3, 2**32, shape[2]))
        assert torch.equal(mask, torch.from_numpy(expected))


def test_padded_and_packed_sequences_have_the_same_masks() -> None:
    lengths, order = (2, 5, 3), torch.tensor([1, 2, 0])
    parts = [torch.randn(length, 3, dtype=torch.float64) for length in lengths]
    module = torch.nn.LSTM(3, 4, 2, dropout=P, dtype=torch.float64)
    packed = pack_sequence(parts, enforce_sorted=False)
    hx = torch.zeros(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    rest = hx, module._flat_weights, True, 2, P, True, False
    assert packed.sorted_indices is not None
    assert torch.equal(packed.sorted_indices, order)
    output, *_ = replaced(call_of(torch.lstm, packed.data, packed.batch_sizes, *rest), key=7, order=order)
    whole, _ = torch.nn.utils.rnn.pad_packed_sequence(packed._replace(data=output))
    padded = torch.nn.utils.rnn.pad_sequence(parts)
    expected, *_ = replaced(call_of(torch.lstm, padded, *rest, False), key=7)
    for example, length in enumerate(lengths):
        torch.testing.assert_close(whole[:length, example], expected[:length, example])


def test_weights_of_heads_have_one_mask_with_and_without_need_weights() -> None:
    function, args, kwargs = heads()
    kept = [
        replaced(call_of(function, *args, **kwargs, need_weights=flag), key=7, return_mask=True)
        for flag in (True, False)
    ]
    assert torch.equal(kept[0][1], kept[1][1])
    assert torch.equal(kept[0][1], torch.from_numpy(random.keep_mask(7, (3, 2, 5, 4), P)))
    torch.testing.assert_close(kept[0][0][0], kept[1][0][0])


@pytest.mark.parametrize(
    "function", [torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_]
)
def test_work_in_place(function: Callable[..., Any]) -> None:
    values = torch.randn(4, 6, 3)
    whole = values.clone()
    found, mask = replaced(call_of(function, whole, P, True), return_mask=True)
    assert found is whole
    with with_masks(mask):
        expected = function(values, P, True)
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("function", [F.dropout, F.dropout1d, F.alpha_dropout, F.feature_alpha_dropout])
def test_work_in_place_by_name(function: Callable[..., Any]) -> None:
    whole = torch.randn(4, 6, 3)
    found = replaced(call_of(function, whole, P, training=True, inplace=True))
    assert found is whole


def test_native_dropout_returns_its_mask() -> None:
    values = torch.randn(4, 6)
    (found, kept), mask = replaced(call_of(torch.native_dropout, values, P, True), key=7, return_mask=True)
    assert kept is mask
    torch.testing.assert_close(found, torch.where(mask, values / (1 - P), 0.0))
    found, kept = replaced(call_of(torch.native_dropout, values, P, True), mask=mask)
    torch.testing.assert_close(found, torch.where(mask, values / (1 - P), 0.0))


def test_maps_of_unusual_rank_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="dropout2d: Received a 3D input"):
        replaced(call_of(F.dropout2d, torch.ones(2, 3, 4), P), key=7)


OWN: dict[str, Callable[[], Any]] = {
    "dropout": lambda: (ours.dropout, [x(4, 6), P], {}),
    "dropout with a shared axis": lambda: (ours.dropout, [x(4, 6), P], {"broadcast_dims": 1}),
    "dropout2d": lambda: (ours.dropout2d, [x(4, 6, 3, 2), P], {}),
    "locked_dropout": lambda: (ours.locked_dropout, [x(4, 6, 3), P], {}),
    "alpha_dropout": lambda: (ours.alpha_dropout, [x(4, 6), P], {}),
    "drop_block2d": lambda: (ours.drop_block2d, [x(2, 3, 8, 8), P], {"block_size": 3}),
    "drop_path": lambda: (ours.drop_path, [x(8, 6), P], {}),
    "skip_path": lambda: (ours.skip_path, [torch.sin, x(8, 6), P], {}),
    "drop_connect": lambda: (ours.drop_connect, [x(4, 6), x(3, 6)], {"p": P}),
    "zoneout": lambda: (ours.zoneout, [x(4, 6), x(4, 6), P], {}),
    "gaussian_dropout": lambda: (ours.gaussian_dropout, [x(4, 6), P], {}),
    "scaled_dot_product_attention": lambda: (
        ours.scaled_dot_product_attention,
        [x(2, 5, 4), x(2, 5, 4), x(2, 5, 4)],
        {"dropout_p": P},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_own_functions_take_key_and_mask(name: str) -> None:
    function, args, kwargs = OWN[name]()
    call = call_of(function, *args, **kwargs)
    found, mask = replaced(call, key=7, return_mask=True)
    key = "dropout_key" if "attention" in name else "key"
    expected = function(*args, **kwargs, **{key: 7})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    users = call_of(function, *args, **kwargs, **{key: 5})
    torch.testing.assert_close(replaced(users, key=7), function(*args, **kwargs, **{key: 5}))
    torch.testing.assert_close(replaced(users, mask=mask), expected, rtol=1e-12, atol=1e-12)


def test_own_functions_that_return_their_mask() -> None:
    values = torch.randn(4, 6)
    found, mask = replaced(call_of(ours.dropout, values, P, return_mask=True), key=7, return_mask=True)
    assert found[1] is mask
    assert torch.equal(found[0], ours.dropout(values, P, key=7))


def test_functions_without_a_mask_say_so() -> None:
    call = call_of(ours.activation_dropout, torch.randn(4, 6), "relu", P)
    assert torch.equal(replaced(call, key=7), ours.activation_dropout(call.input, "relu", P, key=7))
    with pytest.raises(UnsupportedError, match="activation_dropout returns no mask"):
        replaced(call, return_mask=True)
    with pytest.raises(UnsupportedError, match="activation_dropout takes no mask"):
        replaced(call, mask=torch.ones(4, 6, dtype=torch.bool))


def test_what_is_not_taken_runs_as_it_is() -> None:
    meta = torch.empty(3, 4, device="meta")
    assert replaced(call_of(F.dropout, meta, P)).is_meta
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(
        UnsupportedError, match=r"dropout of a tensor of torch.float32 and torch.sparse_coo takes no key"
    ):
        replaced(call_of(F.dropout, sparse, P), key=7)
    whole = torch.ones(3, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError) as stock:
        F.dropout(whole, P)
    with pytest.raises(type(stock.value)) as same:
        replaced(call_of(F.dropout, whole, P))
    assert str(same.value) == str(stock.value)


@pytest.mark.parametrize("name", ["LSTM", "heads", "attention", "F.dropout"])
def test_masks_that_do_not_fit(name: str) -> None:
    call = build(name)
    wrong = torch.ones(7, dtype=torch.bool)
    with pytest.raises(ArgumentError, match="mask"):
        replaced(call, mask=(wrong, wrong) if name == "LSTM" else wrong)


def test_networks_take_one_mask_a_gap() -> None:
    with pytest.raises(ArgumentError, match="2 masks, one for the output of every layer but the last"):
        replaced(build("LSTM"), mask=())


def test_a_network_of_one_layer_drops_nothing() -> None:
    function, args, kwargs = network("lstm", layers=1)
    call = call_of(function, *args, **kwargs)
    assert not call.is_active
    assert replaced(call, key=7, return_mask=True)[1] is None


@pytest.mark.parametrize("name", ["F.dropout", "attention", "heads", "heads without weights", "LSTM", "GRU"])
def test_autocast_gives_the_types_of_pytorch(name: str) -> None:
    call = build(name)
    call = call.changed(
        **torch.utils._pytree.tree_map_only(Tensor, lambda one: one.detach().float(), dict(call.arguments))
    )
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = replaced(call), call.run()
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape


@pytest.mark.parametrize("layout", [torch.channels_last, "transposed", "expanded", "strided"])
def test_memory_formats_are_those_of_pytorch(layout: Any) -> None:
    values = torch.randn(4, 6, 5, 2)
    if layout is torch.channels_last:
        values = values.contiguous(memory_format=layout)
    elif layout == "transposed":
        values = values.transpose(0, 2)
    elif layout == "expanded":
        values = values[:, :, :, :1].expand(-1, -1, -1, 3)
    else:
        values = values[:, ::2]
    for function in (F.dropout, F.dropout2d):
        assert replaced(call_of(function, values, P)).stride() == function(values, P).stride()


def test_every_function_of_pytorch_is_replaced() -> None:
    covered = {build(name).function.function for name in CALLS}
    in_place = {torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_}
    stock = {row.function for row in FUNCTIONS.values() if row.key is None}
    assert stock == covered | in_place | {torch.native_dropout}


@pytest.mark.parametrize("name", ["LSTM", "heads", "F.dropout", "attention"])
def test_one_call_is_seen_as_one(name: str) -> None:
    seen: list[Any] = []

    class Watcher(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = find_call(func, args, kwargs or {})
            if found is not None:
                seen.append(found)
            return func(*args, **(kwargs or {}))

    call = build(name)
    with Watcher():
        found, mask = replaced(call, key=7, return_mask=True)
    [own] = seen
    assert own.function.kind == call.function.kind
    assert own.arguments[own.function.key] == 7
    again, same = replaced(own.changed(**{own.function.returned: False}), return_mask=True)
    assert all(map(torch.equal, tensors(found), tensors(again)))
    assert all(map(torch.equal, tensors(mask), tensors(same)))


def test_half_types_take_wider_attention_masks() -> None:
    query = torch.randn(2, 3, 4, 8, dtype=torch.bfloat16)
    added = torch.randn(4, 4)
    found, mask = replaced(call_of(F.scaled_dot_product_attention, query, query, query, added, P), return_mask=True)
    with with_masks(mask):
        expected = F.scaled_dot_product_attention(query, query, query, added, P)
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.filterwarnings("ignore:dropout[23]d")
@pytest.mark.parametrize(
    ("name", "rank"),
    [("dropout1d", rank) for rank in (2, 3)]
    + [(name, rank) for name in ("dropout2d", "dropout3d") for rank in range(2, 7)],
)
def test_draws_are_shared_along_the_axes_along_which_pytorch_shares_them(name: str, rank: int) -> None:
    torch.manual_seed(0)
    function, x = getattr(F, name), torch.ones(2, 3, 4, 5, 2, 2)[(..., *(0,) * (6 - rank))]
    masks = torch.stack([function(x, 0.5, True) != 0 for _ in range(100)])
    expected = tuple(axis for axis in range(rank) if torch.equal(masks, masks.narrow(axis + 1, 0, 1).expand_as(masks)))
    call = find_call(function, (x, 0.5, True), {})
    assert call is not None
    assert call.shared == expected
    _, mask = replaced(call, return_mask=True)
    assert mask.shape == tuple(1 if axis in expected else length for axis, length in enumerate(x.shape))
