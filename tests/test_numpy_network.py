"""The two-layer network: gradients against finite differences, masks from their addresses, and its argument checks."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from dropkit._checks import KEY, PROBABILITY, Integer, Number
from dropkit.errors import ArgumentError, ArgumentTypeError, DropkitError
from dropkit.numpy import TwoLayerNetwork
from dropkit.random import call_key, keep_mask

COUNT = Integer(1, 2**31 - 1)
RATE = Number(0.0, math.inf, open_low=True, open_high=True)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = (X[:, 0] * X[:, 1] > 0).astype(int)


def numeric_gradient(network: TwoLayerNetwork, name: str, training: bool) -> np.ndarray:
    """Central differences of the loss; the masks do not change between them, since no step is made."""
    parameter = network.parameters[name]
    gradient = np.zeros_like(parameter)
    for place in np.ndindex(parameter.shape):
        losses = []
        for bump in (1e-6, -1e-6):
            network.parameters[name] = parameter.copy()
            network.parameters[name][place] += bump
            losses.append(network.loss(X, Y, training=training))
        gradient[place] = (losses[0] - losses[1]) / 2e-6
    network.parameters[name] = parameter
    return gradient


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2"])
@pytest.mark.parametrize("training", [True, False])
def test_every_gradient_agrees_with_finite_differences(name: str, training: bool) -> None:
    network = TwoLayerNetwork(3, 6, p=0.4, p_input=0.2, seed=1)
    network.step({key: 0.1 * np.ones_like(value) for key, value in network.parameters.items()}, 1.0)  # biases off 0
    gradient = network.backward(network.forward(X, training=training), Y)[name]
    np.testing.assert_allclose(gradient, numeric_gradient(network, name, training), rtol=1e-6, atol=1e-8)


def test_a_backward_pass_without_the_mask_would_be_caught() -> None:
    network = TwoLayerNetwork(3, 6, p=0.4, seed=1)
    done = network.forward(X, training=True)
    unmasked = network.backward(done._replace(mask_hidden=np.ones_like(done.mask_hidden)), Y)
    assert np.abs(unmasked["w1"] - numeric_gradient(network, "w1", training=True)).max() > 1e-3


def test_the_weights_of_a_dropped_unit_get_no_update_from_that_row() -> None:
    network = TwoLayerNetwork(3, 50, p=0.5, p_input=0.3, seed=2)
    done = network.forward(X[:1], training=True)
    gradient = network.backward(done, Y[:1])
    dropped = ~done.mask_hidden[0]
    assert 0 < dropped.sum() < 50
    assert not gradient["w1"][:, dropped].any()
    assert not gradient["b1"][dropped].any()
    assert not gradient["w2"][dropped].any()
    working = done.mask_hidden[0] & done.active[0]
    assert gradient["w2"][working].all()
    assert gradient["b1"][working].all()
    assert np.array_equal(gradient["w1"][:, working].all(axis=1), done.mask_x[0])


def test_masks_follow_from_seed_place_and_step() -> None:
    network = TwoLayerNetwork(3, 6, p=0.4, p_input=0.2, seed=2**64 - 1)
    for step in range(3):
        done = network.forward(X, training=True)
        assert np.array_equal(done.mask_hidden, keep_mask(call_key(2**64 - 1, "hidden", step), (40, 6), 0.4))
        assert np.array_equal(done.mask_x, keep_mask(call_key(2**64 - 1, "input", step), (40, 3), 0.2))
        assert np.array_equal(done.logits, network.forward(X, training=True).logits)
        network.step(network.backward(done, Y), 0.1)


def test_evaluation_is_the_plain_network() -> None:
    network = TwoLayerNetwork(3, 6, p=0.4, p_input=0.2, seed=3)
    w1, b1, w2, b2 = network.parameters.values()
    logits = np.maximum(X @ w1 + b1, 0) @ w2 + b2
    probability = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(network.forward(X).logits, logits, rtol=1e-14)
    np.testing.assert_allclose(network.predict(X), probability, rtol=1e-14)
    expected = -np.mean(Y * np.log(probability) + (1 - Y) * np.log(1 - probability))
    assert network.loss(X, Y) == pytest.approx(expected, rel=1e-13)


def test_logits_of_any_size_overflow_nowhere() -> None:
    network = TwoLayerNetwork(1, 1, p=0.0)
    network.parameters = {"w1": np.array([[1e200]]), "b1": np.zeros(1), "w2": np.ones(1), "b2": np.array(-1e3)}
    x = np.array([[1.0], [-1.0]])
    assert network.predict(x).tolist() == [1.0, 0.0]
    assert network.loss(x, [1, 0]) == 0.0
    assert network.loss(x[1:], [1]) == 1e3


def test_weights_start_with_the_variance_stated_and_biases_at_zero() -> None:
    """The sample variance of n normals has the relative standard deviation sqrt(2 / n); five of them are allowed."""
    network = TwoLayerNetwork(200, 5000)
    w1, b1, w2, b2 = network.parameters.values()
    for weights, variance in ((w1, 2 / 200), (w2, 1 / 5000)):
        assert abs((weights**2).mean() / variance - 1) < 5 * math.sqrt(2 / weights.size)
    assert not b1.any()
    assert b2 == 0


def test_gradient_descent_lowers_the_loss_at_every_step_without_dropout() -> None:
    network = TwoLayerNetwork(3, 20, p=0.0, seed=0)
    losses = []
    for _ in range(200):
        losses.append(network.loss(X, Y))
        network.step(network.backward(network.forward(X, training=True), Y), 0.05)
    assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize(("p", "p_input"), [(0.0, 0.0), (0.5, 0.0), (0.2, 0.1)])
def test_fit_learns_what_no_linear_model_can(p: float, p_input: float) -> None:
    network = TwoLayerNetwork(3, 64, p=p, p_input=p_input, seed=0)
    network.fit(X, Y, epochs=600, learning_rate=0.3, batch_size=10)
    assert (network.predict(X).round() == Y).mean() >= 0.9


@pytest.mark.parametrize(("rows", "size", "steps"), [(40, None, 3), (40, 40, 3), (40, 7, 18), (40, 100, 3), (1, 1, 3)])
def test_an_epoch_uses_each_row_once_in_batches_of_the_size_given(
    rows: int, size: int | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen = TwoLayerNetwork(3, 4), []
    forward = network.forward

    def record(x: np.ndarray, training: bool = False) -> object:
        seen.append(x)
        return forward(x, training)

    monkeypatch.setattr(network, "forward", record)
    network.fit(X[:rows], Y[:rows], epochs=3, learning_rate=0.1, batch_size=size)
    assert len(seen) == steps == network.steps
    assert max(map(len, seen)) == min(size or rows, rows)
    epochs = np.concatenate(seen).reshape(3, rows, 3)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(X[:rows].tolist())
    assert rows == 1 or not np.array_equal(epochs[0], epochs[1]), "every epoch has an order of its own"


def trained(seed: int) -> dict[str, np.ndarray]:
    network = TwoLayerNetwork(3, 4, p=0.5, seed=seed)
    network.fit(X, Y, epochs=3, learning_rate=0.1, batch_size=8)
    return network.parameters


def test_the_seed_decides_everything() -> None:
    first, again, other = trained(5), trained(5), trained(6)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_with_every_unit_dropped_only_the_output_bias_learns() -> None:
    network = TwoLayerNetwork(3, 4, p=1.0)
    gradient = network.backward(network.forward(X, training=True), Y)
    assert [name for name, value in gradient.items() if value.any()] == ["b2"]
    assert gradient["b2"] == pytest.approx(0.5 - Y.mean())


def fit(**arguments: object) -> None:
    given = {"x": X, "y": Y, "epochs": 1, "learning_rate": 0.1, **arguments}
    TwoLayerNetwork(3, 4).fit(**given)  # type: ignore[arg-type]


BAD_ARGUMENTS: list[tuple[Callable[..., object], str, object]] = [
    *((lambda inputs: TwoLayerNetwork(inputs, 4), "inputs", bad) for bad in COUNT.bad_values()),
    *((lambda hidden: TwoLayerNetwork(3, hidden), "hidden", bad) for bad in COUNT.bad_values()),
    *((lambda p: TwoLayerNetwork(3, 4, p=p), "p", bad) for bad in PROBABILITY.bad_values()),
    *((lambda p_input: TwoLayerNetwork(3, 4, p_input=p_input), "p_input", bad) for bad in PROBABILITY.bad_values()),
    *((lambda seed: TwoLayerNetwork(3, 4, seed=seed), "seed", bad) for bad in KEY.bad_values()),
    *((fit, "epochs", bad) for bad in COUNT.bad_values()),
    *((fit, "batch_size", bad) for bad in COUNT.bad_values() if bad is not None),
    *((fit, "learning_rate", bad) for bad in [*RATE.bad_values(), math.inf]),
]


@pytest.mark.parametrize(("call", "name", "bad"), BAD_ARGUMENTS)
def test_bad_numbers_are_refused_by_name_with_the_value(call: Callable[..., object], name: str, bad: object) -> None:
    with pytest.raises(DropkitError, match=rf"`{name}` must be an? .*got {re.escape(repr(bad))}"):
        call(**{name: bad})


BAD_ROWS = [X[0], X[:, :2], X[:0], X[None], [], 1.0, np.full((2, 3), np.nan), np.full((2, 3), np.inf)]


@pytest.mark.parametrize("x", BAD_ROWS)
def test_bad_rows_are_refused_everywhere(x: np.ndarray) -> None:
    network = TwoLayerNetwork(3, 4)
    for call in (network.forward, network.predict, lambda x: network.loss(x, Y), lambda x: fit(x=x)):
        with pytest.raises(ArgumentError, match=r"`x` must be (of shape \(rows, 3\) with a row or more|finite), got"):
            call(x)


@pytest.mark.parametrize("x", [np.full((2, 3), "a"), X.astype(complex), X.astype(object), None])
def test_rows_that_are_no_real_numbers_are_refused(x: np.ndarray) -> None:
    with pytest.raises(ArgumentTypeError, match="`x` must be an array of real numbers, got"):
        TwoLayerNetwork(3, 4).forward(x)


@pytest.mark.parametrize("y", [Y[:-1], Y[:, None], 1, [], Y + 1, Y * 0.5, Y * np.nan, np.where(Y, "Yes", "No")])
def test_bad_classes_are_refused_everywhere(y: np.ndarray) -> None:
    network = TwoLayerNetwork(3, 4)
    calls = (lambda y: network.backward(network.forward(X), y), lambda y: network.loss(X, y), lambda y: fit(y=y))
    for call in calls:
        with pytest.raises(
            ArgumentError, match=r"`y` must be (of shape \(40,\), a class for each row|classes 0 and 1 alone), got"
        ):
            call(y)


def test_a_bad_step_changes_nothing() -> None:
    network = TwoLayerNetwork(3, 4)
    before = dict(network.parameters)
    gradients = network.backward(network.forward(X, training=True), Y)
    for bad in ({}, {**gradients, "w3": np.ones(1)}, {**gradients, "w1": gradients["w1"].T}):
        with pytest.raises(ArgumentError, match=r"`gradients` must be of the shapes .*Give what `backward` returned"):
            network.step(bad, 0.1)
    with pytest.raises(ArgumentTypeError, match="`gradients` must be a mapping"):
        network.step([1.0], 0.1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`learning_rate` must be a number in"):
        network.step(gradients, 0.0)
    assert network.steps == 0
    assert all(network.parameters[name] is value for name, value in before.items())


def test_backward_takes_what_forward_returned() -> None:
    with pytest.raises(ArgumentTypeError, match="`done` must be what `forward` returned, got"):
        TwoLayerNetwork(3, 4).backward((X, Y), Y)  # type: ignore[arg-type]


def test_masked_numbers_are_refused() -> None:
    """As plain numbers they would be trained on."""
    network = TwoLayerNetwork(inputs=2, hidden=3)
    x, y = np.ma.masked_equal(np.ones((4, 2)), 0), np.ma.masked_equal(np.ones(4), 0)
    with pytest.raises(ArgumentTypeError, match=r"`x` must be an array that is not masked.*x\.filled\(0\)"):
        network.predict(x)
    with pytest.raises(ArgumentTypeError, match=r"`y` must be an array that is not masked.*y\.filled\(0\)"):
        network.fit(np.ones((4, 2)), y, epochs=1, learning_rate=0.1)
