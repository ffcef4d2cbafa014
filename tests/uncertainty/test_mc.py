"""Monte Carlo dropout: whose masks, which networks, and what it does not change."""

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.random import call_key, keep_mask, threshold
from dropkit.uncertainty import mc


def net(p: float = 0.5, width: int = 16) -> nn.Sequential:
    layers = nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, 3)
    return nn.Sequential(*layers).double().eval()


def rows(count: int = 6) -> Tensor:
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def masked(model: nn.Sequential, x: Tensor, masks: np.ndarray) -> Tensor:
    """Run a pass by hand."""
    rate = threshold(model[3].p) / 2**32
    with torch.no_grad():
        hidden = model[:3](x)
        return model[4](hidden * torch.from_numpy(masks) / (1 - rate))


@pytest.mark.parametrize("engine", ["prefix", "batched", "loop"])
@pytest.mark.parametrize("chunk", ["auto", 1, 3])
def test_the_masks_of_a_pass_are_those_of_its_stream(engine: str, chunk: int | str) -> None:
    model, x = net(0.3), rows()
    samples = mc(model, 8, seed=11, engine=engine, chunk=chunk, keep_samples=True)(x).samples
    key = call_key(11, "3", 0, 0)
    for number, sample in enumerate(samples):
        want = masked(model, x, keep_mask(key, (6, 16), 0.3, stream=number + 1))
        torch.testing.assert_close(sample, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["prefix", "batched", "loop"])
def test_a_shared_mask_is_that_of_the_first_example(engine: str) -> None:
    model, x = net(), rows()
    samples = mc(model, 5, seed=2, masks="shared", engine=engine, keep_samples=True)(x).samples
    key = call_key(2, "3", 0, 0)
    for number, sample in enumerate(samples):
        want = masked(model, x, keep_mask(key, (1, 16), 0.5, stream=number + 1))
        torch.testing.assert_close(sample, want, rtol=1e-12, atol=1e-12)


def test_equal_examples_part_unless_they_share_masks() -> None:
    x = rows(1).expand(4, -1)
    shared, apart = (
        mc(net(), 5, seed=0, masks=masks, keep_samples=True)(x).samples for masks in ("shared", "per_example")
    )
    torch.testing.assert_close(shared, shared[:, :1].expand_as(shared), rtol=0, atol=1e-12)
    assert bool((apart[:, 1:] != apart[:, :1]).any(-1).all())


@pytest.mark.parametrize("sizes", [(10,), (4, 4, 2), (1, 9)])
@pytest.mark.parametrize("masks", ["per_example", "shared"])
def test_batches_have_the_masks_of_one_large_one(sizes: tuple[int, ...], masks: str) -> None:
    model, x = net(), rows(10)
    predict = mc(model, 7, seed=3, masks=masks, keep_samples=True)
    found = predict.batches(x.split(list(sizes)))
    torch.testing.assert_close(found.samples, predict(x).samples, rtol=1e-12, atol=1e-12)
    assert found.mean.shape == (10, 3)


def test_a_loader_of_pairs_and_one_of_mappings(capsys: pytest.CaptureFixture[str]) -> None:
    x = rows(10)
    whole = mc(net(), 4, seed=0)
    want = whole(x).mean
    loader = DataLoader(TensorDataset(x, torch.zeros(10)), batch_size=3)
    torch.testing.assert_close(whole.batches(loader, progress=True).mean, want)
    named = DataLoader([{"input": row} for row in x], batch_size=5)
    torch.testing.assert_close(whole.batches(named).mean, want)


def test_the_mean_of_many_passes_is_that_of_all_subnetworks() -> None:
    """All 2**6 subnetworks against 20,000 passes, at a false-alarm rate under 1e-6 an output."""
    model, x = net(0.4, width=6), rows(3)
    rate, outputs, weights = threshold(0.4) / 2**32, [], []
    for kept in itertools.product((0.0, 1.0), repeat=6):
        outputs.append(masked(model, x, np.array(kept)[None]))
        weights.append(math.prod(1 - rate if unit else rate for unit in kept))
    weight = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    exact = (torch.stack(outputs) * weight).sum(0)
    variance = ((torch.stack(outputs) - exact).square() * weight).sum(0)
    result = mc(model, 20_000, seed=5)(x)
    assert bool(((result.mean - exact).abs() < 5 * (variance / 20_000).sqrt()).all())
    torch.testing.assert_close(result.std, variance.sqrt(), rtol=0.03, atol=0)


