"""Moments of a model's outputs in one pass: exact where maps are linear, near sampling where they are not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from benchmarks.moments import compare, diabetes, sampled, trained
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.uncertainty import Moments, exact, moments
from tests.uncertainty.masks import enumerated, moments_of


class Written(nn.Module):
    """A model whose forward is a function of its layers and an input."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def drop(self: nn.Module, x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, self.training)


def around_dropout(self: Written, x: Tensor) -> Tensor:
    h = self.layers[0](x)
    return h + 2 * self.layers[1](drop(self, h, 0.25))


def both_sides(self: Written, x: Tensor) -> Tensor:
    h = drop(self, x, 0.25)
    a, b = self.layers[1](h), drop(self, -h, 0.5)
    return torch.cat([a - b, 3 * h, a[:, 1:2] / 2], 1)


def in_place(self: Written, x: Tensor) -> Tensor:
    h = drop(self, x, 0.25)
    branch = self.layers[1](h)
    branch += h
    h.mul_(2.0)
    return branch + h


def narrowed(self: Written, x: Tensor) -> Tensor:
    h = drop(self, x, 0.25)
    first, second = self.layers[2](h), self.layers[2](2 * h)
    return torch.cat([first, second + h[:, :2], self.layers[2](h), self.layers[1](h)], 1)


def narrowed_again(self: Written, x: Tensor) -> Tensor:
    h = drop(self, x, 0.25)
    narrow = self.layers[2](h)
    return torch.cat([narrow, drop(self, h, 0.5)[:, 1:], self.layers[1](h)], 1)


def chain(self: Written, x: Tensor) -> Tensor:
    first = drop(self, x, 0.25)
    second = drop(self, first, 0.5)
    return self.layers[0](first) + self.layers[1](second) - second


def reshaped(self: Written, x: Tensor) -> Tensor:
    h = drop(self, self.layers[0](x), 0.25).view(x.size(0), 2, -1).transpose(1, 2)
    a, b = h.unbind(2)
    return torch.stack([a, b + a], 1).flatten(1).mean(1, keepdim=True) @ torch.ones(1, 2, dtype=x.dtype)


WRITTEN = {
    "around_dropout": (around_dropout, {"#0": (4,)}, {"#0": 0.25}),
    "both_sides": (both_sides, {"#0": (4,), "#1": (4,)}, {"#0": 0.25, "#1": 0.5}),
    "chain": (chain, {"#0": (4,), "#1": (4,)}, {"#0": 0.25, "#1": 0.5}),
    "in_place": (in_place, {"#0": (4,)}, {"#0": 0.25}),
    "narrowed": (narrowed, {"#0": (4,)}, {"#0": 0.25}),
    "narrowed_again": (narrowed_again, {"#0": (4,), "#1": (4,)}, {"#0": 0.25, "#1": 0.5}),
    "reshaped": (reshaped, {"#0": (4,)}, {"#0": 0.25}),
}


