"""LSTM and GRU as layers: what they draw, keep, show and refuse."""

import copy
import inspect
import io
import pickle

import pytest
import torch

import dropkit
from dropkit.errors import UnsupportedError
from tests.helpers.recurrent import BOTH, HIDDEN, KEY, SIZE, assert_close, inputs, noisy, same


@pytest.mark.parametrize("kind", BOTH)
def test_masks_may_be_given_by_name_beside_drawn_ones(kind: str) -> None:
    layer, x = noisy(kind, "layers"), inputs()
    *result, masks = layer(x, key=KEY, return_masks=True)
    assert same(layer(x, masks=masks), result)
    some = {"recurrent_l1": masks["recurrent_l1"]}
    assert same(layer(x, key=KEY, masks=some), result)
    assert not same(layer(x, key=KEY, masks={"recurrent_l1": ~masks["recurrent_l1"]}), result)
    state = torch.get_rng_state()
    layer(x, masks=masks)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", BOTH)
def test_evaluation_draws_nothing_and_its_masks_are_true(kind: str) -> None:
    layer, x = noisy(kind, "both ways").eval(), inputs()
    state = torch.get_rng_state()
    *result, masks = layer(x, return_masks=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(layer(x, masks={"output": torch.zeros(1, 1, 2 * HIDDEN, dtype=torch.bool)}), result)
    *_, drawn = layer.train()(x, return_masks=True)
    assert {n: m.shape for n, m in masks.items()} == {n: m.shape for n, m in drawn.items()}
    assert all(mask.all() for mask in masks.values())


@pytest.mark.parametrize("kind", BOTH)
def test_it_draws_by_pytorchs_generator_or_its_own(kind: str) -> None:
    x = inputs()
    layer = noisy(kind)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    assert not same(first, second)
    torch.manual_seed(3)
    assert same(layer(x), first)
    own = (
        noisy(kind, generator=torch.Generator().manual_seed(4)),
        noisy(kind, generator=torch.Generator().manual_seed(4)),
    )
    state = torch.get_rng_state()
    assert same(own[0](x), own[1](x))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(own[0](x, key=KEY), layer(x, key=KEY))


@pytest.mark.parametrize("kind", BOTH)
def test_the_switch_overrides_train_and_eval(kind: str) -> None:
    layer, x = noisy(kind, "layers"), inputs()
    training, evaluation = layer(x, key=KEY), layer.eval()(x)
    layer.switch = "on"
    assert same(layer(x, key=KEY), training)
    layer.train().switch = "off"
    assert_close(layer(x), evaluation)
    layer.switch = "auto"
    assert same(layer(x, key=KEY), training)


@pytest.mark.parametrize("kind", BOTH)
def test_copies_and_state(kind: str) -> None:
    layer, x = noisy(kind, "both ways"), inputs()
    plain = getattr(torch.nn, kind)(SIZE, HIDDEN, num_layers=2, bidirectional=True).double()
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict(), strict=True)
    want, buffer = layer(x, key=KEY), io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (
        copy.copy(layer),
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),  # noqa: S301  # our own bytes
        torch.load(buffer, weights_only=False),
    ):
        assert same(twin(x, key=KEY), want)
        assert repr(twin) == repr(layer)
        twin.recurrent_p = 0.9
        assert layer.recurrent_p == 0.3


def test_representations() -> None:
    assert repr(dropkit.nn.LSTM(3, 4)) == "LSTM(3, 4)"
    layer = dropkit.nn.GRU(3, 4, 2, dropout=0.5, zoneout=0.1, tied=False, generator=torch.Generator())
    assert repr(layer) == "GRU(3, 4, num_layers=2, dropout=0.5, zoneout=0.1, tied=False, generator=...)"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"^LSTM: TorchScript cannot express addressed masks"):
        torch.jit.script(dropkit.nn.LSTM(3, 4))


@pytest.mark.parametrize("kind", BOTH)
def test_the_warning_of_one_layer_is_pytorchs(kind: str) -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        getattr(dropkit.nn, kind)(3, 4, dropout=0.5)


@pytest.mark.parametrize("kind", BOTH)
def test_the_constructor_takes_pytorchs_arguments_in_their_order_and_the_rest_by_keyword(kind: str) -> None:
    order = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    order += ["proj_size"] * (kind == "LSTM") + ["device", "dtype"]
    found = inspect.signature(getattr(dropkit.nn, kind)).parameters
    assert [name for name, one in found.items() if one.kind is not one.KEYWORD_ONLY] == order
    layer = getattr(dropkit.nn, kind)(3, 4, 2, False, True, 0.5, True)
    assert repr(layer) == f"{kind}(3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True)"
    torch.manual_seed(0)
    plain = getattr(torch.nn, kind)(3, 4, 2, False, True, 0.5, True)
    torch.manual_seed(0)
    ours = getattr(dropkit.nn, kind)(3, 4, 2, False, True, 0.5, True)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
