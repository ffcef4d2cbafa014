"""Hand-written masks on what was multiplied with noise before: they drop as they do from any other tensor."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.sites import find, switch
from tests.sites import disguises
from tests.sites.disguises import Forward, P, rows


def gaussian(x):
    return x * (1 + 0.1 * torch.randn_like(x))


def gaussian_in_place(x):
    return x.clone().mul_(1 + 0.1 * torch.randn_like(x))


def gaussian_of_a_scale(x):
    return x * (1 + torch.randn_like(x) * torch.arange(1.0, 6.0))


def log_normal(x):
    return torch.randn_like(x).mul(0.1).exp() * x


def uniform(x):
    return x * torch.rand_like(x)


def uniform_of_examples(x):
    return x * torch.empty(len(x), 1).uniform_(0.8, 1.2)


def integers(x):
    return torch.randint(1, 4, x.shape) * x


def leaky(x):
    return F.rrelu(x, training=True)


def around(x):
    return torch.normal(x, 0.1)


def noisy_twice(x):
    return uniform(gaussian(x))


def noisy_and_moved(x):
    return (gaussian(x).double().float() + 0).T.contiguous().T


NOISES = (
    gaussian, gaussian_in_place, gaussian_of_a_scale, log_normal, uniform, uniform_of_examples, integers, leaky, around,
    noisy_twice, noisy_and_moved,
)  # fmt: skip


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
@pytest.mark.parametrize(
    "mask",
    [disguises.cast, disguises.below, disguises.uniform_in_place, disguises.filled, disguises.where_zeros],
    ids=lambda mask: mask.__name__,
)
def test_a_mask_drops_from_noisy_data(noise: Callable[[Tensor], Tensor], mask: Callable[[Tensor], Tensor]) -> None:
    x = rows()
    model = nn.Sequential(Forward(noise), Forward(mask)).train()
    [site] = find(model, x)
    assert (site.path, site.p, site.is_certain, site.is_rewritable) == ("1", P, True, True)
    torch.manual_seed(0)
    expected = noise(x)
    with switch(model, "off") as handle:
        torch.manual_seed(0)
        output = model(x)
    assert torch.equal(output, expected)
    assert not handle.unswitched


def test_a_choice_between_noisy_data_and_others_is_perhaps_dropout() -> None:
    def old_or_new(x: Tensor) -> Tensor:
        return x + (torch.tanh(x) - x) * (torch.rand_like(x) > P)

    [site] = find(nn.Sequential(Forward(gaussian), Forward(old_or_new)), rows())
    assert not site.is_certain