def images(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


LAYERS = {
    "dense": (
        lambda: nn.Sequential(nn.Dropout(0.25), nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        (3,),
        {"0": (3,), "2": (4,)},
    ),
    "dropout_twice": (
        lambda: nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.5), nn.Linear(3, 2)),
        (3,),
        {"0": (3,), "1": (3,)},
    ),
    "channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Dropout2d(0.25), nn.Conv2d(3, 2, 2), nn.Flatten()),
        (1, 4, 4),
        {"1": (3, 1, 1)},
    ),
    "channels_twice": (
        lambda: nn.Sequential(nn.Dropout2d(0.25), nn.Conv2d(3, 2, 2), nn.Dropout2d(0.5), nn.Conv2d(2, 2, 2)),
        (3, 3, 3),
        {"0": (3, 1, 1), "2": (2, 1, 1)},
    ),
    "pixels": (
        lambda: nn.Sequential(nn.Dropout(0.25), nn.Conv2d(1, 2, 2, padding=1), nn.AvgPool2d(2), nn.BatchNorm2d(2)),
        (1, 3, 3),
        {"0": (1, 3, 3)},
    ),
    "sequences": (
        lambda: nn.Sequential(nn.Dropout1d(0.25), nn.Conv1d(3, 2, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        (3, 4),
        {"0": (3, 1)},
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Dropout(0.5), nn.ConvTranspose2d(1, 2, 2), nn.AvgPool2d(2, 1)),
        (1, 2, 2),
        {"0": (1, 2, 2)},
    ),
    "alpha": (lambda: nn.Sequential(nn.Linear(3, 4), nn.AlphaDropout(0.25), nn.Linear(4, 2)), (3,), {"1": (4,)}),
    "alpha_channels": (
        lambda: nn.Sequential(nn.FeatureAlphaDropout(0.25), nn.Conv2d(3, 2, 2)),
        (3, 3, 3),
        {"0": (3, 1, 1)},
    ),
    "path": (
        lambda: nn.Sequential(nn.Linear(3, 4), dropkit.nn.DropPath(0.25), nn.Linear(4, 2)),
        (3,),
        {"1": (1,)},
    ),
    "shared": (
        lambda: nn.Sequential(dropkit.nn.Dropout(0.25, broadcast_dims=(2,)), nn.Flatten(), nn.Linear(8, 3)),
        (4, 2),
        {"0": (4, 1)},
    ),
    "weights": (lambda: dropkit.nn.DropConnect(3, 2, p=0.25), (3,), {"": (2, 4)}),
}  # fmt: skip


def rates_of(model: nn.Module, names: dict[str, tuple[int, ...]]) -> dict[str, float]:
    return {name: float(model.get_submodule(name).p) for name in names}


