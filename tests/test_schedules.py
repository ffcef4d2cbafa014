"""Schedules are exact arrays; their handle moves layers, is saved and restored, and refuses before it changes."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dropkit._checks import PROBABILITY
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.nn import LSTM, Dropout, DropPath
from dropkit.random import threshold
from dropkit.schedules import Constant, Early, Late, Linear, RateScheduler, Schedule, linear_rates
from tests.helpers.wrong import by_constraint

SCHEDULES = (Constant(0.3), Linear(0.0, 0.5, 7), Early(0.5, 4), Late(0.1, 5))


def array(schedule: Schedule, steps: int) -> np.ndarray:
    return np.array([schedule(step) for step in range(steps)])


# The arrays


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.3, 0.1), (1.0, 0.0), (0.1, 0.7), (0.2, 0.2)])
def test_linear_is_numpys_linspace_and_then_constant(start: float, stop: float, steps: int) -> None:
    found = array(Linear(start, stop, steps), steps + 3)
    assert np.array_equal(found, [*np.linspace(start, stop, steps), stop, stop, stop])
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_early_ends_exactly_at_zero(p: float, steps: int) -> None:
    """The array of the authors' code: a linspace from p to 0 over the early iterations, then zeros."""
    want = np.concatenate([np.linspace(p, 0.0, steps), np.zeros(250)])
    assert np.array_equal(array(Early(p, steps), steps + 250), want)


@pytest.mark.parametrize("p", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 50])
def test_late_is_zero_and_then_exactly_p(p: float, steps: int) -> None:
    assert np.array_equal(array(Late(p, steps), steps + 250), np.concatenate([np.zeros(steps), np.full(250, p)]))


def test_constant_is_constant_and_late_steps_have_the_last_rate() -> None:
    assert set(array(Constant(0.3), 100)) == {0.3}
    assert [schedule(2**53) for schedule in SCHEDULES] == [0.3, 0.5, 0.0, 0.1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_values(schedule: Any) -> None:
    assert eval(repr(schedule)) == schedule  # noqa: S307  # our own text
    assert hash(copy.deepcopy(schedule)) == hash(schedule)
    with pytest.raises(AttributeError):
        schedule.p = 0.9


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (Constant, {"p": 0.5}),
        (Linear, {"start": 0.5, "stop": 0.1, "steps": 3}),
        (Early, {"p": 0.5, "steps": 3}),
        (Late, {"p": 0.5, "steps": 3}),
    ],
)
def test_a_wrong_argument_of_a_schedule_is_named(kind: Any, good: dict[str, Any]) -> None:
    assert kind(**good)(np.int64(0)) in {0.5, 0.0}
    for name in good.keys() - {"steps"}:
        for wrong in by_constraint(name, PROBABILITY):
            with pytest.raises(wrong.error, match=rf"^{kind.__name__}: `{name}` must be a number in \[0, 1\], got "):
                kind(**good | {name: wrong.value})
    for steps, error in ((0, ArgumentError), (-1, ArgumentError), (2.0, ArgumentTypeError), (True, ArgumentTypeError)):
        if "steps" in good:
            with pytest.raises(error, match=rf"^{kind.__name__}: `steps` must be an integer in \[1, 2\*\*53\], got"):
                kind(**good | {"steps": steps})
        step = steps - 1 if steps == 0 else steps
        with pytest.raises(error, match=rf"^{kind.__name__}: `step` must be an integer in \[0, 2\*\*53\], got"):
            kind(**good)(step)


# The handle


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), Dropout(0.9), torch.nn.Sequential(torch.nn.ReLU(), Dropout()))


def realised(schedule: Schedule, step: int) -> float:
    return threshold(schedule(step)) / 2**32


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_layers_have_the_rate_of_every_step_and_the_model_the_same_state(schedule: Schedule) -> None:
    model = network()
    keys = list(model.state_dict())
    scheduler = RateScheduler(model, schedule)
    for step in range(10):
        assert scheduler.last_step == step
        assert scheduler.rates() == [realised(schedule, step)] * 2 == [layer.p for layer, _ in scheduler.targets]
        scheduler.step()
    assert list(model.state_dict()) == keys


def test_layers_may_be_given_with_a_schedule_each() -> None:
    model = network()
    scheduler = RateScheduler([model[2][1], model[1]], [Linear(0.0, 0.5, 3), Constant(0.25)])
    scheduler.step()
    assert scheduler.rates() == [0.25, 0.25]
    scheduler.step()
    assert (model[2][1].p, model[1].p) == (0.5, 0.25)
    alone = RateScheduler(model[1], lambda step: 1 / (step + 1))
    alone.step()
    assert (model[1].p, model[2][1].p) == (0.5, 0.5)


