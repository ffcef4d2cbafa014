"""The modules that drop within an encoder's layer: replaced, hooked and switched, they do what they say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dropkit.errors import ArgumentError
from dropkit.nn import Dropout
from tests.nn.test_transformer import KEY, RATES, data, layer_of

PLACES = ("self_attn", "dropout1", "dropout", "dropout2")
HOOKS: dict[str, Callable[[torch.nn.Module, Callable[..., None]], Any]] = {
    "forward": torch.nn.Module.register_forward_hook,
    "forward pre": torch.nn.Module.register_forward_pre_hook,
    "backward": torch.nn.Module.register_full_backward_hook,
    "backward pre": torch.nn.Module.register_full_backward_pre_hook,
}


def test_modules_put_in_the_places_of_dropout_are_called() -> None:
    x = data(torch.float64)
    layer = layer_of(**RATES, dtype=torch.float64)
    want = layer(x, key=KEY)
    called = []
    layer.dropout1.register_forward_hook(lambda *_: called.append("dropout1"))
    layer.dropout.register_forward_hook(lambda *_: called.append("dropout"))
    torch.testing.assert_close(layer(x, key=KEY), want)
    assert called == ["dropout1", "dropout"]
    shared = layer_of(**RATES, dtype=torch.float64)
    shared.dropout2 = Dropout(0.3, broadcast_dims=1)
    assert not torch.equal(shared(x, key=KEY), want)
    assert torch.equal(shared(x, key=KEY), shared(x, key=KEY))
    plain = layer_of(dropout=0.0, dtype=torch.float64)
    bare = plain(x)
    plain.dropout = plain.dropout1 = plain.dropout2 = torch.nn.Identity()
    plain.self_attn = layer_of(torch.nn.TransformerEncoderLayer, dropout=0.0, dtype=torch.float64).self_attn
    torch.testing.assert_close(plain(x), bare)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.GELU])
def test_hooks_of_modules_that_could_be_fused_are_run(activation: type[torch.nn.Module], hook: str) -> None:
    layer, x = layer_of(activation=activation(), dtype=torch.float64, **RATES), data(torch.float64).requires_grad_()
    want = layer(x, key=KEY)
    gradient, called = torch.autograd.grad(want.square().sum(), x)[0], []
    for name in (*PLACES, "activation"):
        HOOKS[hook](getattr(layer, name), lambda *_, name=name: called.append(name))
    found = layer(x, key=KEY)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], gradient)
    assert sorted(called) == sorted((*PLACES, "activation"))


def test_one_key_serves_modules_with_generators_of_their_own() -> None:
    layer, x = layer_of(**RATES), data()
    torch.manual_seed(3)
    want = layer(x)
    for place in PLACES:
        getattr(layer, place).generator = torch.Generator().manual_seed(4)
    torch.manual_seed(3)
    assert torch.equal(layer(x), want)
    untouched = torch.Generator().manual_seed(4).get_state()
    assert all(torch.equal(getattr(layer, place).generator.get_state(), untouched) for place in PLACES)


def test_its_switch_is_that_of_all_modules_that_drop() -> None:
    layer, x = layer_of(**RATES), data()
    training, evaluation = layer(x, key=KEY), layer_of(**RATES).eval()(x)
    assert layer.switch == "auto"
    layer.eval().switch = "on"
    assert torch.equal(layer(x, key=KEY), training)
    layer.train().switch = "off"
    torch.testing.assert_close(layer(x), evaluation)
    assert layer.switch == layer.self_attn.switch == layer.dropout2.switch == "off"
    layer.dropout2.switch = "on"
    assert layer.switch == "mixed"
    with pytest.raises(ArgumentError, match="TransformerEncoderLayer: `switch` must be one of 'auto', 'on', 'off'"):
        layer.switch = "mixed"
    assert [getattr(layer, place).switch for place in PLACES] == ["off", "off", "off", "on"]
    layer.dropout2 = torch.nn.Identity()
    assert layer.switch == "off"