def settled(model: nn.Module) -> nn.Module:
    """Give norms statistics that are not those of new ones."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double()


def assert_exact(model: nn.Module, x: Tensor, shapes: dict[str, Any], rates: dict[str, float]) -> None:
    found = moments(model)(x)
    frozen = copy.deepcopy(model)
    for module in frozen.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module  # enumeration runs in training mode
            module.training = False
    for i, example in enumerate(x.split(1)):
        mean, covariance = moments_of(*enumerated(frozen, example, shapes, rates))
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.covariance[i], covariance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.variance[i].flatten(), covariance.diagonal(), rtol=1e-12, atol=1e-12)
    assert found.error == 0.0


@pytest.mark.parametrize("name", LAYERS)
def test_linear_networks_are_exact(name: str) -> None:
    torch.manual_seed(0)
    build, shape, shapes = LAYERS[name]
    model = settled(build())
    assert_exact(model, torch.randn(2, *shape).double(), shapes, rates_of(model, shapes))


@pytest.mark.parametrize("name", WRITTEN)
def test_both_sides_of_a_connection_are_correlated(name: str) -> None:
    torch.manual_seed(0)
    run, shapes, rates = WRITTEN[name]
    model = Written(run, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    assert_exact(model, torch.randn(2, 4).double(), shapes, rates)


def test_gaussian_dropout_has_the_variance_of_its_noise() -> None:
    model = nn.Sequential(dropkit.nn.GaussianDropout(0.2), nn.Linear(3, 2)).double()
    x = torch.randn(2, 3).double()
    weight = model[1].weight
    expected = torch.stack([weight @ torch.diag(0.25 * row**2) @ weight.T for row in x])
    torch.testing.assert_close(moments(model)(x).covariance, expected.detach(), rtol=1e-8, atol=1e-12)


def test_dropout_of_a_sum_with_its_residual() -> None:
    def run(self: Written, x: Tensor) -> Tensor:
        return dropkit.functional.dropout_add(self.layers[0](x), x, 0.25, training=self.training)

    model = Written(run, nn.Linear(3, 3)).double()
    x = torch.randn(2, 3).double()
    branch = model.layers[0](x).detach()
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, x + branch)
    torch.testing.assert_close(found.covariance, torch.diag_embed(branch**2 / 3))


def test_a_hidden_layer_is_near_enumeration() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(20, 12).double()
    found, reference = moments(model)(x), exact(model, x, output="raw")
    assert float((found.std / reference.std - 1).abs().mean()) < 0.1
    assert float(((found.mean - reference.arithmetic).abs() / reference.std).mean()) < 0.05


def test_a_rate_of_one_leaves_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(1.0), nn.Linear(3, 2))
    found = moments(model)(torch.randn(4, 3))
    assert torch.equal(found.mean, model[2].bias.expand(4, 2))
    assert torch.equal(found.std, torch.zeros(4, 2))


@pytest.mark.parametrize(("hidden", "p"), [((50,), 0.1), ((50, 50), 0.1)], ids=["one_layer", "two_layers"])
def test_a_trained_network_is_near_sampling(hidden: tuple[int, ...], p: float) -> None:
    inputs, targets, test = diabetes()
    row = compare("", trained(p, hidden, inputs, targets, epochs=20), test, passes=2000)
    assert row.error < 0.15
    assert abs(row.ratio - 1) < 0.1
    assert row.correlation > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("hidden", [(50,), (50, 50)], ids=["one_layer", "two_layers"])
def test_standard_deviations_are_within_fifteen_percent(hidden: tuple[int, ...], p: float) -> None:
    inputs, targets, test = diabetes()
    row = compare("", trained(p, hidden, inputs, targets, epochs=100), test, passes=10_000)
    assert row.error < 0.15
    assert row.median < 0.15
    assert row.error < row.sampled_error  # that of 50 passes


def test_covariances_matter() -> None:
    """What is correlated adds up: without covariances the deviation of a mean over units would be far too small."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 1)).double()
    nn.init.constant_(model[3].weight, 1 / 64)
    nn.init.uniform_(model[1].weight, 0, 0.1)  # so that all hidden units rise and fall together
    x = torch.rand(8, 100).double() - 0.25
    alone = moments(model[:3])(x)
    without = (alone.variance.sum(1) / 64**2).sqrt()
    full, reference = moments(model)(x).std[:, 0], sampled(model, x, 4000).std(0)[:, 0]
    assert float((without / reference).mean()) < 0.5
    assert float((full / reference - 1).abs().mean()) < 0.1


def test_a_rank_keeps_variances_of_a_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.25), nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3)).double()
    x = torch.randn(2, 2, 8, 8).double()
    first, whole = moments(model[:2], rank=4)(x), moments(model[:2], rank=1000)(x)
    torch.testing.assert_close(first.variance, whole.variance, rtol=1e-10, atol=1e-12)
    assert not whole.neglected
    assert 0 < first.neglected["1"] < 1
    torch.testing.assert_close(first.mean, whole.mean)
    errors = []
    for rank in (1, 16, 64, 1000):
        found = moments(model, rank=rank)(x)
        errors.append((found.error, float((found.std / moments(model, rank=1000)(x).std - 1).abs().mean())))
    assert errors[-1] == (0.0, 0.0)
    assert [share for share, _ in errors] == sorted((share for share, _ in errors), reverse=True)
    assert errors[2][1] < errors[0][1]


def test_wide_vectors_are_like_feature_maps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.25), nn.Linear(2500, 2100), nn.Linear(2100, 2)).double()
    x = torch.randn(1, 2500).double()
    found = moments(model)(x)
    weight = model[2].weight @ model[1].weight
    expected = ((x**2 / 3) @ (weight**2).T).detach()
    assert 0 < found.error < 1
    assert float((found.variance / expected - 1).abs().max()) < 0.25
    torch.testing.assert_close(moments(model, rank=4000)(x).variance, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_are_near_wide_ones(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.Dropout(0.25), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 2)
    model = nn.Sequential(*layers).double()
    x = torch.randn(3, 1, 8, 8).double()
    expected, found = moments(model)(x), moments(copy.deepcopy(model).to(dtype))(x.to(dtype))
    assert found.std.dtype == dtype
    tolerance = torch.finfo(dtype).eps * 8
    torch.testing.assert_close(found.std.double(), expected.std, rtol=tolerance, atol=tolerance)


def test_sources_beyond_the_rank_are_compressed() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Dropout2d(0.25), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2)).double()
    x = torch.randn(3, 6, 8, 8).double()
    few, many = moments(model, rank=16)(x), moments(model, rank=512)(x)
    assert few.error > many.error
    assert float((few.std / many.std - 1).abs().max()) < 0.25


