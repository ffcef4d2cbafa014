"""Weight drop of recurrent networks that have noise of their own."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import dropkit
from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.nn import WeightDrop
from tests.helpers.contract import scale
from tests.helpers.recurrent import (
    BATCH,
    BOTH,
    HIDDEN,
    KEY,
    LENGTHS,
    RATES_OF,
    SIZE,
    assert_close,
    by_hand,
    flat,
    inputs,
    network,
    noisy,
    same,
)

OWN_KEY, P = 0x2718_2818, 0.4
PATHS = ("network.weight_hh_l0", "network.weight_ih_l0")


class Wrapped(torch.nn.Module):
    """A recurrent network inside a module, as weight drop takes those that drop themselves."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.network(*arguments, **options)


def dropped(layer: Any) -> dict[str, Tensor]:
    """Every parameter, with those of PATHS dropped by hand at their fields of the key."""
    weights = dict(layer.named_parameters())
    for number, path in enumerate(PATHS):
        name = path.removeprefix("network.")
        keep = torch.from_numpy(random.keep_mask(random.field(KEY, number), weights[name].shape, P))
        weights[name] = torch.where(keep, weights[name] * scale(P), 0.0)
    return weights


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_it_is_the_formula_with_the_dropped_weights(kind: str, noise: bool) -> None:
    rates = RATES_OF[kind] if noise else dict.fromkeys(RATES_OF[kind], 0.0)
    layer, x = network(kind, SIZE, HIDDEN, **rates), inputs()
    module = WeightDrop(Wrapped(layer), P, PATHS)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    *result, masks = module(x, dropout_key=KEY, key=OWN_KEY, return_masks=True)
    assert set(masks) == ({site.name for site in layer._sites(1, 1)} if noise else set())

    formula = SimpleNamespace(mode=kind, hidden_size=HIDDEN, **rates, **dropped(layer))
    zeros = (torch.zeros(BATCH, HIDDEN).double(),) * (2 if kind == "LSTM" else 1)
    output, states = by_hand(formula, x, zeros, masks)
    want = (output, tuple(state.unsqueeze(0) for state in states))
    assert_close(result, want)
    parameters = [*module.parameters()]
    gradients = [
        torch.autograd.grad(sum(each.sin().sum() for each in flat(every)), parameters) for every in (result, want)
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert any((gradient == 0).any() for gradient in gradients[0])  # of what is dropped

    after = module.state_dict()
    assert list(after) == list(before) == [f"network.{name}" for name in layer.state_dict()]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(layer.state_dict()) == list(getattr(torch.nn, kind)(SIZE, HIDDEN).state_dict())
    assert parameters == [*layer.parameters()]


@pytest.mark.parametrize("form", ["both ways", "untied", "no bias"])
@pytest.mark.parametrize("kind", BOTH)
def test_it_is_the_network_with_dropped_weights_in_every_form(kind: str, form: str) -> None:
    layer, x = noisy(kind, form), inputs()
    module, packed = WeightDrop(Wrapped(layer), P, PATHS), pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    for given in (x, packed):
        want = torch.func.functional_call(layer, dropped(layer), (given,), {"key": OWN_KEY})
        assert_close(module(given, dropout_key=KEY, key=OWN_KEY), want)
        assert not same(module(given, dropout_key=KEY, key=OWN_KEY), layer(given, key=OWN_KEY))


@pytest.mark.parametrize("kind", BOTH)
def test_both_kinds_of_noise_are_drawn_and_neither_in_evaluation(kind: str) -> None:
    layer, x = noisy(kind), inputs()
    module = WeightDrop(Wrapped(layer), P, PATHS)
    assert not same(module(x, dropout_key=KEY), module(x, dropout_key=KEY))
    assert not same(module(x, key=OWN_KEY), module(x, key=OWN_KEY))
    twin = copy.deepcopy(module)
    assert same(twin(x, dropout_key=KEY, key=OWN_KEY), module(x, dropout_key=KEY, key=OWN_KEY))
    module.switch = "off"
    assert same(module(x, key=OWN_KEY), layer(x, key=OWN_KEY))
    module.switch = "auto"
    state = torch.get_rng_state()
    assert same(module.eval()(x), layer.eval()(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", BOTH)
def test_a_network_with_noise_of_its_own_is_not_changed_itself(kind: str) -> None:
    layer = getattr(dropkit.nn, kind)(3, 4)
    with pytest.raises(ArgumentError, match=rf"got '{kind}' \(str\)\. Give a module that contains it"):
        WeightDrop(layer, 0.5, "weight_hh_l0")
    assert type(layer) is getattr(dropkit.nn, kind)
