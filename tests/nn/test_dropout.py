"""The layer: PyTorch's own by type, signature and state, and a thin cover of the function."""

import copy
import inspect
from typing import Any

import pytest
import torch

import dropkit
from dropkit import random
from dropkit._checks import PROBABILITY
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.functional import dropout
from tests.helpers.contract import RATES, realised, scale
from tests.helpers.copies import pickled, saved
from tests.helpers.ids import by_name

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def parameters(call: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(call).parameters)
    found.pop("self", None)
    return found


def test_it_is_pytorchs_dropout() -> None:
    layer = dropkit.nn.Dropout()
    assert isinstance(layer, torch.nn.Dropout)
    assert isinstance(layer, torch.nn.modules.dropout._DropoutNd)
    assert issubclass(dropkit.nn.Dropout, torch.nn.Dropout)
    assert (layer.p, layer.inplace) == (torch.nn.Dropout().p, torch.nn.Dropout().inplace)


def test_the_constructor_takes_pytorchs_arguments_in_their_order_and_the_rest_by_keyword() -> None:
    ours, theirs = parameters(dropkit.nn.Dropout), parameters(torch.nn.Dropout)
    positional = [name for name, parameter in ours.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    assert positional == list(theirs)
    for name in theirs:
        assert ours[name].default == theirs[name].default
        assert ours[name].kind == theirs[name].kind
    layer = dropkit.nn.Dropout(0.3, True)
    assert (layer.p, layer.inplace) == (0.3, True)
    with pytest.raises(TypeError):
        dropkit.nn.Dropout(0.3, True, (1,))
    with pytest.raises(TypeError):
        dropkit.nn.Dropout(rate=0.3)


def test_the_function_takes_pytorchs_arguments_in_their_order_and_the_rest_by_keyword() -> None:
    ours, theirs = parameters(dropout), parameters(torch.nn.functional.dropout)
    positional = [name for name, parameter in ours.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    assert positional == list(theirs)
    assert [ours[name].default for name in positional] == [theirs[name].default for name in positional]


def test_layer_and_function_agree_in_names_and_defaults() -> None:
    function = parameters(dropout)
    constructor, forward = parameters(dropkit.nn.Dropout), parameters(dropkit.nn.Dropout.forward)
    function.pop("training")
    assert constructor.keys() | forward.keys() == function.keys()
    assert not constructor.keys() & forward.keys()
    for name, parameter in (constructor | forward).items():
        assert parameter.default == function[name].default, name
    assert all(p.kind is p.KEYWORD_ONLY for name, p in forward.items() if name != "input")
    order = [name for name in function if name in forward]
    assert list(forward) == order


@pytest.mark.parametrize(
    ("built", "called"),
    [({}, {"key": 3}), ({"p": 0.9}, {"key": 3, "stream": 4}), ({"broadcast_dims": 1}, {"key": torch.arange(5)}),
     ({"broadcast_dims": (0, 1)}, {"key": 3}), ({"broadcast_dims": [-1]}, {"key": 3, "return_mask": True}),
     ({"scale_at": "eval"}, {"key": 3}), ({}, {"key": 3, "offset": (1, 2), "full_shape": (9, 10)}),
     ({"p": 0.1}, {"mask": X > 0, "return_mask": True})],
    ids=by_name,
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_the_function(built: dict[str, Any], called: dict[str, Any], training: bool) -> None:
    layer = dropkit.nn.Dropout(**built).train(training)
    found, want = layer(X, **called), dropout(X, training=training, **built, **called)
    if called.get("return_mask"):
        (found, mask), (want, other) = found, want
        assert torch.equal(mask, other)
    assert torch.equal(found, want)


def test_train_and_eval_switch_it() -> None:
    layer = dropkit.nn.Dropout(0.5)
    assert layer.training
    assert not torch.equal(layer(X), X)
    state = torch.get_rng_state()
    assert layer.eval()(X) is X
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(layer.train()(X), X)


def test_it_has_no_state() -> None:
    layer = dropkit.nn.Dropout(0.3, broadcast_dims=1, scale_at="eval", generator=torch.Generator())
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == list(layer.buffers()) == list(layer.children()) == []
    layer.load_state_dict({})
    ours = torch.nn.Sequential(torch.nn.Linear(2, 3), dropkit.nn.Dropout())
    theirs = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled, saved])
def test_copies_are_equal_and_separate(duplicate: Any) -> None:
    layer = dropkit.nn.Dropout(0.3, broadcast_dims=[1, -2], scale_at="eval").eval()
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert not other.training
    assert (other.p, other.inplace, other.broadcast_dims, other.scale_at) == (0.3, False, (1, -2), "eval")
    other.p = 0.9
    assert layer.p == 0.3
    assert torch.equal(layer.train()(X, key=3), dropout(X, 0.3, broadcast_dims=(0, 1), key=3, scale_at="eval"))


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, "Dropout(p=0.5, inplace=False)"), ({"p": 0.1, "inplace": True}, "Dropout(p=0.1, inplace=True)"),
     ({"broadcast_dims": 1}, "Dropout(p=0.5, inplace=False, broadcast_dims=(1,))"),
     ({"scale_at": "eval", "broadcast_dims": (2, -1)},
      "Dropout(p=0.5, inplace=False, broadcast_dims=(2, -1), scale_at='eval')"),
     ({"generator": torch.Generator()}, "Dropout(p=0.5, inplace=False, generator=...)")],
    ids=["default", "in place", "shared", "original form", "generator"],
)  # fmt: skip
def test_its_representation(options: dict[str, Any], shown: str) -> None:
    assert repr(dropkit.nn.Dropout(**options)) == shown
    if not options:
        assert shown == repr(torch.nn.Dropout())