def test_a_dense_layer_after_feature_maps_neglects_nothing_of_private_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.25), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)).double()
    x = torch.randn(2, 2, 8, 8).double()
    found, whole = moments(model)(x), moments(model, rank=1000)(x)
    torch.testing.assert_close(found.covariance, whole.covariance)
    assert not found.neglected


def gated(self: Written, x: Tensor) -> Tensor:
    if self.training:
        x = F.dropout(x, 0.5)
    return self.layers[0](x)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("run", [gated, lambda self, x: self.layers[0](drop(self, x, 0.5))], ids=["gated", "flag"])
def test_functional_dropout_is_met_in_either_mode(run: Callable[..., Tensor], mode: bool) -> None:
    model = Written(run, nn.Linear(3, 2)).double().train(mode)
    x = torch.randn(2, 3).double()
    weight = model.layers[0].weight.detach()
    expected = torch.stack([weight @ torch.diag(row**2) @ weight.T for row in x])
    torch.testing.assert_close(moments(model)(x).covariance, expected)
    assert model.training is mode


def test_anything_may_run_before_the_first_site() -> None:
    torch.manual_seed(0)
    prefix = nn.Sequential(nn.Embedding(10, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True))
    model = nn.Sequential(prefix, nn.LayerNorm(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 2)).eval()
    tokens = torch.randint(10, (4, 3))
    h = model[2](model[1](prefix(tokens))).detach()
    weight = model[4].weight.detach()
    found = moments(model)(tokens)
    torch.testing.assert_close(found.mean, model(tokens).detach())
    torch.testing.assert_close(found.variance, (h**2) @ (weight**2).T, rtol=1e-5, atol=1e-6)


def test_outputs_keep_their_structure() -> None:
    def run(self: Written, x: Tensor, *, scale: float) -> dict[str, Any]:
        h = drop(self, x, 0.5)
        return {"logits": scale * self.layers[0](h), "plain": x, "number": 3}

    model = Written(run, nn.Linear(3, 2))
    found = moments(model)(torch.ones(2, 3), scale=2.0)
    assert isinstance(found["logits"], Moments)
    assert found["logits"].mean.shape == (2, 2)
    assert torch.equal(found["plain"].std, torch.zeros(2, 3))
    assert found["number"] == 3


def test_rates_that_change_are_followed() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2), nn.Dropout(0.0)).double()
    x, propagate = torch.randn(2, 3).double(), moments(model)
    before = propagate(x).variance
    model[0].p = 0.2
    torch.testing.assert_close(propagate(x).variance, before / 4, rtol=1e-8, atol=0)
    model[2].p = 0.5
    torch.testing.assert_close(propagate(x).variance, moments(model)(x).variance)
    assert (propagate(x).variance > before / 4).all()


def state_of(model: nn.Module) -> list[Any]:
    values = [value.clone() for value in model.state_dict().values()]
    return [[module.training for module in model.modules()], values, torch.get_rng_state()]


