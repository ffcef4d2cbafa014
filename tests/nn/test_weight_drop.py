"""Weight drop: parameters and state stay, the effect is real, and gradients reach the plain weights."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import dropkit
from dropkit import random
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.nn import WeightDrop
from tests.helpers.contract import all_masks, chances, realised, scale

KEY = 0x3141_5926_5358_9793
HH = "weight_hh_l0"


def linear(p: float = 0.5, **options: Any) -> Any:
    torch.manual_seed(1)
    return WeightDrop(nn.Linear(5, 4).double(), p, **options)


def lstm(p: float = 0.5, names: Any = HH, kind: Any = nn.LSTM, **options: Any) -> Any:
    torch.manual_seed(2)
    return WeightDrop(kind(3, 4, **options).double(), p, names)


X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SEQUENCE = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(module: Any, x: Any, names: tuple[str, ...], key: int, p: float) -> Any:
    """The plain module with weights that were dropped by hand."""
    plain = copy.deepcopy(module).remove_weight_drop()
    with torch.no_grad():
        for number, name in enumerate(names):
            weight = plain.get_parameter(name)
            keep = torch.from_numpy(random.keep_mask(random.field(key, number), weight.shape, p))
            weight.copy_(torch.where(keep, weight * scale(p), 0.0))
    return plain(x)


def test_it_is_the_module_itself_with_its_parameters_names_and_state() -> None:
    plain = nn.LSTM(3, 4, num_layers=2)
    before, parameters = plain.state_dict(), dict(plain.named_parameters())
    dropped = WeightDrop(plain, 0.3, [HH, "weight_hh_l1"])
    assert dropped is plain
    assert isinstance(dropped, nn.LSTM)
    assert isinstance(dropped, WeightDrop)
    assert list(dropped.state_dict()) == list(before)
    for name, parameter in dropped.named_parameters():
        assert parameter is parameters[name]
    dropped(torch.randn(2, 2, 3))
    for name, parameter in dropped.named_parameters():
        assert parameter is parameters[name]
    nn.LSTM(3, 4, num_layers=2).load_state_dict(dropped.state_dict(), strict=True)
    dropped.load_state_dict(nn.LSTM(3, 4, num_layers=2).state_dict(), strict=True)
    assert list(dropped.children()) == list(dropped.buffers()) == []


@pytest.mark.parametrize("p", [0.1, 0.5, 1 - 2.0**-32])
def test_mean_and_variance_over_all_masks(p: float) -> None:
    layer = WeightDrop(nn.Linear(4, 2, dtype=torch.float64), p)
    x, weight = X[0, :4], layer.weight.detach()
    masks = all_masks(8).reshape(-1, 2, 4)
    chance = chances(masks.flatten(1), p)
    found = torch.stack([layer(x, dropout_mask={"weight": mask}) for mask in masks]).detach()
    mean, r = weight @ x + layer.bias.detach(), realised(p)
    torch.testing.assert_close(chance @ found, mean, rtol=1e-12, atol=scale(p) * 1e-15)
    variance = chance @ (found - mean) ** 2
    torch.testing.assert_close(variance, r / (1 - r) * weight**2 @ x**2, rtol=1e-9 if p > 0.9 else 1e-12, atol=0)


@pytest.mark.parametrize("names", ["weight", "bias", ("weight", "bias"), ["bias", "weight"]])
def test_each_name_has_a_field_of_the_key(names: Any) -> None:
    layer = linear(0.3, names=names)
    tried = (names,) if isinstance(names, str) else tuple(names)
    found, masks = layer(X, dropout_key=KEY, return_dropout_mask=True)
    torch.testing.assert_close(found, by_hand(layer, X, tried, KEY, 0.3), rtol=1e-13, atol=0)
    assert tuple(masks) == tried
    for number, name in enumerate(tried):
        shape = layer.get_parameter(name).shape
        keep = random.keep_mask(random.field(KEY, number), shape, 0.3)
        assert torch.equal(masks[name], torch.from_numpy(keep))
    assert torch.equal(layer(X, dropout_mask=masks), found)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
def test_recurrent_networks_use_the_dropped_weights(kind: Any, options: dict[str, Any]) -> None:
    plain = kind(3, 4, **options)
    names = tuple(name for name in dict(plain.named_parameters()) if "weight_hh" in name)
    network = lstm(0.4, names, kind, **options)
    found, _ = network(SEQUENCE, dropout_key=KEY)
    torch.testing.assert_close(found, by_hand(network, SEQUENCE, names, KEY, 0.4)[0], rtol=1e-13, atol=0)
    network.eval()
    want, _ = copy.deepcopy(network).remove_weight_drop()(SEQUENCE)
    assert torch.equal(network(SEQUENCE)[0], want)
    assert not torch.equal(found, want)


def test_evaluation_is_the_plain_network_and_draws_nothing() -> None:
    network = lstm().eval()
    state = torch.get_rng_state()
    found, masks = network(SEQUENCE, return_dropout_mask=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert masks[HH].all()
    assert torch.equal(found[0], network.remove_weight_drop()(SEQUENCE)[0])
    network = lstm(0.0)
    assert torch.equal(network(SEQUENCE)[0], found[0])
    state = torch.get_rng_state()
    network(SEQUENCE)
    assert torch.equal(torch.get_rng_state(), state)


def test_at_a_rate_of_one_only_the_first_step_is_the_plain_networks() -> None:
    network = lstm(1.0)
    found, _ = network(SEQUENCE)
    plain, _ = network.eval()(SEQUENCE)
    assert torch.equal(found[0], plain[0])  # the first hidden state is zero, whatever multiplies it
    assert (found[1:] != plain[1:]).all()


def test_gradients_reach_the_plain_weights_through_the_mask() -> None:
    network = lstm(0.5)
    (output, _), masks = network(SEQUENCE, dropout_key=KEY, return_dropout_mask=True)
    output.sum().backward()
    weight, keep = network.weight_hh_l0, masks[HH]
    assert weight.is_leaf
    assert torch.equal(weight.grad[~keep], torch.zeros_like(weight.grad[~keep]))
    assert (weight.grad[keep] != 0).all()
    assert all((parameter.grad != 0).any() for parameter in network.parameters())
    before = weight.detach().clone()
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert torch.equal(weight.detach()[~keep], before[~keep])
    assert (weight.detach()[keep] != before[keep]).all()


def test_one_mask_serves_all_examples_and_steps_and_the_next_call_has_another() -> None:
    layer = linear()
    found = layer(X[:1].expand(3, -1))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(layer(X), layer(X))
    torch.manual_seed(5)
    first = [layer(X) for _ in range(3)]
    torch.manual_seed(5)
    assert all(torch.equal(layer(X), one) for one in first)
    assert torch.equal(layer(X, dropout_key=KEY), layer(X, dropout_key=torch.tensor(KEY)))
    assert not torch.equal(layer(X, dropout_key=KEY), layer(X, dropout_key=KEY, dropout_stream=1))
    own = linear(generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    assert not torch.equal(own(X), own(X))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_dropped_may_be_nan() -> None:
    layer = linear()
    _, masks = layer(X, dropout_key=KEY, return_dropout_mask=True)
    with torch.no_grad():
        layer.weight[~masks["weight"]] = math.nan
    assert layer(X, dropout_key=KEY).isfinite().all()


def test_the_plain_weights_stand_again_after_an_error_and_inside_nothing_leaks() -> None:
    layer = linear()
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 3, dtype=torch.float64))
    assert "weight" not in vars(layer)
    assert isinstance(layer.weight, nn.Parameter)
    network = lstm()
    flat = network._flat_weights
    network(SEQUENCE)
    assert network._flat_weights is flat
    assert all(one is other for one, other in zip(flat, network.parameters(), strict=True))


def test_hooks_run_once() -> None:
    calls: list[str] = []
    layer = linear()
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer(X)
    assert calls == ["before", "after"]


class Recursive(nn.Module):
    """A module that runs itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(40))

    def forward(self, depth: int) -> Tensor:
        inner = self(depth - 1) if depth else torch.zeros(())
        return inner + self.weight.sum() * 0 + (self.weight != 0).sum() + 100 * (type(self.weight) is nn.Parameter)