def test_softmax_is_averaged_and_not_logits() -> None:
    model, x = net(), rows()
    logits = mc(model, 30, seed=1, keep_samples=True)(x).samples
    result = mc(model, 30, seed=1, task="classification")(x)
    torch.testing.assert_close(result.mean, logits.softmax(-1).mean(0))
    assert float((result.mean - logits.mean(0).softmax(-1)).abs().max()) > 0.01
    torch.testing.assert_close(result.mean.sum(-1), torch.ones(6, dtype=torch.float64))


def test_passes_stop_where_the_error_is_small_enough() -> None:
    model, x = net(), rows()
    result = mc(model, "auto", task="classification", error=0.02, seed=0)(x)
    assert 16 <= result.n < 10_000
    assert float(result.error.mean.max()) <= 0.02
    assert result.facts["reached"]
    assert mc(model, "auto", task="classification", error=0.01, seed=0)(x).n > result.n


def test_one_object_draws_the_same_masks_again_and_others_do_not() -> None:
    model, x = net(), rows()
    torch.manual_seed(0)
    first, second = mc(model, 5), mc(model, 5)
    assert torch.equal(first(x).mean, first(x).mean)
    assert not torch.equal(first(x).mean, second(x).mean)
    torch.manual_seed(0)
    assert torch.equal(mc(model, 5)(x).mean, first(x).mean)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training: bool) -> None:
    model, x = net().train(training), rows()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given, state = x.clone(), torch.get_rng_state()
    result = mc(model, 5, seed=0)(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training is training for module in model.modules())
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert not result.mean.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(result.mean, mc(model.eval(), 5, seed=0)(x).mean)