@pytest.mark.parametrize("last", [nn.Linear(4, 2), nn.LayerNorm(4)], ids=["works", "raises"])
def test_a_model_is_left_as_it_was(last: nn.Module) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4), nn.ReLU(inplace=True), last)
    model[0].eval()
    model[2].weight.grad = torch.ones(4, 3)
    x = torch.randn(5, 3)
    given, before = x.clone(), state_of(model)
    if isinstance(last, nn.LayerNorm):
        with pytest.raises(UnsupportedError):
            moments(model)(x)
    else:
        assert not moments(model)(x).mean.requires_grad
    after = state_of(model)
    assert after[0] == before[0]
    assert all(map(torch.equal, after[1], before[1]))
    assert torch.equal(after[2], before[2])
    assert torch.equal(model[2].weight.grad, torch.ones(4, 3))
    assert torch.equal(x, given)


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "layer_norm": (lambda: nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(4)), (2, 4), "layer_norm has no rule .* '1'"),
    "softmax": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Softmax(1)), (2, 4), "softmax has no rule .* '1'"),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 1, 4, 0.5, batch_first=True), (2, 3, 4), "multi_head_attention, has no"),
    "lstm": (lambda: nn.LSTM(4, 4, 2, dropout=0.5), (2, 3, 4), "lstm, has no rule"),
    "learned": (lambda: nn.Sequential(dropkit.nn.ConcreteDropout(nn.Linear(4, 4))), (2, 4), "concrete_dropout, has no"),
    "by_hand": (
        lambda: Written(lambda self, x: x * (torch.rand_like(x) > 0.5) if self.training else x), (2, 4), "mask, has"),
    "product": (
        lambda: Written(lambda self, x: drop(self, x, 0.5) * drop(self, x, 0.5)), (2, 4), "of two random tensors"),
    "batch_mean": (lambda: Written(lambda self, x: drop(self, x, 0.5).mean(0)), (2, 4), "the axis of examples"),
    "batch_mixed": (lambda: Written(lambda self, x: drop(self, x, 0.5).view(1, 8)), (2, 4), "across the examples"),
    "batch_turned": (lambda: Written(lambda self, x: drop(self, x, 0.5).permute(1, 0)), (4, 4), "across the examples"),
    "batch_norm": (
        lambda: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4, track_running_stats=False)), (2, 4),
        "batch_norm with the statistics of the batch has no rule, in module '1'"),
    "no_batch": (lambda: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(2, 2, 1)), (2, 3, 3), "without an axis of examples"),
    "weights": (
        lambda: Written(lambda self, x: F.linear(x, drop(self, torch.ones(2, 4), 0.5))), (2, 4), "such as weights"),
    "stale_view": (
        lambda: Written(lambda self, x: _overwritten(drop(self, x, 0.5))), (2, 4), "overwritten in place"),
    "comparison": (lambda: Written(lambda self, x: drop(self, x, 0.5) > 0), (2, 4), "has no rule"),
    "value": (lambda: Written(lambda self, x: x if drop(self, x, 0.5).sum() > 0 else -x), (2, 4), "has no rule"),
}  # fmt: skip


def _overwritten(x: Tensor) -> Tensor:
    view = x.view(2, 4)
    x.relu_()
    return view + 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_named(name: str) -> None:
    build, shape, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message) as caught:
        moments(build())(torch.randn(shape))
    assert str(caught.value).endswith("Sample instead: dropkit.uncertainty.mc.")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"model": 3}, ArgumentTypeError, "`model` must be a torch.nn.Module", id="model"),
        pytest.param({"rank": 0}, ArgumentError, "`rank` must be an integer", id="zero"),
        pytest.param({"rank": 2.0}, ArgumentTypeError, "`rank` must be an integer", id="float"),
        pytest.param({"rank": float("nan")}, ArgumentTypeError, "`rank` must be an integer", id="nan"),
        pytest.param({"rank": True}, ArgumentTypeError, "`rank` must be an integer", id="bool"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        moments(**{"model": nn.Dropout(0.5), **arguments})


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Dropout(0.0)], ids=["none", "rate_of_zero"])
def test_a_model_without_dropout_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="a model with active dropout"):
        moments(model)(torch.ones(1, 2))