def test_a_module_that_runs_itself_keeps_its_dropped_weights_to_the_end() -> None:
    module = WeightDrop(Recursive(), 0.5)
    assert 20 < module(2).item() < 100
    assert isinstance(module.weight, nn.Parameter)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))  # noqa: S301  # our own bytes


def saved(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled, saved])
def test_copies_are_equal_and_drop_too(duplicate: Any) -> None:
    network = lstm(0.4)
    twin = duplicate(network)
    assert type(twin) is type(network)
    assert isinstance(twin, nn.LSTM)
    assert repr(twin) == repr(network) == f"WeightDropLSTM(3, 4, p=0.4, names=('{HH}',))"
    assert torch.equal(twin(SEQUENCE, dropout_key=KEY)[0], network(SEQUENCE, dropout_key=KEY)[0])
    twin.p = 0.9
    assert network.p == 0.4


def test_it_can_be_removed() -> None:
    network = lstm(0.4)
    network.follow()
    before = {*vars(nn.LSTM(3, 4))}
    plain = network.remove_weight_drop()
    assert plain is network
    assert type(plain) is nn.LSTM
    assert {*vars(plain)} == before
    assert repr(plain) == repr(nn.LSTM(3, 4))
    assert torch.equal(plain(SEQUENCE)[0], plain(SEQUENCE)[0])
    assert isinstance(WeightDrop(plain, 0.5, HH), WeightDrop)


