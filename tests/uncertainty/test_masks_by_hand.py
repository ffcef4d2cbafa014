"""Masks that models draw by hand, in `exact` and `moments`: against closed forms, and against each other."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.uncertainty import exact, moments

KEEP = 0.7
Drop = Callable[[Tensor], Tensor]


def in_place(x: Tensor) -> Tensor:
    x = x.clone()
    x *= torch.bernoulli(torch.full_like(x, KEEP))
    return x / KEEP


def assigned(x: Tensor) -> Tensor:
    x = x / KEEP
    x[torch.rand_like(x) >= KEEP] = 0.0
    return x


def by_own_layout(x: Tensor) -> Tensor:
    return x * torch.rand(x.shape[1], len(x), dtype=x.dtype).lt(KEEP).T / KEEP


def by_path(x: Tensor) -> Tensor:
    """Drop as DropPath of timm does."""
    mask = x.new_empty((len(x),) + (1,) * (x.dim() - 1)).bernoulli_(KEEP)
    mask.div_(KEEP)
    return x * mask


ELEMENTS: dict[str, Drop] = {
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, KEEP)) / KEEP,
    "uniform": lambda x: x * (torch.rand_like(x) < KEEP) / KEEP,
    "uniform_above": lambda x: x / KEEP * (torch.rand(x.shape) > 1 - KEEP).to(x.dtype),
    "empty": lambda x: torch.empty_like(x).bernoulli_(KEEP).div_(KEEP) * x,
    "uniform_in_place": lambda x: x * torch.empty_like(x).uniform_(-1, 1).add_(1).lt(2 * KEEP) / KEEP,
    "integers": lambda x: x * (torch.randint(0, 10, x.shape) >= 3) / KEEP,
    "where": lambda x: torch.where(torch.rand_like(x) < KEEP, x / KEEP, 0.0),
    "fill": lambda x: x.masked_fill(torch.rand_like(x) >= KEEP, 0.0) / KEEP,
    "in_place": in_place,
    "assigned": assigned,
    "own_layout": by_own_layout,
}
SHARED: dict[str, Drop] = {
    "path": by_path,
    "floor": lambda x: x.div(KEEP) * (KEEP + torch.rand(len(x), 1, dtype=x.dtype)).floor_(),
    "function": lambda x: dropkit.functional.drop_path(x, 1 - KEEP, training=True),
}


class ByHand(nn.Module):
    """A linear layer of what a function drops from a tensor."""

    def __init__(self, drop: Drop) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.drop = nn.Linear(4, 4).double(), nn.Linear(4, 3).double(), drop

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(x) if self.training else x)


def batch(rows: int = 3) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("name", [*ELEMENTS, *SHARED])
def test_moments_and_exact_are_the_closed_form(name: str) -> None:
    model, x = ByHand({**ELEMENTS, **SHARED}[name]), batch()
    weight = model.last.weight.detach()
    ratio = (1 - KEEP) / KEEP
    variance = x**2 @ (weight**2).T * ratio if name in ELEMENTS else (x @ weight.T) ** 2 * ratio
    state = torch.get_rng_state()
    found, enumerated = moments(model)(x), exact(model, output="raw")(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert enumerated.units == (4 if name in ELEMENTS else 1)
    for mean, own in ((found.mean, found.variance), (enumerated.arithmetic, enumerated.variance)):
        torch.testing.assert_close(mean, model.last(x).detach())
        torch.testing.assert_close(own, variance, rtol=1e-5, atol=1e-12)  # 0.7 in single precision


class Residual(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            h = self.first(x)
            x = x + (self.drop(h) if self.training else h)
        return self.last(x)


@pytest.mark.parametrize("name", ["bernoulli", "path"])
def test_masks_meet_what_is_random(name: str) -> None:
    model, x = Residual({**ELEMENTS, **SHARED}[name]), batch()
    found, enumerated = moments(model)(x), exact(model, output="raw")(x)
    assert enumerated.units == (8 if name in ELEMENTS else 2)
    torch.testing.assert_close(found.mean, enumerated.arithmetic, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.variance, enumerated.variance, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_types_are_kept(dtype: torch.dtype) -> None:
    model, x = ByHand(lambda x: x * (torch.rand(x.shape) < KEEP) / KEEP), batch()
    expected = moments(model)(x).variance
    found = moments(model.to(dtype))(x.to(dtype)).variance
    torch.testing.assert_close(found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 0.05, atol=1e-3)


def test_counted_masks_are_exact() -> None:
    def counted(x: Tensor) -> Tensor:
        mask = (torch.rand_like(x) < KEEP).to(x.dtype)
        return x * mask / (0.1 + mask.sum(1, keepdim=True))

    model, x = ByHand(counted), batch()
    codes = torch.arange(16)[:, None] >> torch.arange(4) & 1
    chances = torch.tensor([1 - KEEP, KEEP], dtype=torch.float64)[codes].prod(1)
    outputs = torch.stack([model.last(x * each / (0.1 + each.sum())) for each in codes.double()]).detach()
    found = exact(model, output="raw")(x)
    torch.testing.assert_close(found.arithmetic, torch.tensordot(chances, outputs, 1))
    with pytest.raises(UnsupportedError, match="makes more of a mask drawn by hand than to drop by it"):
        moments(model)(x)


class AlwaysOn(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(x))


def test_weight_scaling_drops_nothing_where_a_mask_is_always_on() -> None:
    model, x = AlwaysOn(ELEMENTS["bernoulli"]).eval(), batch()
    torch.testing.assert_close(exact(model, output="raw")(x).weight_scaling, model.last(x).detach())


def test_dropped_weights_are_exact() -> None:
    def drop(x: Tensor) -> Tensor:
        return F.linear(x[:, :2], torch.ones(4, 2).double() * (torch.rand(4, 2) < KEEP) / KEEP)

    model, x = ByHand(drop), batch()
    found = exact(model, output="raw")(x)
    assert found.units == 8  # each network is a forward of its own
    ratio, weight = (1 - KEEP) / KEEP, model.last.weight.detach()
    torch.testing.assert_close(found.variance, x[:, :2].square().sum(1, keepdim=True) * weight.square().sum(1) * ratio)
    with pytest.raises(UnsupportedError, match="linear with random weights"):
        moments(model)(x)


def both(x: Tensor) -> Tensor:
    mask = (torch.rand_like(x) < KEEP).to(x.dtype)
    return x * mask / KEEP + F.relu(x) * mask / KEEP


def repeated(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x[:, :2]) < KEEP).repeat(1, 2) / KEEP


def of_several_rates(x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.linspace(0.2, 0.8, 4).double().expand_as(x))


REFUSED: dict[str, tuple[Drop, str]] = {
    "both": (both, "that drops from several tensors"),
    "repeated": (repeated, "of which elements were taken or repeated"),
    "rates": (of_several_rates, "whose rate, or what it makes of a tensor, cannot be told"),
    "replaced": (
        lambda x: x.masked_fill(torch.rand_like(x) < KEEP, 2.0), "whose rate, or what it makes of a tensor"
    ),
    "read": (lambda x: x * (torch.rand_like(x) < KEEP) if torch.rand(1) < 2 else x, "draws other noise than dropout"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_masks_are_refused_by_moments(name: str) -> None:
    drop, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        moments(ByHand(drop))(batch())


def test_several_rates_are_refused_by_exact() -> None:
    with pytest.raises(UnsupportedError, match=r"'~0' is a mask drawn by hand whose .* dropkit.nn.Dropout"):
        exact(ByHand(of_several_rates), output="raw")(batch())


@pytest.mark.parametrize("drop", [both, repeated], ids=["both", "repeated"])
def test_masks_of_several_uses_are_exact(drop: Drop) -> None:
    torch.manual_seed(2)
    model, x = ByHand(drop), batch(2)
    found = exact(model, output="raw")(x)
    with torch.no_grad():
        drawn = model(x.repeat(20_000, 1)).unflatten(0, (-1, 2))
    assert found.units == (4 if drop is both else 2)
    torch.testing.assert_close(drawn.mean(0), found.arithmetic, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(0), found.std, rtol=0.03, atol=0.0)


def test_draws_of_other_use_are_refused() -> None:
    def also_noise(x: Tensor) -> Tensor:
        drawn = torch.rand_like(x)
        return x * (drawn < KEEP) / KEEP + drawn

    for propagate in (exact(ByHand(also_noise), output="raw"), moments(ByHand(also_noise))):
        with pytest.raises(UnsupportedError, match=r"put to other use|draws other noise than dropout"):
            propagate(batch())