@pytest.mark.parametrize("bad", PROBABILITY.bad_values(), ids=repr)
def test_a_bad_rate_is_refused_when_assigned_and_changes_nothing(bad: object) -> None:
    layer = dropkit.nn.Dropout(0.3)
    before = dict(vars(layer))
    with pytest.raises(ArgumentError, match=r"^Dropout: `p` must be a number in \[0, 1\], got "):
        layer.p = bad
    assert vars(layer) == before
    assert layer.p == 0.3


@pytest.mark.parametrize("p", [0, 1, 0.25, 0.0, 1.0])
def test_a_good_rate_may_be_assigned(p: float) -> None:
    layer = dropkit.nn.Dropout()
    layer.p = p
    assert layer.p == p
    assert type(layer.p) is float
    assert torch.equal(layer(X, key=3), dropout(X, p, key=3))
    for module in torch.nn.Sequential(layer, torch.nn.ReLU()).modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.75
    assert layer.p == 0.75


@pytest.mark.parametrize("p", RATES)
def test_the_original_form(p: float) -> None:
    layer, x = dropkit.nn.Dropout(p, scale_at="eval"), X.double()
    keep = torch.from_numpy(random.keep_mask(3, X.shape, p))
    assert torch.equal(layer(x, key=3), torch.where(keep, x, 0))
    torch.testing.assert_close(layer.eval()(x), x * (1 - realised(p)), rtol=1e-15, atol=0)
    inverted = dropkit.nn.Dropout(p)
    torch.testing.assert_close(inverted(x, key=3), layer.train()(x, key=3) * scale(p), rtol=1e-15, atol=0)


def test_a_generator_of_its_own() -> None:
    layers = [dropkit.nn.Dropout(0.5, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    state = torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(layers[0](X), layers[1](X))
    assert torch.equal(torch.get_rng_state(), state)
    before = layers[0].generator.get_state()
    assert torch.equal(layers[0](X, key=3), dropout(X, 0.5, key=3))
    assert torch.equal(layers[0](X, mask=X > 0), dropout(X, 0.5, mask=X > 0))
    assert torch.equal(layers[0].generator.get_state(), before)


def test_a_mask_overrides_shared_axes() -> None:
    layer = dropkit.nn.Dropout(0.5, broadcast_dims=1)
    assert torch.equal(layer(X, mask=X > 0), dropout(X, 0.5, mask=X > 0))


def test_in_place() -> None:
    x = X.clone()
    assert dropkit.nn.Dropout(0.5, inplace=True)(x, key=3) is x
    assert torch.equal(x, dropout(X, 0.5, key=3))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("inside", [True, False])
def test_torchscript_is_refused_with_the_remedy(inside: bool) -> None:
    layer = dropkit.nn.Dropout()
    with pytest.raises(UnsupportedError) as caught:
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(8, 8), layer) if inside else layer)
    assert str(caught.value) == (
        "Dropout: TorchScript cannot express addressed masks. Use torch.compile or torch.export, or script a model "
        "with torch.nn.Dropout."
    )


def test_options_are_refused_at_construction() -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"inplace": 1}, ArgumentTypeError, "Dropout: `inplace` must be True or False, got 1 (int)."),
        ({"inplace": None}, ArgumentTypeError, "Dropout: `inplace` must be True or False, got None (NoneType)."),
        ({"generator": 3}, ArgumentTypeError, "Dropout: `generator` must be a torch.Generator, got 3 (int)."),
        ({"scale_at": "test"}, ArgumentError, "Dropout: `scale_at` must be one of 'train', 'eval', got 'test' (str)."),
        ({"scale_at": None}, ArgumentError, "Dropout: `scale_at` must be one of 'train', 'eval', got None (NoneType)."),
    ]
    rule = "Dropout: `broadcast_dims` must be an integer or a sequence of integers, got "
    for axes, shown in ((1.0, "1.0 (float)"), (None, "None (NoneType)"), ("1", "'1' (str)"), (True, "True (bool)"),
                        ([0.5], "[0.5] (list)"), ([True], "[True] (list)"), ({1}, "{1} (set)")):  # fmt: skip
        wrong.append(({"broadcast_dims": axes}, ArgumentTypeError, f"{rule}{shown}."))
    for options, kind, message in wrong:
        with pytest.raises(kind) as caught:
            dropkit.nn.Dropout(0.5, **options)
        assert str(caught.value) == message


def test_axes_that_an_input_lacks_are_refused_when_it_comes() -> None:
    layer = dropkit.nn.Dropout(0.5, broadcast_dims=2)
    assert layer(torch.ones(2, 3, 4), key=3).shape == (2, 3, 4)
    for training in (True, False):
        with pytest.raises(ArgumentError, match=r"^dropout: `broadcast_dims` must be an integer in \[-2, 1\], got 2"):
            layer.train(training)(torch.ones(2, 3))
    assert layer.training is False


def test_an_axis_given_twice_is_refused_at_construction() -> None:
    with pytest.raises(ArgumentError, match="`broadcast_dims` must be distinct axes"):
        dropkit.nn.Dropout(broadcast_dims=(0, 0))


@pytest.mark.parametrize(
    ("layer", "name"), [(dropkit.nn.Dropout(0.1), "p"), (dropkit.nn.LSTM(2, 3, recurrent_p=0.1), "recurrent_p")]
)
def test_a_rate_that_was_not_moved_is_what_was_set(layer: Any, name: str) -> None:
    layer.follow()
    layer.unfollow()
    assert getattr(layer, name) == 0.1
    layer.follow()
    setattr(layer, name, 0.2)
    layer.unfollow()
    assert getattr(layer, name) == 0.2
