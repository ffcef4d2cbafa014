"""What is known of numbers that are computed from probabilities is true of them."""

import math
import random

import pytest
import torch
from torch import Tensor

from dropkit.uncertainty.bounded import Bounded
from dropkit.uncertainty.shares import Shares
from dropkit.uncertainty.subnetworks.probabilities import Origins

ONE = {
    "1 - s": lambda s: 1 - s,
    "rsub": lambda s: torch.rsub(s, 2),
    "3 * s": lambda s: 3 * s,
    "s * -2": lambda s: s * -2,
    "s / 4": lambda s: s / 4,
    "s / -0.5": lambda s: torch.div(s, -0.5),
    "s + 0.5": lambda s: s + 0.5,
    "1 + s": lambda s: torch.add(input=s, other=1),
    "s - 1": lambda s: s.sub(1),
    "-s": lambda s: -s,
    "exp": lambda s: s.exp(),
    "log": lambda s: s.log(),
    "in place": lambda s: s.clone().mul_(2).sub_(1),
    "operators in place": lambda s: operators(s.clone()),
    "mean": lambda s: s.mean(-1, keepdim=True).expand_as(s),
    "sum": lambda s: s.sum(0, keepdim=True).expand(s.shape),
    "whole sum": lambda s: torch.sum(s).expand(s.shape),
    "sums of two axes": lambda s: s.sum(dim=(0, 1)).expand(s.shape),
    "sum by keywords": lambda s: torch.sum(input=s, axis=-1, keepdim=True).expand_as(s),
    "typed sum": lambda s: torch.sum(s, dtype=torch.float64).expand(s.shape),
    "largest": lambda s: s.amax(0).expand(s.shape),
    "sorted": lambda s: s.sort(-1, descending=True).values,
    "first": lambda s: s.max(0).values.expand(s.shape),
    "rounded": lambda s: s.round(decimals=1),
    "filled": lambda s: s.masked_fill(s > 0.5, 3.0),
    "where": lambda s: torch.where(s > 0.5, s, -1),
}
TWO = {
    "+": lambda s, t: s + t,
    "-": lambda s, t: s - t,
    "*": lambda s, t: s * t,
    "/": lambda s, t: s / t,
    "cat": lambda s, t: torch.cat([s, t])[: len(s)],
    "stack": lambda s, t: torch.stack([s, t]).mean(0),
    "summed": lambda s, t: torch.stack([s, t], -1).sum(-1),
    "maximum": torch.maximum,
    "max": torch.max,
    "where": lambda s, t: torch.where(s > t, s, t),
    "scaled": lambda s, t: torch.add(s, t, alpha=3),
    "floor": lambda s, t: torch.div(s, t, rounding_mode="floor"),
}
STARTS = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "tanh": torch.tanh,
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsigmoid": torch.nn.functional.logsigmoid,
}


def operators(s: Tensor) -> Tensor:
    s += 1
    s *= 3
    s -= 2
    s /= 5
    return s


@pytest.mark.parametrize("seed", range(40))
def test_numbers_lie_where_they_are_said_to(seed: int) -> None:
    """Whatever is computed: of some nothing is said, of most where they lie."""
    draw, told = random.Random(seed), 0  # noqa: S311  # no secrets
    torch.manual_seed(seed)
    x = torch.cat([torch.randn(6, 3), 40 * torch.randn(6, 3)]).double()
    origins = Origins()
    with origins:
        found = [start(x) for start in STARTS.values()]
        for _ in range(20):
            if draw.random() < 0.6:
                found.append(ONE[draw.choice(sorted(ONE))](draw.choice(found)))
            else:
                found.append(TWO[draw.choice(sorted(TWO))](draw.choice(found), draw.choice(found)))
    for tensor in found:
        bounds = origins._shares.of(tensor)
        if bounds is not None:
            told += 1
            slack = 1e-6 * max(1, *(abs(each) for each in (bounds.low, bounds.high) if math.isfinite(each)))
            numbers = tensor[~tensor.isnan()]
            assert (numbers >= bounds.low - slack).all()
            assert (numbers <= bounds.high + slack).all()
    assert told > len(STARTS)


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_tensor_are_followed(name: str) -> None:
    origins = Origins()
    with origins:
        found = ONE[name](torch.randn(4, 3).sigmoid())
    bounds = origins._shares.of(found)
    assert bounds is not None
    assert bounds.maker == "sigmoid"


def test_others_are_not() -> None:
    origins, x = Origins(), torch.randn(4, 3)
    with origins:
        s = x.sigmoid()
        others = [s * x, x * s, s + x, s @ x.T, s / x, 1 / s, s / s, s.logit(), torch.where(x > 0, s, x),
                  torch.cat([s, x]), torch.maximum(s, x), s.max(x), s * 0, s * math.nan, s.log().log(), s > 0.5,
                  s.argmax(-1), s.sort().indices, s.mul_(x), x]  # fmt: skip
    assert [origins._shares.of(each) for each in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("bounds", "kinds"),
    [
        (Bounded("softmax", 0, 1), "probability"),
        (Bounded("sigmoid", 1e-8, 1 + 1e-8), "probability"),
        (Bounded("sigmoid", 0.05, 0.95), "probability"),
        (Bounded("softmax", 0, 100), "probability"),
        (Bounded("tanh", 0, 1), "probability"),
        (Bounded("tanh", 0, 100), "probability"),
        (Bounded("tanh", 0.49, 0.51), ""),
        (Bounded("tanh", 0, 10), ""),
        (Bounded("tanh", -1, 1), ""),
        (Bounded("sigmoid", 0, 4), "scaled"),
        (Bounded("softmax", 5, 6), "scaled"),
        (Bounded("sigmoid", -4, 5), ""),
        (Bounded("sigmoid", -1, 0), ""),
        (Bounded("sigmoid", -math.inf, 0), "logarithm"),
        (Bounded("sigmoid", -math.inf, 5), ""),
        (Bounded("sigmoid", 0, math.inf), ""),
    ],
    ids=repr,
)
def test_what_numbers_may_be(bounds: Bounded, kinds: str) -> None:
    found = [each for each in ("probability", "scaled", "logarithm") if getattr(bounds, f"is_{each}")]
    assert " ".join(found) == kinds


def test_what_is_written_into_is_not_known_any_longer() -> None:
    shares, s = Shares(), torch.rand(3)
    shares.add(shares.made(torch.sigmoid, (s,), {}), s)
    assert shares.of(s) == Bounded("sigmoid", 0, 1)
    s.add_(3)
    assert shares.of(s) is None