class Averaging(nn.Module):
    """Has a parameter that follows what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.layers = nn.Parameter(torch.zeros(4, dtype=torch.float64)), net()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return self.layers(x - self.mean)


@pytest.mark.filterwarnings("ignore:mc. passes over")  # for each finds what the one before left
def test_a_parameter_that_a_forward_writes_is_put_back() -> None:
    model, x = Averaging(), rows()
    predict = mc(model, 3, seed=0)
    for _ in range(2):
        predict(x)
        assert torch.equal(model.mean, torch.zeros(4, dtype=torch.float64))


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.calls, self.last = net(), 0, 10**6

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.last:
            raise KeyError("out of luck")
        return self.layers(x)


@pytest.mark.parametrize("last", range(8))
def test_an_error_of_the_model_is_the_users_and_leaves_it_as_it_was(last: int) -> None:
    model, x = Raising(), rows()
    predict = mc(model, 4, seed=0, engine="loop")
    predict(x)
    model.calls, model.last = 0, last
    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="out of luck") if last < 4 else _nothing():
        predict(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.calls == 0  # put back, as all state is
    model.last = 10**6
    assert predict(x).n == 4


class _nothing:  # noqa: N801  # a context, as pytest.raises is one
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_an_addressed_model_goes_on_with_the_masks_that_it_would_have_had() -> None:
    x = rows()
    found = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = net().train()
        handle = dropkit.sites.address(model, seed=9)
        model(x)
        if looks:
            samples = mc(model, 3, seed=1, keep_samples=True)(x).samples
            assert float(samples.std(0).min()) >= 0
        found.append((model(x), handle.state_dict()))
        handle.close()
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_switch_that_is_open_does_not_turn_passes_off() -> None:
    model, x = net(), rows()
    want = mc(model, 4, seed=0)(x).mean
    with dropkit.sites.switch(model, "off"):
        torch.testing.assert_close(mc(model, 4, seed=0)(x).mean, want)


def test_where_chooses_sites() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    x = rows()
    predict = mc(model, 3, seed=0, where="3")
    assert [site.name for site in predict(x).facts["sites"]] == ["3"]
    assert [site.name for site in predict.sites] == ["3"]
    with pytest.raises(ArgumentError, match="`where` = '7' chooses no site"):
        mc(model, 3, where="7")(x)


@pytest.mark.parametrize("model", [nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), nn.Identity()])
def test_a_model_without_dropout_is_refused(model: nn.Module) -> None:
    with pytest.raises(ArgumentError, match=r"nothing in this \w+ drops .* rate above 0; or put some in"):
        mc(model, 3)(torch.randn(2, 4))


def test_passes_that_are_equal_are_not_taken_for_certain() -> None:
    later = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Dropout(1.0), nn.Linear(16, 3))
    x = torch.randn(6, 4)
    with pytest.raises(ArgumentError, match=r"^mc: of what reaches 3 nothing is kept \(p = 1\).*a rate below 1"):
        mc(later, 5, where="3")(x)
    for task in (None, "classification", "regression"):
        with pytest.warns(UserWarning, match=r"5 passes gave the same output, although 1, 3 dropped.*is no certainty"):
            assert not mc(later, 5, task=task)(x).std.count_nonzero()
    mc(later, 1)(x)  # of which nothing can be told
    mc(later[:3], 5)(x)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n": 0}, ArgumentError, "`n`"),
    ({"n": 2.5}, ArgumentTypeError, "`n`"),
    ({"n": True}, ArgumentTypeError, "`n`"),
    ({"n": "all"}, ArgumentError, "`n`"),
    ({"task": "clustering"}, ArgumentError, "`task`"),
    ({"where": 3}, ArgumentTypeError, "`where`"),
    ({"masks": "none"}, ArgumentError, "`masks`"),
    ({"seed": -1}, ArgumentError, "`seed`"),
    ({"seed": 0.5}, ArgumentTypeError, "`seed`"),
    ({"chunk": 0}, ArgumentError, "`chunk`"),
    ({"chunk": "all"}, ArgumentError, "`chunk`"),
    ({"engine": "fast"}, ArgumentError, "`engine`"),
    ({"error": 0.1}, ArgumentError, "`error`"),
    ({"n": "auto", "error": 0.0}, ArgumentError, "`error`"),
    ({"n": "auto", "error": math.nan}, ArgumentError, "`error`"),
    ({"class_dim": 1.0}, ArgumentTypeError, "`class_dim`"),
    ({"keep_samples": 1}, ArgumentTypeError, "`keep_samples`"),
    ({"batch_dim": -1}, ArgumentError, "`batch_dim`"),
    ({"batch_dim": 64}, ArgumentError, "`batch_dim`"),
    ({"batch_dim": 1.0}, ArgumentTypeError, "`batch_dim`"),
    ({"batch_dim": "0"}, ArgumentTypeError, "`batch_dim`"),
    ({"batch_dim": True}, ArgumentTypeError, "`batch_dim`"),
    ({"batch_dim": ()}, ArgumentError, "`batch_dim`"),
    ({"batch_dim": (None, None)}, ArgumentError, "`batch_dim`"),
    ({"batch_dim": (0, -1)}, ArgumentError, "`batch_dim`"),
    ({"batch_dim": (0, "1")}, ArgumentTypeError, "`batch_dim`"),
]


@pytest.mark.parametrize(("given", "error", "name"), BAD)
def test_bad_arguments(given: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        mc(net(), **given)


@pytest.mark.parametrize("model", [None, "net", nn.Linear, lambda x: x])
def test_what_is_no_module(model: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch\.nn\.Module"):
        mc(model)


@pytest.mark.parametrize("loader", [None, 3, torch.zeros(3, 4), "rows", {"x": 1}])
def test_what_is_no_loader(loader: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="`loader`"):
        mc(net(), 2).batches(loader)


def test_a_loader_without_batches() -> None:
    with pytest.raises(ArgumentError, match="`loader` has no batch"):
        mc(net(), 2).batches([])


@pytest.mark.parametrize("given", [(), (rows(), 3), ("text",)], ids=["none", "more", "text"])
def test_inputs_that_the_model_does_not_take_raise_as_it_does(given: tuple[Any, ...]) -> None:
    model = net()
    with pytest.raises(TypeError):
        model(*given)
    with pytest.raises(TypeError):
        mc(model, 2)(*given)


def test_numbers_that_are_not_finite_go_through() -> None:
    x = rows()
    x[2] = math.nan
    result = mc(net(), 5, seed=0, task="classification")(x)
    assert bool(result.mean[2].isnan().all())
    assert bool(result.mean[[0, 1, 3, 4, 5]].isfinite().all())


def test_a_result_pickles() -> None:
    result = mc(net(), 5, seed=0)(rows())
    assert torch.equal(pickle.loads(pickle.dumps(result)).mean, result.mean)  # noqa: S301  # our own


def test_a_model_without_examples_runs_one_pass_after_another() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.weight = nn.Dropout(0.5), nn.Parameter(torch.ones(40))

        def forward(self, scale: float) -> Tensor:
            return self.drop(self.weight) * scale

    with pytest.warns(UserWarning, match="run one after another"):
        result = mc(Constant(), 30, seed=0, keep_samples=True)(2.0)
    assert set(result.samples.unique().tolist()) == {0.0, 4.0}
    assert bool((result.samples.std(0) > 0).all())
    with pytest.raises(UnsupportedError, match="examples cannot be told apart"):
        mc(Constant(), 3, masks="shared")(2.0)
