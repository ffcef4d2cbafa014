"""Survivors of hand-written masks: whatever scales them is left out with the mask, or the mask is not switched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.sites import find, switch
from tests.sites.disguises import KEEP, Forward, P, rows


def mask(x: Tensor) -> Tensor:
    return torch.rand_like(x) > P


def narrow(x: Tensor) -> Tensor:
    """A keep probability of 0.7 is 0.69921875 in bfloat16."""
    x = x.bfloat16()
    return x * torch.bernoulli(torch.full_like(x, 0.7)) / 0.7


def halves(x: Tensor) -> Tensor:
    x = x.half()
    return x * torch.bernoulli(torch.full_like(x, 0.7)) / 0.7


def bytes_of_noise(x: Tensor) -> Tensor:
    return x * (torch.randint(0, 256, x.shape) >= 26) / 0.9


def rounded_rate(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) < 0.67) * 1.5


def rounded_scale(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) > 0.3) * 1.43


def rounded_scale_of_the_mask(x: Tensor) -> Tensor:
    return x * ((torch.rand_like(x) > 0.3) * 1.43)


def rounded_scale_before(x: Tensor) -> Tensor:
    return (x * 1.43) * (torch.rand_like(x) > 0.3)


def a_number_before_it(x: Tensor) -> Tensor:
    return 0.5 * (x * mask(x)) / KEEP


def two_numbers(x: Tensor) -> Tensor:
    return x * mask(x) * 2 / (2 * KEEP)


def negated(x: Tensor) -> Tensor:
    return -(x * mask(x)) / KEEP


def rectified(x: Tensor) -> Tensor:
    return F.relu(x * mask(x)) / KEEP


def squashed(x: Tensor) -> Tensor:
    return torch.tanh(x * mask(x)) / KEEP


def joined(x: Tensor) -> Tensor:
    return torch.cat([x * mask(x)]) / KEEP


def joined_under_one_mask(x: Tensor) -> Tensor:
    own = mask(x)
    return torch.stack([x * own, 2 * x * own]) / KEEP


def indexed(x: Tensor) -> Tensor:
    return (x * mask(x))[1:, :3] / KEEP


def split(x: Tensor) -> Tensor:
    first, second = (x * mask(x)).split([2, 3], 1)
    return torch.cat([second / KEEP, first / KEEP], 1)


def scaled_by_a_vector(x: Tensor) -> Tensor:
    return x * mask(x) * torch.full((5,), 1 / KEEP)


def scaled_by_a_wide_vector(x: Tensor) -> Tensor:
    return x * mask(x) * torch.full((5,), 1 / KEEP, dtype=torch.float64)


def pooled(x: Tensor) -> Tensor:
    return F.avg_pool1d(x * mask(x), 3) / KEEP


def summed(x: Tensor) -> Tensor:
    return (x * mask(x)).sum(1) / KEEP


def multiplied(x: Tensor) -> Tensor:
    return (x * mask(x)) @ torch.ones(5, 2) / KEEP


def learned_scale_between(x: Tensor) -> Tensor:
    return x * mask(x) / KEEP * nn.Parameter(torch.full((5,), 1e-4))


def weighed(x: Tensor) -> Tensor:
    return x * mask(x) * WEIGHTS / KEEP


def normalised_after(x: Tensor) -> Tensor:
    return F.layer_norm(x * mask(x) + 1, (5,)) / KEEP


def multiplied_by_one(x: Tensor) -> Tensor:
    return x * mask(x) * 1.0 / KEEP


def scaled_by_a_vector_before(x: Tensor) -> Tensor:
    return torch.full((5,), 1 / KEEP) * x * mask(x)


def scaled_twice_before(x: Tensor) -> Tensor:
    return x * 16 / KEEP * mask(x)


WEIGHTS = torch.linspace(0.5, 1.5, 5)
RESTORED: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    narrow: lambda x: x.bfloat16(),
    halves: lambda x: x.half(),
    bytes_of_noise: lambda x: x,
    rounded_rate: lambda x: x,
    rounded_scale: lambda x: x,
    rounded_scale_of_the_mask: lambda x: x,
    rounded_scale_before: lambda x: x,
    a_number_before_it: lambda x: 0.5 * x,
    two_numbers: lambda x: x,
    negated: lambda x: -x,
    rectified: F.relu,
    squashed: torch.tanh,
    joined: lambda x: x,
    joined_under_one_mask: lambda x: torch.stack([x, 2 * x]),
    indexed: lambda x: x[1:, :3],
    split: lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    scaled_by_a_vector: lambda x: x,
    scaled_by_a_wide_vector: lambda x: x.double(),
    pooled: lambda x: F.avg_pool1d(x, 3),
    summed: lambda x: x.sum(1),
    multiplied: lambda x: x @ torch.ones(5, 2),
    weighed: lambda x: x * WEIGHTS,
    normalised_after: lambda x: F.layer_norm(x + 1, (5,)),
    multiplied_by_one: lambda x: x,
    scaled_by_a_vector_before: lambda x: x,
    scaled_twice_before: lambda x: x * 16,
    learned_scale_between: lambda x: x * torch.full((5,), 1e-4),
}


@pytest.mark.parametrize("function", RESTORED, ids=lambda function: function.__name__)
def test_survivors_are_not_scaled_where_nothing_drops(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    [site] = find(model, x)
    assert (site.is_certain, site.is_rewritable) == (True, True)
    with switch(model, "off") as handle:
        output = model(x)
        assert torch.equal(output, RESTORED[function](x))
        assert output.dtype == function(x).dtype
    assert not handle.unswitched


def test_under_autocast() -> None:
    model, x = nn.Sequential(nn.Linear(5, 5), Forward(narrow)), rows()
    with torch.autocast("cpu", torch.bfloat16), switch(model, "off") as handle:
        assert torch.equal(model(x), model[0](x))
    assert not handle.unswitched


def odd_scale(x: Tensor) -> Tensor:
    return x * mask(x) * 1.28


def odd_scale_of_the_mask(x: Tensor) -> Tensor:
    return x * (mask(x) * 1.28)


def odd_scale_before(x: Tensor) -> Tensor:
    return (x * 1.28) * mask(x)


def odd_scale_in_place(x: Tensor) -> Tensor:
    return (x * mask(x)).mul_(1.28)


def two_numbers_in_place(x: Tensor) -> Tensor:
    return (x * mask(x)).mul_(2).div_(2 * KEEP)


def root_of_the_scale(x: Tensor) -> Tensor:
    return x * mask(x) / KEEP**0.5


def scale_of_two_masks(x: Tensor) -> Tensor:
    return x * mask(x) * mask(x) / KEEP**2


def scale_before_a_view(x: Tensor) -> Tensor:
    return (x / KEEP).view(-1) * mask(x).view(-1)


def scale_before_a_rectifier(x: Tensor) -> Tensor:
    return F.relu(x / KEEP) * mask(x)


def scale_before_a_number(x: Tensor) -> Tensor:
    return x / KEEP * 0.5 * mask(x)


def scale_before_weights(x: Tensor) -> Tensor:
    return WEIGHTS * (x / KEEP) * mask(x)


def joined_with_more(x: Tensor) -> Tensor:
    return torch.cat([x * mask(x), x]) / KEEP


def joined_under_two_masks(x: Tensor) -> Tensor:
    return torch.stack([x * mask(x), x * mask(x)]) / KEEP


def multiplied_with_a_bias(x: Tensor) -> Tensor:
    return F.linear(x * mask(x), torch.ones(2, 5), torch.ones(2)) / KEEP


def scaled_weights(x: Tensor) -> Tensor:
    return (x * mask(x)) @ (torch.ones(5, 2) / KEEP)


def scaled_rows(x: Tensor) -> Tensor:
    return x * mask(x) * (torch.arange(5.0) / KEEP)


REFUSED = (
    odd_scale, odd_scale_of_the_mask, odd_scale_before, odd_scale_in_place, two_numbers_in_place, root_of_the_scale,
    scale_of_two_masks, scale_before_a_view, scale_before_a_rectifier, scale_before_a_number, scale_before_weights,
    joined_with_more, joined_under_two_masks, multiplied_with_a_bias, scaled_weights, scaled_rows,
)  # fmt: skip


def seeded(model: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(0)
    return model(x)


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_a_mask_whose_scale_would_stay_is_not_switched_and_told(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    found = find(model, x)
    assert not any(site.is_rewritable for site in found)
    expected = seeded(model, x)
    with switch(model, "off") as handle, pytest.warns(UserWarning, match="cannot be switched 'off'"):
        assert torch.equal(seeded(model, x), expected)
    assert [site.name for site in handle.unswitched] == [site.name for site in found]


def two_gated(x: Tensor) -> Tensor:
    return x * mask(x) * 1.28 * (torch.rand_like(x) > 0.5) * 2


def test_a_gated_mask_whose_scale_would_stay_is_not_switched_alone() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return two_gated(x) if self.training else x

    model, x = Gated(), rows()
    expected = seeded(model, x)
    with switch(model, "off", where="~0") as handle, pytest.warns(UserWarning, match="~0 "):
        assert torch.equal(seeded(model, x), expected)
    assert [site.name for site in handle.unswitched] == ["~0"]
    with switch(model, "off") as handle:  # by the mode of the module
        assert torch.equal(model(x), x)


def own_scale_after_a_matrix(x: Tensor) -> Tensor:
    return (x * mask(x)) @ torch.ones(5, 2) * 0.125


def own_scale_long_before(x: Tensor) -> Tensor:
    return (x * 16) * mask(x)


@pytest.mark.parametrize("function", [own_scale_after_a_matrix, own_scale_long_before])
def test_a_scale_of_the_model_stays(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    with switch(model, "off") as handle:
        output = model(x)
    assert torch.equal(output, x @ torch.ones(5, 2) * 0.125 if function is own_scale_after_a_matrix else x * 16)
    assert not handle.unswitched


def above(threshold: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        noise = torch.rand_like(x)
        return x * (noise >= threshold(noise)) / KEEP

    return function


THRESHOLDS = {
    "median": Tensor.median,
    "quantile": lambda noise: torch.quantile(noise, P),
    "mean": Tensor.mean,
    "half of the greatest": lambda noise: noise.max() * 0.5,
    "greatest": lambda noise: noise.kthvalue(2, -1, keepdim=True).values,
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_computed_of_the_draw_makes_it_perhaps_dropout(name: str) -> None:
    [site] = find(Forward(above(THRESHOLDS[name])), rows())
    assert (site.p, site.is_certain) == (None, False)


def test_a_draw_that_is_normalised_by_itself_is_perhaps_dropout() -> None:
    def normalised(x: Tensor) -> Tensor:
        noise = torch.rand_like(x)
        return x * (noise / noise.max() > P) / KEEP

    [site] = find(Forward(normalised), rows())
    assert (site.p, site.is_certain) == (None, False)


def test_a_masked_mean_is_left_alone() -> None:
    def masked_mean(x: Tensor) -> Tensor:
        own = mask(x).float()
        return (x * own).sum() / own.sum()

    model, x = Forward(masked_mean), rows()
    expected = seeded(model, x)
    with switch(model, "off"), pytest.warns(UserWarning, match="only may be is left alone: ~0"):
        assert torch.equal(seeded(model, x), expected)


def test_a_share_of_survivors_scales_them() -> None:
    def shared(x: Tensor) -> Tensor:
        own = mask(x).float()
        return 0.5 * (x * own) / own.mean()

    model, x = Forward(shared), rows()
    with switch(model, "off"):
        assert torch.equal(model(x), 0.5 * x)
