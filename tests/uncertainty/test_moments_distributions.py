"""Moments of the parameters of distributions that models return, against sampling and against the parameters alone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import Moments, mc, moments


class Returns(nn.Module):
    """A network with dropout, and what a function makes of its four outputs."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 4))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner(x))


def halves(h: Tensor) -> tuple[Tensor, Tensor]:
    return h[:, :2], F.softplus(h[:, 2:])


Build = Callable[[Tensor], td.Distribution]
DISTRIBUTIONS: dict[str, tuple[Build, Callable[[Tensor], dict[str, Tensor]]]] = {
    "normal": (lambda h: td.Normal(*halves(h)), lambda h: dict(zip(("loc", "scale"), halves(h), strict=True))),
    "unchecked": (
        lambda h: td.Normal(*halves(h), validate_args=False),
        lambda h: dict(zip(("loc", "scale"), halves(h), strict=True)),
    ),
    "checked": (
        lambda h: td.Normal(*halves(h), validate_args=True),
        lambda h: dict(zip(("loc", "scale"), halves(h), strict=True)),
    ),
    "constant_scale": (lambda h: td.Normal(h, 0.5), lambda h: {"loc": h, "scale": 0.5 * torch.ones_like(h)}),
    "broadcast": (
        lambda h: td.Normal(h[:, :1], torch.ones(3)),
        lambda h: {"loc": h[:, :1].expand(-1, 3), "scale": torch.ones(len(h), 3)},
    ),
    "laplace": (
        lambda h: td.Laplace(*halves(h)),
        lambda h: dict(zip(("loc", "scale"), halves(h), strict=True)),
    ),
    "log_normal": (lambda h: td.LogNormal(h, 1.0), lambda h: {"loc": h, "scale": torch.ones_like(h)}),
    "student": (
        lambda h: td.StudentT(4.0, h, 1.0),
        lambda h: {"df": 4 * torch.ones_like(h), "loc": h, "scale": torch.ones_like(h)},
    ),
    "bernoulli": (lambda h: td.Bernoulli(logits=h), lambda h: {"logits": h}),
    "bernoulli_probabilities": (lambda h: td.Bernoulli(h.sigmoid()), lambda h: {"probs": h.sigmoid()}),
    "poisson": (lambda h: td.Poisson(h.exp()), lambda h: {"rate": h.exp()}),
    "exponential": (lambda h: td.Exponential(h.exp()), lambda h: {"rate": h.exp()}),
    "uniform": (lambda h: td.Uniform(h, h + 1), lambda h: {"low": h, "high": h + 1}),
    "negative_binomial": (
        lambda h: td.NegativeBinomial(3, logits=h),
        lambda h: {"total_count": 3 * torch.ones_like(h), "logits": h},
    ),
    "multivariate": (
        lambda h: td.MultivariateNormal(h, torch.eye(4)),
        lambda h: {"loc": h, "covariance_matrix": torch.eye(4).expand(len(h), 4, 4)},
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_parameters_have_their_own_moments(name: str) -> None:
    build, parameters = DISTRIBUTIONS[name]
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    found = moments(Returns(build))(x)
    assert isinstance(found, SimpleNamespace)
    alone = moments(Returns(parameters))(x)
    assert vars(found).keys() == alone.keys()
    for parameter, expected in alone.items():
        own = getattr(found, parameter)
        given = (expected.mean, expected.variance) if isinstance(expected, Moments) else (expected, 0 * expected)
        torch.testing.assert_close((own.mean, own.variance), given)


def test_they_are_those_of_sampling() -> None:
    model = Returns(lambda h: td.Independent(td.Normal(*halves(h)), 1))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    base = moments(model)(x).base_distribution
    drawn = mc(Returns(lambda h: torch.cat(halves(h), 1)), n=20_000, seed=0)(x)
    torch.testing.assert_close(torch.cat([base.loc.mean, base.scale.mean], 1), drawn.mean, rtol=0.01, atol=0.01)
    torch.testing.assert_close(torch.cat([base.loc.std, base.scale.std], 1), drawn.std, rtol=0.04, atol=0)


def test_parameters_that_no_distribution_takes_are_refused_as_by_pytorch() -> None:
    with pytest.raises(ValueError, match="parameter scale"):
        moments(Returns(lambda h: td.Normal(h, h - 100, validate_args=True)))(torch.randn(2, 6))


@pytest.mark.parametrize(
    "build",
    [lambda h: td.Categorical(logits=h), lambda h: td.Categorical(probs=h.sigmoid())],
    ids=["logits", "probabilities"],
)
def test_what_normalises_its_parameters_is_refused_with_a_remedy(build: Build) -> None:
    with pytest.raises(UnsupportedError, match="Return the distribution's parameters, such as logits, in its place"):
        moments(Returns(build))(torch.randn(2, 6))


def test_comparisons_elsewhere_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="gt has no rule"):
        moments(Returns(lambda h: h * (h > 0)))(torch.randn(2, 6))