def test_the_switch_overrides_train_and_eval() -> None:
    layer = linear()
    training, evaluation = layer(X, dropout_key=KEY), layer.eval()(X)
    layer.switch = "on"
    assert torch.equal(layer(X, dropout_key=KEY), training)
    layer.train().switch = "off"
    assert torch.equal(layer(X, dropout_key=KEY), evaluation)


def test_nested_parameters_and_attention_whose_forward_has_a_key() -> None:
    network = WeightDrop(
        nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LSTM(4, 3)), 0.5, ("0.weight", f"2.{HH}")
    ).double()
    assert list(network.state_dict()) == list(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.LSTM(4, 3)).state_dict())
    found, _ = network(X, dropout_key=KEY)
    torch.testing.assert_close(found, by_hand(network, X, ("0.weight", f"2.{HH}"), KEY, 0.5)[0], rtol=1e-13, atol=0)
    assert len(network[:2]) == 2
    attention = WeightDrop(nn.MultiheadAttention(4, 2), 0.5, "in_proj_weight")
    x = torch.randn(3, 2, 4)
    one, other = (attention(query=x, key=x, value=x, dropout_key=key)[0] for key in (1, 2))
    assert not torch.equal(one, other)


def test_a_rate_that_moves_compiles_once_and_changes_no_state() -> None:
    layer = linear()
    layer.follow()
    assert list(layer.state_dict()) == ["weight", "bias"]
    graphs = CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    for step, p in enumerate((0.1, 0.5, 1.0, 0.25)):
        layer.p = p
        found = compiled(X, dropout_key=torch.tensor(KEY + step))
        torch.testing.assert_close(found, linear(p)(X, dropout_key=KEY + step))
    assert graphs.frame_count == 1
    assert "weight" not in vars(layer)


