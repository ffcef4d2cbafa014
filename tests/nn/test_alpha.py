"""The layers of alpha dropout: PyTorch's own by type, signature and state, and thin covers of the functions."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dropkit
from dropkit import random
from dropkit.functional import alpha_dropout, feature_alpha_dropout
from dropkit.schedules import Linear, RateScheduler
from tests.helpers.ids import by_name

X = torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "AlphaDropout": (dropkit.nn.AlphaDropout, torch.nn.AlphaDropout, alpha_dropout),
    "FeatureAlphaDropout": (dropkit.nn.FeatureAlphaDropout, torch.nn.FeatureAlphaDropout, feature_alpha_dropout),
}
EACH = pytest.mark.parametrize(("ours", "theirs", "function"), LAYERS.values(), ids=LAYERS)


@EACH
def test_it_is_pytorchs(ours: Any, theirs: Any, function: Any) -> None:
    layer = ours(0.3)
    assert isinstance(layer, theirs)
    assert layer.state_dict() == theirs().state_dict() == {}
    found, wanted = (inspect.signature(call).parameters for call in (ours, theirs))
    positional = {name: p.default for name, p in found.items() if p.kind is not p.KEYWORD_ONLY}
    assert positional == {name: p.default for name, p in wanted.items()}
    assert (ours(0.3, True).p, ours(0.3, True).inplace) == (0.3, True)


@EACH
def test_layer_and_function_agree_in_names_and_defaults(ours: Any, theirs: Any, function: Any) -> None:
    wanted = {name: p.default for name, p in inspect.signature(function).parameters.items() if name != "training"}
    calls = (inspect.signature(call).parameters.items() for call in (ours, ours.forward))
    found = {name: p.default for call in calls for name, p in call if name != "self"}
    assert found == wanted


@EACH
@pytest.mark.parametrize(
    ("built", "called"),
    [({}, {"key": 3}), ({"p": 0.9}, {"key": 3, "stream": 4}), ({"mean": 1.0, "variance": 2.0}, {"key": 3}),
     ({}, {"key": torch.arange(4), "return_mask": True}),
     ({"p": 0.1}, {"mask": torch.rand(4, 5, 1, 1) > 0.3, "return_mask": True})],
    ids=by_name,
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_the_function(
    ours: Any, theirs: Any, function: Any, built: Any, called: Any, training: bool
) -> None:
    found = ours(**built).train(training)(X, **called)
    want = function(X, training=training, **built, **called)
    if called.get("return_mask"):
        (found, mask), (want, other) = found, want
        assert torch.equal(mask, other)
    assert torch.equal(found, want)


@EACH
def test_a_generator_gives_the_keys(ours: Any, theirs: Any, function: Any) -> None:
    layer, generator = ours(0.3, generator=torch.Generator().manual_seed(4)), torch.Generator().manual_seed(4)
    state = torch.get_rng_state()
    assert torch.equal(layer(X), function(X, 0.3, generator=generator))
    assert torch.equal(layer(X, key=5), function(X, 0.3, key=5))
    assert torch.equal(layer.generator.get_state(), generator.get_state())
    assert torch.equal(torch.get_rng_state(), state)


@EACH
def test_it_overwrites_its_input_if_asked(ours: Any, theirs: Any, function: Any) -> None:
    x = X.clone()
    assert ours(0.3, inplace=True)(x, key=5) is x
    assert torch.equal(x, function(X, 0.3, key=5))


@EACH
def test_a_schedule_moves_it(ours: Any, theirs: Any, function: Any) -> None:
    layer = ours(0.5)
    handle = RateScheduler(layer, Linear(0.0, 0.8, steps=4))
    for step in range(3):
        assert torch.equal(layer(X, key=step), function(X, torch.tensor(layer.p, dtype=torch.float64), key=step))
        handle.step()
    assert layer.p > 0


@EACH
def test_it_shows_what_differs_from_the_defaults(ours: Any, theirs: Any, function: Any) -> None:
    assert repr(ours()) == f"{ours.__name__}(p=0.5, inplace=False)"
    assert repr(ours(0.1, mean=0.5)) == f"{ours.__name__}(p=0.1, inplace=False, mean=0.5)"
    assert repr(ours(variance=2)) == f"{ours.__name__}(p=0.5, inplace=False, variance=2.0)"


def test_a_deep_selu_network_keeps_mean_and_variance() -> None:
    """Forty layers end with the variance 1.62 under ordinary dropout, and 0.93 where q is left off a term of A."""
    width, depth = 400, 40
    x = torch.from_numpy(random.normal(1, (1000, width), dtype="float32"))
    layer = dropkit.nn.AlphaDropout(0.1)
    for i in range(depth):
        weight = torch.from_numpy(random.normal(2 + i, (width, width), dtype="float32")) / width**0.5
        x = layer(F.selu(x @ weight), key=i)
    assert abs(x.mean()) < 0.02
    assert abs(x.var() - 1) < 0.03
