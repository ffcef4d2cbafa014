"""Numbered examples in calls of functions: what they return, of any layout, and what has no part of an example."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import dropkit
import dropkit.functional as ours
from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.random import call_key, field, keep_mask
from dropkit.sites import address, inject, record, samples
from dropkit.sites.addressing.numbered import _FINDERS
from dropkit.sites.calls.functions import FUNCTIONS, INFERENCE

SEED, BATCH = 5, 6
ORDERS: list[list[Sequence[int]]] = [
    [range(3), range(3, 6)],
    [[i] for i in range(BATCH)],
    [[4, 5, 0], [3, 2, 1]],
]
nested = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Forward(nn.Module):
    """A model that calls a function, with modules that it uses."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.modules_of_it = function, nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def addressed(function: Callable[..., Any]) -> nn.Module:
    model = function if isinstance(function, nn.Module) else Forward(function)
    address(model, SEED)
    return model


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def several(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def by_chances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Keep elements by hand, each with a probability of its own."""
    chances = x.sigmoid()
    return x * torch.bernoulli(chances), x * torch.empty_like(x).bernoulli_(chances[..., :1])


SCALE = numbers(3)
WEIGHT, BIAS = numbers(4, 3), numbers(4)
FUNCTIONS_OF_ROWS: dict[str, Callable[[Tensor], Any]] = {
    "torch.bernoulli": by_chances,
    "dropout": lambda x: ours.dropout(x, 0.5, return_mask=True),
    "dropout, of a stream": lambda x: ours.dropout(x, 0.5, return_mask=True, stream=3),
    "dropout, scaled in evaluation": lambda x: ours.dropout(x, 0.5, scale_at="eval"),
    "dropout, shared features": lambda x: ours.dropout(x, 0.5, broadcast_dims=-1, return_mask=True),
    "alpha_dropout": lambda x: ours.alpha_dropout(x, 0.5, return_mask=True),
    "zoneout": lambda x: ours.zoneout(x, -x, 0.5, return_mask=True),
    "gaussian_dropout": lambda x: ours.gaussian_dropout(x, 0.5, return_noise=True),
    "concrete_dropout": lambda x: ours.concrete_dropout(x, SCALE, broadcast_dims=-1),
    "variational_dropout": lambda x: ours.variational_dropout(x, SCALE),
    "dropout_add": lambda x: ours.dropout_add(x, 2 * x, 0.5),
    "dropout_add_layer_norm": lambda x: ours.dropout_add_layer_norm(x, 2 * x, SCALE, p=0.5),
    "dropout_add_rms_norm": lambda x: ours.dropout_add_rms_norm(x, 2 * x, p=0.5, prenorm=True),
    "activation_dropout": lambda x: ours.activation_dropout(x, "gelu", bias=SCALE, p=0.5),
    "word_dropout": lambda x: ours.word_dropout(x, 0.5, return_mask=True),
    "drop_connect": lambda x: ours.drop_connect(x, WEIGHT, BIAS, return_mask=True),
    "drop_connect, without masks": lambda x: ours.drop_connect(x, WEIGHT, BIAS),
    "drop_connect_inference": lambda x: ours.drop_connect_inference(x, WEIGHT, BIAS, activation=torch.tanh, samples=20),
    "local_reparameterization": lambda x: ours.local_reparameterization(F.linear, x, WEIGHT, WEIGHT.square(), BIAS),
}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS_OF_ROWS)
def test_what_functions_return_is_cut_like_the_batch(name: str, axis: int) -> None:
    model, x = addressed(FUNCTIONS_OF_ROWS[name]), numbers(*((BATCH, 5) if axis == 0 else (5, BATCH)), 3)
    with samples(range(BATCH), dim=axis):
        whole = several(model(x))
    for order in ORDERS:
        for ids in order:
            with samples(ids, dim=axis - 3):  # counted from the end
                found = several(model(x.index_select(axis, torch.tensor(ids))))
            for part, full in zip(found, whole, strict=True):
                wanted = full.index_select(axis, torch.tensor(ids))
                assert part.shape == wanted.shape
                torch.testing.assert_close(part, wanted, rtol=1e-12, atol=1e-12)
    with samples(range(1, BATCH + 1), dim=axis):
        assert not torch.equal(several(model(x))[0], whole[0])


def test_each_function_of_dropkit_says_where_its_examples_are() -> None:
    rows = {**FUNCTIONS, **INFERENCE}.values()
    assert set(_FINDERS) == {row.function for row in rows if row.key is not None}


@nested
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: ours.dropout(x, 0.5),
        lambda x: ours.dropout_add(x, x, 0.5),
        lambda x: ours.activation_dropout(x, "relu", p=0.5),
    ],
    ids=["dropout", "dropout_add", "activation_dropout"],
)
def test_nested_tensors(function: Callable[[Tensor], Tensor], layout: torch.layout) -> None:
    ids, parts = [4, 5, 0, 9], [numbers(length, 4).abs() + 1 for length in (3, 5, 2, 4)]
    model = addressed(function)

    def run(order: Sequence[int]) -> Sequence[Tensor]:
        with samples([ids[i] for i in order]):
            return model(torch.nested.nested_tensor([parts[i] for i in order], layout=layout)).unbind()

    whole = run(range(4))
    for order in ([2, 0], [3], [1, 0, 3, 2]):
        for i, found in zip(order, run(order), strict=True):
            assert torch.equal(found, whole[i])
    key = call_key(SEED, "#0", 0)
    for number, part, found in zip(ids, parts, whole, strict=True):
        place = {"offset": (number, 0, 0), "full_shape": (number + 1, 2**32, 4)}
        kept = torch.from_numpy(keep_mask(key, (1, *part.shape), 0.5, **place)[0])
        dropped = torch.where(kept, 2 * part, 0.0)
        assert torch.equal(found, dropped) or torch.equal(found, part + dropped)
    with samples(range(3)), pytest.raises(ArgumentError, match=r"a nested tensor has the length 4"):
        model(torch.nested.nested_tensor(parts, layout=layout))
    with samples(ids, dim=1), pytest.raises(ArgumentError, match=r"its input is nested"):
        model(torch.nested.nested_tensor(parts, layout=layout))


@nested
def test_nested_sequences_in_an_encoder() -> None:
    torch.manual_seed(0)
    layer = dropkit.nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True).double()
    model, parts = addressed(Forward(layer)), [numbers(5, 8) for _ in range(4)]
    with samples([3, 9, 4, 5]):
        whole = model(torch.stack(parts))
    with samples([3, 9, 4, 5]):
        nested_output = torch.stack(model(torch.nested.nested_tensor(parts)).unbind())
    torch.testing.assert_close(nested_output, whole, rtol=1e-12, atol=1e-12)  # weights all at once, and in parts
    with samples([4, 3]):
        found = model(torch.nested.nested_tensor([parts[2], parts[0]])).unbind()
    torch.testing.assert_close(torch.stack(found), whole[[2, 0]], rtol=1e-12, atol=1e-12)


def recurrent(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_layers": 2, "batch_first": True, "dropout": 0.4}
    if name == "WeightDrop":
        return dropkit.nn.WeightDrop(nn.LSTM(3, 4, **sizes), 0.5, names=("weight_hh_l0", "weight_hh_l1"))
    return getattr(dropkit.nn, name)(3, 4, **sizes, input_p=0.3, recurrent_p=0.3, update_p=0.3, bidirectional=True)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "WeightDrop"])
def test_packed_sequences(name: str) -> None:
    """Neither the order of packed sequences nor the length of others enters into an example's masks."""
    ids, x = [8, 2, 3, 0], [numbers(length, 3) for length in (3, 5, 2, 5)]
    model = addressed(Forward(recurrent(name).double()))

    def run(order: Sequence[int]) -> Sequence[Tensor]:
        with samples([ids[i] for i in order]):
            output: PackedSequence = model(pack_sequence([x[i] for i in order], enforce_sorted=False))[0]
            return unpack_sequence(output)

    whole = run(range(4))
    for order in ([2, 0, 1, 3], [1, 0], [0], [2], [3]):
        for i, output in zip(order, run(order), strict=True):
            torch.testing.assert_close(output, whole[i], rtol=1e-12, atol=1e-12)
    ids[0] += 1
    assert [torch.equal(a, b) for a, b in zip(run(range(4)), whole, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize("ids", [[7], [5, 6], [9, 2]])
def test_masks_of_a_network_are_those_of_the_definition(ids: list[int]) -> None:
    network = dropkit.nn.LSTM(3, 4, batch_first=True, input_p=0.5, recurrent_p=0.5, zoneout_h=0.5)
    address(network, SEED)
    with samples(ids):
        *_, masks = network(torch.ones(len(ids), 6, 3), return_masks=True)
    key = call_key(SEED, "", 0)
    shapes = {"input_l0": (1, (1, 3)), "recurrent_l0": (2, (1, 4)), "zoneout_h_l0": (5, (2**32, 4))}
    for name, (number, (middle, units)) in shapes.items():
        for position, example in enumerate(ids):
            place = {"offset": (example, 0, 0), "full_shape": (example + 1, middle, units)}
            shape = (1, min(middle, 6), units)
            assert (masks[name][position].numpy() == keep_mask(field(key, number), shape, 0.5, **place)[0]).all()


@pytest.mark.parametrize("ids", [[7, 8], [9, 2]])
def test_masks_of_an_encoder_are_those_of_the_definition(ids: list[int]) -> None:
    layer = dropkit.nn.TransformerEncoderLayer(8, 2, 16, 0.5)
    address(layer, SEED)
    with samples(ids, dim=1):
        _, masks = layer(torch.ones(5, 2, 8), return_masks=True)
    key = call_key(SEED, "", 0)
    shapes = {"self_attn": (2, 5, 5), "dropout1": (5, 8), "dropout": (5, 16), "dropout2": (5, 8)}
    assert list(masks) == list(shapes)
    for number, (name, shape) in enumerate(shapes.items()):
        for position, example in enumerate(ids):
            place = {"offset": (example, *(0 for _ in shape)), "full_shape": (example + 1, *shape)}
            wanted = keep_mask(field(key, number), (1, *shape), 0.5, **place)[0]
            assert (masks[name][position].numpy() == wanted).all()


@pytest.mark.parametrize("ids", [[7, 8], [9, 2]])
def test_normal_and_uniform_noise_is_that_of_the_definition(ids: list[int]) -> None:
    ones = torch.ones(2, 3, 4, dtype=torch.float64)
    model = addressed(lambda: (ours.gaussian_dropout(ones, 0.5), ours.concrete_dropout(ones, torch.zeros(()).double())))
    with samples(ids):
        gaussian, concrete = model()
    for position, number in enumerate(ids):
        place = {"offset": (number, 0, 0), "full_shape": (number + 1, 3, 4)}
        normal = random.normal(call_key(SEED, "#0", 0), (1, 3, 4), **place)[0]
        np.testing.assert_allclose(gaussian[position], 1 + normal, rtol=1e-12)
        u = random.uniform(call_key(SEED, "#1", 0), (1, 3, 4), **place)[0]
        wanted = 2 / (1 + np.exp(-(np.log(u) - np.log1p(-u)) / 0.1))  # kept where the uniform is high
        np.testing.assert_allclose(concrete[position], wanted, rtol=1e-9)


def leave_out(x: Tensor) -> Tensor:
    """Leave a whole layer out, as LayerDrop does."""
    return x if torch.rand([]) < 0.5 else 2 * x


def words(x: Tensor) -> Tensor:
    return ours.embedding_dropout(x, torch.arange(3).expand(len(x), 3), 3, 0.5, per="batch")


SHARED: dict[str, Callable[[], Any]] = {
    "a random number without axes": lambda: leave_out,
    "words of a batch": lambda: words,
    "whole batches": lambda: lambda x: ours.drop_path(x, 0.5, mode="batch"),
    "a shared axis of examples": lambda: lambda x: ours.dropout(x, 0.5, broadcast_dims=0),
    "a shared axis of Concrete noise": lambda: lambda x: ours.concrete_dropout(x, SCALE[:1], broadcast_dims=(0, 2)),
    "weights": lambda: dropkit.nn.WeightDrop(nn.Linear(4, 2), 0.5),
    "weights of a network": lambda: dropkit.nn.WeightDrop(nn.GRU(4, 2, batch_first=True), 0.5, names=("weight_hh_l0",)),
}


def test_weights_that_a_first_forward_makes_have_no_numbers() -> None:
    found = []
    for ids in ([0, 1, 2], [7, 3, 4]):
        model = nn.Sequential(nn.LazyLinear(5))
        address(model, SEED)
        with samples(ids):
            model(torch.ones(3, 4))
        found.append(model[0].bias)
    assert torch.equal(*found)
    assert found[0].unique().numel() == 5


@pytest.mark.parametrize("name", SHARED)
def test_what_examples_share_is_the_same_for_all_numbers(name: str) -> None:
    """In every step something else is drawn, and never does a number enter into it."""
    function = SHARED[name]()
    modules = [function.double()] if isinstance(function, nn.Module) else []
    model = Forward(lambda x: several(function(x))[0], *modules)
    handle, x = address(model, SEED), numbers(BATCH, 3, 4)
    seen = []
    for _ in range(6):
        plain = model(x)
        seen.append(plain)
        for ids in (range(BATCH), [9, 2, 4, 5, 7, 0]):
            with samples(ids):
                assert torch.equal(model(x), plain)
        with samples([8]):
            torch.testing.assert_close(model(x[3:4]), plain[3:4], rtol=1e-12, atol=1e-12)
        handle.step()
    assert any(not torch.equal(one, seen[0]) for one in seen)


@pytest.mark.parametrize("ids", [[5, 6], [9, 2]])
def test_attention(ids: list[int]) -> None:
    """Weights are computed in parts, with gradients of any order."""
    x = numbers(2, 3, 40, 8).requires_grad_()
    model = addressed(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5, is_causal=True))
    with samples(ids):
        found = model(x)
    assert "_Attention" in found.grad_fn.name()
    kept = keep_mask(call_key(SEED, "#0", 0), (10, 3, 40, 40), 0.5)[ids]
    wanted = ours.scaled_dot_product_attention(
        x, x, x, dropout_p=0.5, is_causal=True, dropout_mask=torch.from_numpy(kept)
    )
    for _ in range(3):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        found, wanted = (torch.autograd.grad(one.square().sum(), x, create_graph=True)[0] for one in (found, wanted))


class _Bools(TorchDispatchMode):
    """Notes the bool tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found += [result] if isinstance(result, Tensor) and result.dtype == torch.bool else []
        return result


def test_examples_in_order_need_no_memory_for_a_mask() -> None:
    model, x = addressed(lambda x: F.dropout(x, 0.5)), numbers(64, 8)
    for ids, is_made in ((range(7, 71), False), (range(64)[::-1], True)):
        with samples(ids), _Bools() as bools:
            model(x)
        assert any(each.shape == x.shape for each in bools.found) == is_made


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_network_is_recomputed_with_its_numbers(reentrant: bool) -> None:
    network = recurrent("LSTM").double()
    model = addressed(Forward(lambda x: network(x)[0], network))
    x = numbers(3, 5, 3).requires_grad_()
    with samples([6, 2, 3]):
        [wanted] = torch.autograd.grad(model(x).square().sum(), x)
    with samples([6, 2, 3]):
        loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
    loss.backward()
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-12)


def test_a_record_of_numbered_noise_can_be_injected() -> None:
    network, noise = recurrent("GRU").double(), dropkit.nn.GaussianDropout(0.5)
    model = Forward(lambda x: noise(network(x)[0]), network, noise)
    handle, x = address(model, SEED), numbers(3, 5, 3)
    with samples([6, 2, 3]):
        wanted = model(x)
    with samples([6, 2, 3]), record(model) as masks:
        assert torch.equal(model(x), wanted)
    handle.close()
    with inject(model, masks):
        assert torch.equal(model(x), wanted)


@pytest.mark.parametrize(
    ("function", "x", "most"),
    [
        (lambda x: ours.gaussian_dropout(x, 0.5), numbers(2, 8, 4), 2**61),
        (lambda x: ours.dropout(x, 0.5), numbers(2), 2**34),
        (lambda x: ours.dropout(x, 0.5), numbers(2, 2**12, 2), 2**52),
        (lambda x: ours.drop_connect(x, WEIGHT), numbers(2, 2, 3), 2**61),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), numbers(2, 2, 4, 3), 2**61),
        (lambda x: dropkit.nn.GRU.forward(NETWORK, x)[0], numbers(5, 2, 3), 2**64),
    ],
    ids=["normals", "columns", "rows", "weights", "attention", "network"],
)
def test_numbers_that_masks_have_no_rows_for(function: Callable[[Tensor], Tensor], x: Tensor, most: int) -> None:
    model = addressed(function)
    for ids in ([most - 1, most - 2], [most - 2, most - 1]) if most < 2**63 else ([2**63 - 2, 2**63 - 1],):
        with samples(ids):
            model(x)
    for ids in ([most, 0], [most - 1, most]) if most < 2**63 else ():
        with samples(ids), pytest.raises(ArgumentError, match=rf"`ids` must be below {most}, for masks of this size"):
            model(x)


NETWORK = dropkit.nn.GRU(3, 2, input_p=0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("forward", "shape", "dim", "why"),
    [
        (ours.gaussian_dropout, (3, 4), 0, r"axis 0 of a tensor of shape \(3, 4\) has the length 3"),
        (ours.gaussian_dropout, (4,), 1, r"a tensor of shape \(4,\) has no examples along axis 1"),
        (lambda x: ours.gaussian_dropout(x, torch.full((4,), 0.5).double()), (4, 5), 0, r"one rate for each"),
        (lambda x: ours.dropout(x, stream=torch.arange(4)), (4, 5), 0, r"one stream for each"),
        (lambda x: ours.drop_block1d(x, 0.5), (4, 9), 0, r"no examples along axis 0"),
        (lambda x: ours.drop_block2d(x, 0.5), (4, 4, 9, 9), 1, r"no examples along axis 1"),
        (lambda x: ours.drop_connect(x, numbers(4, 4)), (4, 4), 1, r"no examples along axis 1"),
        (lambda x: ours.word_dropout(x, 0.5), (4,), 0, r"no examples along axis 0"),
        (lambda x: ours.embedding_dropout(x, torch.arange(4), 4), (4, 2), 0, r"tokens of shape \(4,\) have no axis"),
        (lambda x: NETWORK(x)[0], (4, 5, 3), 0, r"axis 0 of a tensor of shape \(5, 4, 3\) has the length 5"),
    ],
)  # fmt: skip
def test_ambiguous_layouts(forward: Any, shape: tuple[int, ...], dim: int, why: str) -> None:
    model = addressed(forward)
    with samples(range(4), dim=dim), pytest.raises(ArgumentError, match=rf"cannot be told apart: .*{why}.*dim="):
        model(torch.ones(shape, dtype=torch.float64))