def test_transforms_and_derivatives() -> None:
    layer = linear(0.3)
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (row,), {"dropout_key": KEY}).square().sum()

    per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, X)
    leaf = weights["weight"].clone().requires_grad_()
    for row, found in zip(X, per_example["weight"], strict=True):
        (want,) = torch.autograd.grad(loss({**weights, "weight": leaf}, row), leaf)
        torch.testing.assert_close(found, want)
    assert torch.autograd.gradcheck(lambda w: loss({**weights, "weight": w}, X), leaf)
    assert torch.autograd.gradgradcheck(lambda w: loss({**weights, "weight": w}, X), leaf)
    network = lstm(0.3)
    hh = network.weight_hh_l0.detach().clone().requires_grad_()
    rest = {name: value.detach() for name, value in network.named_parameters()}

    def recurrent(weight: Tensor) -> Tensor:
        given = {**rest, HH: weight}
        return torch.func.functional_call(network, given, (SEQUENCE,), {"dropout_key": KEY})[0]

    assert torch.autograd.gradcheck(recurrent, hh)


def test_it_is_exported_in_evaluation() -> None:
    layer = linear().float().eval()
    x = X.float()
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_checkpointing_draws_the_same_again() -> None:
    layer = linear(0.5)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(4)
        x = X.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        gradients.append(torch.autograd.grad(out.square().sum(), (x, layer.weight)))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_what_a_module_makes_of_its_own_class_drops_nothing() -> None:
    network = WeightDrop(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), 1.0, "0.weight")
    assert type(network[1:]) is type(type(network)()) is nn.Sequential
    with pytest.raises(TypeError, match="in_features"):
        type(linear())()


def test_replicas_can_be_made_of_it() -> None:
    network = lstm(0.4)
    replica = network._replicate_for_data_parallel()
    assert type(replica) is type(network)
    assert replica.p == 0.4


def test_the_plain_weights_stand_again_where_one_cannot_be_replaced() -> None:
    network = WeightDrop(nn.Sequential(nn.LSTM(3, 4)), 0.5, f"0.{HH}")
    del network[0]._flat_weights_names
    with pytest.raises(AttributeError):
        network(SEQUENCE.float())
    assert HH not in vars(network[0])


class Oddly(nn.Linear):
    """A module that is copied in a way of its own."""

    def __reduce__(self) -> Any:
        return Oddly, (5, 4)


def test_what_cannot_be_done_is_refused_before_anything_changes() -> None:
    for module, name in ((nn.Dropout(0.3), "p"), (linear(), "dropped_names"), (dropkit.nn.DropConnect(3, 4), "follow")):
        before, start = type(module), "^WeightDrop: `module` must be a module without an attribute"
        with pytest.raises(ArgumentError, match=f"{start} `{name}`, which WeightDrop adds, got '{before.__name__}'"):
            WeightDrop(module, 0.5)
        assert type(module) is before
    lazy = nn.LazyLinear(3)
    with pytest.raises(ArgumentError, match="Run the module first: weight has no shape yet"):
        WeightDrop(lazy, 0.5)
    with pytest.raises(ArgumentError, match=r"The module has: weight, bias\.$"):
        WeightDrop(nn.Linear(2, 3), 0.5, "weights")
    whole = nn.Linear(2, 3)
    whole.weight = nn.Parameter(torch.ones(3, 2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ArgumentTypeError, match=r"of a floating or complex type, got torch\.int64"):
        WeightDrop(whole, 0.5)
    assert type(whole) is nn.Linear
    with pytest.raises(UnsupportedError, match=r"Oddly is copied in a way of its own\. Call remove_weight_drop\(\)"):
        copy.deepcopy(WeightDrop(Oddly(5, 4), 0.5))
    layer = linear()
    with pytest.raises(ArgumentError, match="`p` must be a number in"):
        layer.p = 1.5
    with pytest.raises(ArgumentError, match=r"`dropout_key` must be of shape \(\), got \(4,\)"):
        layer(X, dropout_key=torch.arange(4))
