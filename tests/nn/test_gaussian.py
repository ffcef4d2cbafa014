"""The layer of Gaussian dropout: a thin cover of the function."""

import inspect
from typing import Any

import pytest
import torch

import dropkit
from dropkit.errors import ArgumentError
from dropkit.functional import gaussian_dropout
from dropkit.schedules import Linear, RateScheduler
from tests.helpers.ids import by_name

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def test_layer_and_function_agree_in_names_and_defaults() -> None:
    function = inspect.signature(gaussian_dropout).parameters.items()
    calls = (
        inspect.signature(call).parameters.items()
        for call in (dropkit.nn.GaussianDropout, dropkit.nn.GaussianDropout.forward)
    )
    found = {name: p.default for call in calls for name, p in call if name != "self"}
    assert found == {name: p.default for name, p in function if name != "training"}


@pytest.mark.parametrize(
    ("p", "called"),
    [(0.5, {"key": 3}), (0.9, {"key": 3, "stream": 4}), (0.2, {"key": torch.arange(4), "return_noise": True}),
     (0.1, {"noise": torch.randn(4, 1), "return_noise": True})],
    ids=by_name,
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_the_function(p: float, called: dict[str, Any], training: bool) -> None:
    found = dropkit.nn.GaussianDropout(p).train(training)(X, **called)
    want = gaussian_dropout(X, p, training, **called)
    if called.get("return_noise"):
        (found, noise), (want, other) = found, want
        assert torch.equal(noise, other)
    assert torch.equal(found, want)


def test_a_generator_gives_the_keys() -> None:
    layer = dropkit.nn.GaussianDropout(0.3, generator=torch.Generator().manual_seed(4))
    generator, state = torch.Generator().manual_seed(4), torch.get_rng_state()
    assert torch.equal(layer(X), gaussian_dropout(X, 0.3, generator=generator))
    assert torch.equal(layer(X, key=5), gaussian_dropout(X, 0.3, key=5))
    assert torch.equal(layer(X, noise=2 * torch.ones(4, 5)), 2 * X)
    assert torch.equal(layer.generator.get_state(), generator.get_state())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_schedule_moves_it_but_not_to_one() -> None:
    layer = dropkit.nn.GaussianDropout(0.5)
    handle = RateScheduler(layer, Linear(0.0, 0.8, steps=4))
    for step in range(3):
        assert torch.equal(
            layer(X, key=step), gaussian_dropout(X, torch.tensor(layer.p, dtype=torch.float64), key=step)
        )
        handle.step()
    with pytest.raises(ArgumentError, match=r"^GaussianDropout: `p` must be a number in \[0, 1\), got 1.0"):
        layer.p = 1.0


def test_it_has_no_state_and_shows_its_rate() -> None:
    assert dropkit.nn.GaussianDropout().state_dict() == {}
    assert repr(dropkit.nn.GaussianDropout(0.3)) == "GaussianDropout(p=0.3)"


def test_the_largest_rate_can_be_followed() -> None:
    layer = dropkit.nn.GaussianDropout(1 - 1e-11)
    layer.follow()
    assert layer.p == 1 - 2.0**-32
    assert layer(X, key=5).isfinite().all()
    layer.unfollow()
    assert layer.p == 1 - 1e-11
