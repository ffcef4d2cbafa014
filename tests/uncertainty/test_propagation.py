"""Moments of functions of Gaussian variables, against integrals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import moments
from dropkit.uncertainty.propagation.gaussian import maximum
from dropkit.uncertainty.propagation.rules import RULES
from dropkit.uncertainty.propagation.variables import Sources, Variable
from tests.uncertainty.written import Written

ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.2),
    "hardtanh": nn.Hardtanh(-0.5, 2.0),
    "hardsigmoid": nn.Hardsigmoid(),
    "elu": nn.ELU(0.7),
    "celu": nn.CELU(1.5),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(2.0),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "logsigmoid": nn.LogSigmoid(),
    "hardtanh_above": nn.Hardtanh(0.0, math.inf),
    "hardtanh_below": nn.Hardtanh(-math.inf, 2.0),
    "hardtanh_everywhere": nn.Hardtanh(-math.inf, math.inf),
    "clamp": Written(lambda self, x: x.clamp(-0.5, 2.0)),
    "clamp_above": Written(lambda self, x: torch.clamp(x, 0, math.inf)),
    "clamp_below": Written(lambda self, x: x.clamp(-math.inf, 2.0)),
    "clamp_to_one": Written(lambda self, x: x.clamp(2.0, -0.5)),
    "clamp_min": Written(lambda self, x: x.clamp_min(-0.5)),
    "clamp_max": Written(lambda self, x: x.clamp_max(2.0)),
    "clip": Written(lambda self, x: torch.clip(x, min=-3.0)),
    "softshrink": nn.Softshrink(3.0),
    "threshold": nn.Threshold(-0.5, -0.5),
    "rrelu": nn.RReLU(0.1, 0.3).eval(),
}
INTEGRATED = {"gelu", "gelu_tanh", "tanh", "sigmoid", "silu", "softplus", "mish", "hardswish", "logsigmoid"}
CASES = [(0.0, 1.0), (0.3, 0.01), (-2.0, 0.5), (3.0, 4.0), (-0.5, 2.5), (6.0, 0.2), (-40.0, 1.0), (40.0, 1.0)]


def gaussian(mean: float, deviation: float) -> Variable:
    """One example of one element, of one source."""
    return Variable(
        torch.full((1, 1), mean, dtype=torch.float64), torch.full((1, 1, 1), deviation, dtype=torch.float64)
    )


def integrals(function: Callable[[Tensor], Tensor], mean: float, deviation: float) -> tuple[float, float, float]:
    """Mean, covariance with the input, and variance, by Gauss-Legendre quadrature between kinks."""
    kinks = sorted((kink - mean) / deviation for kink in (-3.0, -0.5, 0.0, 2.0, 3.0, 6.0))
    edges = torch.tensor([-12.0, *(kink for kink in kinks if -12 < kink < 12), 12.0]).double()
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(200))
    half = edges.diff()[:, None] / 2
    t = (edges[:-1, None] + half + half * nodes).flatten()
    weight = (half * weights).flatten() * torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    value = function(mean + deviation * t)
    first = (weight * value).sum()
    shifted = value - first
    return float(first), float((weight * shifted * deviation * t).sum()), float((weight * shifted**2).sum())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_moments_of_activations_are_integrals(name: str) -> None:
    function = ACTIVATIONS[name]
    exactness = 1e-9 if name not in INTEGRATED else 1e-4
    if name == "hardswish":  # it has kinks, and no closed form here
        exactness = 5e-3
    for mean, deviation in CASES:
        x, sources = gaussian(mean, deviation), Sources(None, str, count=1)
        found = rule_of(function, sources, x)
        expected = integrals(function, mean, deviation)
        covariance = float(found.factors[0] * deviation)
        actual = float(found.mean), covariance, float(found.variance)
        assert actual == pytest.approx(expected, rel=exactness, abs=exactness), (mean, deviation)


def rule_of(module: nn.Module, sources: Sources, x: Variable) -> Variable:
    """Answer the function that a layer calls, with the options that it gives."""
    called: list[Any] = []

    class Listener(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            called.append((function, args[1:], kwargs or {}))
            return function(*args, **(kwargs or {}))

    example = torch.zeros(1, 1)
    with Listener():
        module(example)
    function, rest, named = called[0]
    return RULES[function](sources, x, *rest, **named)


def test_a_constant_stays_one() -> None:
    for module in ACTIVATIONS.values():
        for value in (-2.0, 0.0, 1.5):
            found = rule_of(module, Sources(None, str, count=1), gaussian(value, 0.0))
            torch.testing.assert_close(found.mean, module(torch.tensor([[value]]).double()))
            assert float(found.variance) == pytest.approx(0, abs=1e-20)


def test_float32_keeps_small_variances_of_large_means() -> None:
    x = Variable(torch.tensor([[1000.0]]), torch.tensor([[[1e-3]]]))
    for name in ("relu", "leaky_relu", "selu", "gelu"):
        found = rule_of(ACTIVATIONS[name], Sources(None, str, count=1), x)
        scale = 1.0507009873554805 if name == "selu" else 1.0
        assert float(found.variance) == pytest.approx((scale * 1e-3) ** 2, rel=1e-3)


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.5, 0.95])
@pytest.mark.parametrize("means", [(0.0, 0.0), (1.0, 0.2), (-1.0, 2.0)])
def test_the_larger_of_two_gaussians(means: tuple[float, float], correlation: float) -> None:
    deviations = 1.3, 0.6
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    a, b = np.meshgrid(nodes, nodes, indexing="ij")
    weight = np.outer(weights, weights) / (2 * math.pi)
    one = means[0] + deviations[0] * a
    other = means[1] + deviations[1] * (correlation * a + math.sqrt(1 - correlation**2) * b)
    larger = np.maximum(one, other)
    mean = (weight * larger).sum()
    variance, with_one = (weight * (larger - mean) ** 2).sum(), (weight * (larger - mean) * one).sum()
    covariance = correlation * deviations[0] * deviations[1]
    parts = [(torch.tensor(m).double(), torch.tensor(s**2).double()) for m, s in zip(means, deviations, strict=True)]
    found = maximum(parts[0], parts[1], torch.tensor(covariance).double())
    gain = float(found[1])
    assert float(found[0]) == pytest.approx(mean, abs=3e-3)
    assert gain * deviations[0] ** 2 + (1 - gain) * covariance == pytest.approx(with_one, abs=5e-3)
    assert float(found[2]) == pytest.approx(variance, abs=5e-3)


def test_the_larger_of_equals_is_either() -> None:
    same = torch.tensor([2.0]).double(), torch.tensor([0.5]).double()
    mean, _, variance = maximum(same, same, same[1])
    assert float(mean) == 2.0
    assert float(variance) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d((2, 3), (1, 2)),
        nn.MaxPool2d(2, 1, dilation=2),
    ],
    ids=["plain", "padded", "uneven", "dilated"],
)
def test_max_pooling_without_noise_is_max_pooling(pool: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 8).double()
    model = nn.Sequential(nn.Dropout(1e-9), pool)
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, pool(x), rtol=0, atol=1e-3)


def test_max_pooling_is_near_sampling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout2d(0.2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)).double()
    x = torch.randn(4, 2, 8, 8).double()
    found = moments(model)(x)
    with torch.no_grad():
        samples = torch.stack([model(x) for _ in range(3000)])
    assert float((found.std / samples.std(0)).mean()) == pytest.approx(1, abs=0.1)
    assert float(((found.mean - samples.mean(0)).abs() / samples.std(0)).mean()) < 0.15


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, return_indices=True), nn.AdaptiveMaxPool2d(2)],
    ids=["ceil", "indices", "adaptive"],
)
def test_max_pooling_of_other_kinds_is_refused(pool: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match=r"max_pool2d.* has no rule.*module '1'"):
        moments(nn.Sequential(nn.Dropout(0.5), pool))(torch.randn(1, 1, 6, 6))


def test_overlapping_windows_tell_what_they_neglect() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.MaxPool2d(3, 2))
    assert moments(model)(torch.randn(1, 1, 9, 9)).neglected["1"] > 0.5
    assert moments(nn.Sequential(nn.Dropout(0.5), nn.MaxPool2d(3)))(torch.randn(1, 1, 9, 9)).error == 0


def test_what_no_other_depends_on_takes_one_source_for_each_element() -> None:
    sources = Sources(None, str)
    variable = sources.variable(torch.zeros(2, 3))
    sources.add_uncorrelated(variable, torch.full((2, 3), 9.0))
    sources.add_uncorrelated(variable, torch.full((2, 3), 16.0))
    other = sources.variable(variable.mean, *variable.scaled(-2.0))
    variable_alone, shared = sources.variable(torch.zeros(2, 3)), list(variable.fresh)
    assert sources.count == 0
    sources.settle(variable)
    assert sources.count == 6
    sources.settle(other)
    assert sources.count == 6
    torch.testing.assert_close(other.factors, -2 * variable.factors)
    assert [noise.first for noise in shared] == [0, 3]
    sources.add_uncorrelated(variable_alone, torch.full((2, 3), 9.0))
    sources.add_uncorrelated(variable_alone, torch.full((2, 3), 16.0))
    sources.settle(variable_alone)
    assert sources.count == 9
    torch.testing.assert_close(variable_alone.covariance(), 25 * torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (torch.relu, True),
        (torch.Tensor.__add__, True),
        (torch.max_pool2d, True),
        (F.layer_norm, False),
        (torch.softmax, False),
    ],
    ids=["relu", "sum", "max_pooling", "layer_norm", "softmax"],
)
def test_rules_are_by_function(function: Callable[..., Any], answer: bool) -> None:
    assert (function in RULES) is answer


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "jump": (nn.Threshold(0.1, 2.0), "threshold that jumps has no rule"),
    "clamp_to_infinity": (Written(lambda self, x: x.clamp(min=math.inf)), r"to \[inf, inf\] has no rule"),
    "clamp_of_nan": (Written(lambda self, x: x.clamp(math.nan, 1.0)), r"to \[nan, 1.0\] has no rule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_without_moments_in_closed_form_are_refused(name: str) -> None:
    module, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        moments(nn.Sequential(nn.Dropout(0.5), module))(torch.ones(1, 2))
