"""Moments of a model's outputs in one pass: exact where maps are linear, near sampling where they are not."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from benchmarks.moments import compare, diabetes, sampled, trained
from dropkit.uncertainty import exact, moments
from tests.uncertainty.masks import enumerated, moments_of
from tests.uncertainty.written import Written, drop


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


def fused(self: Written, x: Tensor) -> Tensor:
    h = self.layers[0](drop(self, x, 0.5))
    for activation in ("gelu_tanh", "relu"):
        h = dropkit.functional.activation_dropout(h, activation, 0.25, self.training, bias=self.layers[0].bias)
    h = dropkit.functional.activation_dropout(h, "silu", 0.25, training=False)
    h = dropkit.functional.dropout_add(h, x, 0.25, training=False)
    return dropkit.functional.drop_connect(h, self.layers[0].weight, self.layers[0].bias, 0.25, training=False)


def spelled_out(self: Written, x: Tensor) -> Tensor:
    h = self.layers[0](drop(self, x, 0.5))
    h = drop(self, F.gelu(h + self.layers[0].bias, approximate="tanh"), 0.25)
    h = drop(self, F.relu(h + self.layers[0].bias), 0.25)
    return self.layers[0](F.silu(h) + x)


def test_fused_functions_are_what_they_fuse() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    x = torch.randn(3, 4).double()
    one, other = (moments(Written(run, layer))(x) for run in (fused, spelled_out))
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.covariance, other.covariance)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(), nn.Tanh()], ids=lambda f: f._get_name())
@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.AlphaDropout(0.3)], ids=lambda f: f._get_name())
def test_a_single_mask_is_followed_exactly(layer: nn.Module, activation: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Linear(1, 5), activation, nn.Linear(5, 5), activation, nn.Linear(5, 2)).double()
    x = 3 * torch.randn(8, 1).double()
    found = moments(model)(x)
    for i, example in enumerate(x.split(1)):
        mean, covariance = moments_of(*enumerated(model, example, {"0": (1,)}, {"0": 0.3}))
        torch.testing.assert_close(found.mean[i], mean, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.covariance[i], covariance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("inputs", [3, 12])
def test_a_hidden_layer_is_near_enumeration(inputs: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(20, inputs).double()
    found, reference = moments(model)(x), exact(model, output="raw")(x)
    assert float((found.std / reference.std - 1).abs().mean()) < 0.05
    assert float(((found.mean - reference.arithmetic).abs() / reference.std).mean()) < 0.05


def test_a_rate_of_one_leaves_nothing() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3), nn.Dropout(1.0), nn.Linear(3, 2))
    found = moments(model)(torch.randn(4, 3))
    assert torch.equal(found.mean, model[3].bias.expand(4, 2))
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
    assert found.mean.dtype == found.std.dtype == torch.float32
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