def test_a_layer_that_is_used_twice_is_moved_once() -> None:
    layer = Dropout()
    assert RateScheduler(torch.nn.Sequential(layer, torch.nn.ReLU(), layer), Constant(0.25)).targets == ((layer, "p"),)


def moved_over_five_steps(**compiler: Any) -> None:
    """Compare compiled steps with layers of the same rates as numbers; another compilation is an error."""
    torch._dynamo.reset()
    model, plain = network(), network()
    scheduler = RateScheduler(model, Early(0.5, 3))

    def forward(model: torch.nn.Sequential, x: torch.Tensor, key: torch.Tensor | int) -> torch.Tensor:
        return model[2][1](model[1](model[0](x), key=key).relu(), key=key + 1)

    compiled, x = torch.compile(forward, fullgraph=True, **compiler), torch.ones(3, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(5):
            plain[1].p = plain[2][1].p = realised(Early(0.5, 3), step)
            torch.testing.assert_close(compiled(model, x, torch.tensor(step)), forward(plain, x, step))
            scheduler.step()


def test_nothing_compiles_again_over_all_steps() -> None:
    graphs = CompileCounter()
    moved_over_five_steps(backend=graphs)
    assert graphs.frame_count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_the_default_compiler_gives_the_rates_of_every_step() -> None:
    moved_over_five_steps()


def trained(model: torch.nn.Module, optimizer: Any, scheduler: RateScheduler, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_saved_and_restored_equals_never_interrupted(schedule: Schedule) -> None:
    def begun() -> tuple[Any, ...]:
        model = network()
        return model, torch.optim.Adam(model.parameters()), RateScheduler(model, schedule)

    whole, parts, buffer = begun(), begun(), io.BytesIO()
    trained(*whole, range(8))
    trained(*parts, range(3))
    torch.save([part.state_dict() for part in parts], buffer)
    buffer.seek(0)
    resumed = begun()
    for part, state in zip(resumed, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert resumed[2].rates() == parts[2].rates()
    trained(*resumed, range(3, 8))
    assert resumed[2].rates() == whole[2].rates()
    assert all(torch.equal(*pair) for pair in zip(whole[0].parameters(), resumed[0].parameters(), strict=True))


def test_detached_layers_keep_the_rate_that_they_have() -> None:
    model = network()
    scheduler = RateScheduler(model, Linear(0.0, 0.5, 3))
    scheduler.step()
    scheduler.detach()
    scheduler.detach()
    assert (model[1].rate, model[2][1].rate) == (0.25, 0.25)
    assert not list(model.buffers())
    for call in (scheduler.step, lambda: scheduler.load_state_dict({"last_step": 0})):
        with pytest.raises(UnsupportedError, match="it was detached from its layers"):
            call()
    assert (scheduler.last_step, model[1].p) == (1, 0.25)


def test_a_copy_of_the_model_stays_and_a_copy_of_both_is_moved() -> None:
    model = network()
    scheduler = RateScheduler(model, Linear(0.0, 0.5, 3))
    alone, (other, handle) = copy.deepcopy(model), copy.deepcopy((model, scheduler))
    scheduler.step()
    assert (model[1].p, alone[1].p, other[1].p) == (0.25, 0.0, 0.0)
    handle.step()
    handle.step()
    assert (model[1].p, alone[1].p, other[1].p) == (0.25, 0.0, 0.5)


def test_layers_with_several_rates_move_those_that_are_not_0_or_are_named() -> None:
    network, linear = LSTM(3, 4, recurrent_p=0.5, zoneout_c=0.1), Dropout(0.9)
    keys = list(network.state_dict())
    scheduler = RateScheduler(torch.nn.ModuleList([network, linear]), Linear(0.0, 0.5, 3))
    assert scheduler.targets == ((network, "recurrent_p"), (network, "zoneout_c"), (linear, "p"))
    scheduler.step()
    assert (network.recurrent_p, network.zoneout_c, network.output_p, linear.p) == (0.25, 0.25, 0.0, 0.25)
    assert list(network.state_dict()) == keys
    scheduler.load_state_dict({"last_step": 0})
    again = RateScheduler(network, Linear(0.0, 0.5, 3))
    assert again.targets == scheduler.targets[:2], "a rate that follows may be 0 now"
    scheduler.detach()
    assert network.rates["recurrent_p"] == 0.0
    named = RateScheduler([(network, "output_p"), (network, "recurrent_p"), (linear, "p")], [Constant(0.25)] * 3)
    assert (network.output_p, network.recurrent_p, network.zoneout_c, linear.p) == (0.25, 0.25, 0.0, 0.25)
    named.detach()
    assert not list(network.buffers())
    with pytest.raises(ArgumentError, match=r"`layers` must be one of 'dropout', 'input_p', .*got 'p'"):
        RateScheduler([(network, "p")], Constant(0.25))
    with pytest.raises(ArgumentError, match=r"`layers` must be one of 'p', got 'output_p'"):
        RateScheduler([(linear, "output_p")], Constant(0.25))
    with pytest.raises(ArgumentError, match=r"^LSTM: `output_p at step 0` must be a number"):
        RateScheduler([(network, "output_p")], lambda _: 2.0)
    with pytest.raises(ArgumentError, match="got a LSTM that has none with a rate"):
        RateScheduler(LSTM(3, 4), Constant(0.25))


def test_rates_grow_with_depth_and_with_time() -> None:
    paths = [DropPath(p) for p in linear_rates(0.4, depth=3)]
    scheduler = RateScheduler(paths, [Linear(0.0, p, 3) for p in linear_rates(0.4, depth=3)])
    assert scheduler.rates() == [0.0, 0.0, 0.0]
    scheduler.step()
    assert scheduler.rates() == pytest.approx([0.0, 0.1, 0.2], abs=2**-32)
    scheduler.step()
    assert scheduler.rates() == pytest.approx([0.0, 0.2, 0.4], abs=2**-32)


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        (torch.nn.ReLU(), ArgumentError, r"got a ReLU that has none with a rate\. Give it dropkit\.nn\.Dropout"),
        (torch.nn.Sequential(torch.nn.Dropout()), ArgumentError, r"It has 1 of torch\.nn, which no schedule can move"),
        ([torch.nn.Dropout()], ArgumentTypeError, r"got Dropout\(p=0\.5, inplace=False\).*use those of dropkit\.nn"),
        ([], ArgumentError, "one or more distinct layers that have a rate, got "),
        (
            [LSTM(3, 4), Dropout()],
            ArgumentError,
            r"got LSTM\(3, 4\).*Name one in a pair, such as \(layer, 'zoneout_h'\): it has dropout, input_p,",
        ),
        ([Dropout()] * 2, ArgumentError, "one or more distinct layers that have a rate, got "),
        (None, ArgumentTypeError, "got None"),
        ("model", ArgumentTypeError, "got 'model'"),
        ({"a": Dropout()}, ArgumentTypeError, "got {"),
    ],
)
def test_what_has_no_layers_is_refused_with_advice(layers: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^RateScheduler: `layers` must be .*{says}"):
        RateScheduler(layers, Constant(0.5))


@pytest.mark.parametrize(
    ("schedule", "error", "says"),
    [
        (0.5, ArgumentTypeError, "got 0.5"),
        ("linear", ArgumentTypeError, "got 'linear'"),
        ([Constant(0.5), 0.5], ArgumentTypeError, r"lambda step: 0\.5"),
        ([Constant(0.5)], ArgumentError, "one schedule, or 2, one a rate, got .* There are 1."),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: Any, error: type[Exception], says: str) -> None:
    model = network()
    with pytest.raises(error, match=f"^RateScheduler: `schedule` must be .*{says}"):
        RateScheduler(model, schedule)
    assert not list(model.buffers())


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), None, "0.5"])
def test_a_rate_that_a_layer_does_not_take_leaves_all_as_it_was(bad: Any) -> None:
    model = network()
    with pytest.raises(ArgumentError, match=r"^Dropout: `p at step 0` must be a number in \[0, 1\], got"):
        RateScheduler(model, [Constant(0.5), lambda _: bad])
    assert (model[1].rate, model[2][1].rate) == (0.9, 0.5)
    scheduler = RateScheduler(model, [Constant(0.25), lambda step: bad if step == 1 else 0.75])
    for call in (scheduler.step, lambda: scheduler.load_state_dict({"last_step": 1})):
        with pytest.raises(ArgumentError, match=r"^Dropout: `p at step 1` must be"):
            call()
        assert (scheduler.last_step, scheduler.rates()) == (0, [0.25, 0.75])
    scheduler.load_state_dict({"last_step": 2})
    assert scheduler.last_step == 2


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (None, ArgumentTypeError),
        ([3], ArgumentTypeError),
        ({}, ArgumentError),
        ({"last_epoch": 3}, ArgumentError),
        ({"last_step": 3, "p": 0.5}, ArgumentError),
        ({"last_step": -1}, ArgumentError),
        ({"last_step": 2.0}, ArgumentTypeError),
        ({"last_step": None}, ArgumentTypeError),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(state: Any, error: type[Exception]) -> None:
    scheduler = RateScheduler(network(), Linear(0.0, 0.5, 3))
    scheduler.step()
    with pytest.raises(error, match=r"^RateScheduler\.load_state_dict: `state_dict"):
        scheduler.load_state_dict(state)
    assert (scheduler.last_step, scheduler.rates()) == (1, [0.25, 0.25])
