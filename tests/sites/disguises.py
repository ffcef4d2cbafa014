"""Hand-written masks in their disguises, and a handler that follows them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.sites.handwritten.applications import Application
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.interceptor import Handler

P = 0.25


KEEP = 1 - P


class Forward(nn.Module):
    """A model whose forward is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Follower(Handler):
    """Notes draws and applications; those whose names it is given are off."""

    def __init__(self, off: Any = ()) -> None:
        self.off = off
        self.draws: list[Draw] = []
        self.found: list[Application] = []
        self.masks = Masks(self, self.draw, self.apply)

    def dropout(self, place, call):
        return call.run()

    def other(self, function, args, kwargs):
        return self.masks.call(function, args, kwargs)

    def draw(self, draw: Draw) -> Any:
        self.draws.append(draw)
        return draw.aside() if draw.place.name in self.off else draw.run()

    def apply(self, application: Application) -> Any:
        self.found.append(application)
        return application.undropped() if application.place.name in self.off else application.run()


def follow(model: nn.Module, *args: Any, off: Any = (), runs: int = 1) -> tuple[Any, Follower]:
    follower = Follower(off)
    with attached(model, follower):
        for _ in range(runs):
            output = model(*args)
    return output, follower


def rows() -> Tensor:
    return torch.randn(6, 5)


def in_place(x: Tensor, act: Callable[[Tensor], Any]) -> Tensor:
    own = x.clone()
    act(own)
    return own


def compared(x):
    return x * (torch.rand_like(x) > P)


def below(x):
    return (torch.rand(x.shape) < KEEP) * x


def cast(x):
    return x * ((torch.rand(x.shape) >= P).to(x.dtype) / KEEP)


def number_first(x):
    return x * (torch.rand_like(x) > P).float() * (1 / KEEP)


def bernoulli(x):
    return x * torch.bernoulli(torch.full_like(x, KEEP)) / KEEP


def bernoulli_of_a_number(x):
    return x * torch.bernoulli(x, p=KEEP).div(KEEP)


def bernoulli_in_place(x):
    return x * x.new_empty(x.shape).bernoulli_(KEEP).div_(KEEP)


def bernoulli_of_a_tensor_in_place(x):
    return x * torch.empty_like(x).bernoulli_(torch.tensor(KEEP)).div_(KEEP)


def uniform_in_place(x):
    return x.div(KEEP) * torch.empty(x.shape).uniform_().lt(KEEP)


def uniform_between(x):
    return x * torch.empty(x.shape).uniform_(-1, 1).gt(2 * P - 1) / KEEP


def legacy_tensor(x):
    return x * (torch.FloatTensor(*x.shape).uniform_(0, 1) > P).type(torch.FloatTensor) / KEEP


def floored(x):
    return x * torch.floor(KEEP + torch.rand(x.shape)) / KEEP


def floored_in_place(x):
    mask = KEEP + torch.rand(x.shape)
    mask.floor_()
    return x.div(KEEP) * mask


def truncated(x):
    return x * (torch.rand_like(x) + KEEP).int() / KEEP


def signs(x):
    return x * torch.relu(torch.sign(KEEP - torch.rand_like(x)))


def heavisides(x):
    return x * torch.heaviside(torch.rand_like(x) - P, torch.zeros(())) / KEEP


def heaviside_in_place(x):
    return torch.rand_like(x).sub_(P).heaviside_(torch.zeros_like(x)).mul_(x)


def inverted(x):
    return x * (1 - torch.bernoulli(torch.ones_like(x) * P)) / KEEP


def negated(x):
    return x * ~(torch.rand_like(x) < P) / KEEP


def where(x):
    return torch.where(torch.rand_like(x) > P, x, 0.0)


def where_zeros(x):
    return torch.where(torch.rand_like(x) < P, torch.zeros_like(x), x / KEEP)


def where_method(x):
    return x.where(torch.rand_like(x) > P, torch.tensor(0.0)) / KEEP


def where_numbers(x):
    return x * torch.where(torch.rand_like(x) > P, 1 / KEEP, 0.0)


def where_constants(x):
    mask = torch.rand_like(x) > P
    return x * torch.where(mask, torch.ones_like(x), torch.zeros_like(x))


def filled(x):
    return x.masked_fill(torch.rand_like(x) < P, 0.0) / KEEP


def filled_in_place(x):
    return in_place(x, lambda own: own.masked_fill_(torch.rand_like(x) < P, 0).mul_(1 / KEEP))


def assigned(x):
    return in_place(x, lambda own: own.__setitem__(torch.rand_like(x) < P, 0))


def multiplied_in_place(x):
    return in_place(x, lambda own: own.mul_(torch.rand_like(x) > P))


def multiplied_and_divided_in_place(x):
    own = x.clone()
    own *= torch.rand_like(x) > P
    own /= KEEP
    return own


def integers(x):
    return x * (torch.randint(0, 4, x.shape) > 0) / KEEP


def integers_in_place(x):
    return x * torch.empty(x.shape, dtype=torch.int64).random_(0, 4).ne(0) / KEEP


def distribution(x):
    return x * torch.distributions.Bernoulli(probs=KEEP).sample(x.shape) / KEEP


def combined(x):
    helper = (torch.rand(x.numel()) > P).view_as(x).contiguous().clone().detach().double().to(x)
    return helper.unsqueeze(0).squeeze(0).mul(x) / KEEP


def own_generator(x):
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > P) / KEEP


def compared_in_place(x):
    return x * torch.rand_like(x).gt_(P).mul_(1 / KEEP)


def assigned_where_not(x):
    return in_place(x, lambda own: own.__setitem__(~(torch.rand_like(x) > P), 0.0)) / KEEP


def uniform_distribution(x):
    return x / KEEP * (torch.distributions.Uniform(0.0, 1.0).sample(x.shape) > P)


def tensor_rate(x):
    rate = torch.tensor(P)
    return x * (torch.rand_like(x) > rate) / (1 - rate)


def half(x):
    return x.to(torch.bfloat16) * (torch.rand_like(x) > P).bfloat16() / KEEP


SCALED = (
    cast, number_first, bernoulli, bernoulli_of_a_number, bernoulli_in_place, bernoulli_of_a_tensor_in_place,
    uniform_in_place, uniform_between, legacy_tensor, floored, floored_in_place, truncated, inverted, negated,
    where_zeros, where_method, where_numbers, filled, filled_in_place, multiplied_and_divided_in_place, integers,
    integers_in_place, distribution, combined, own_generator, tensor_rate, half, compared_in_place, assigned_where_not,
    uniform_distribution, heavisides,
)  # fmt: skip


PLAIN = (compared, below, signs, where, where_constants, assigned, multiplied_in_place, heaviside_in_place)


def drop_path(x):
    mask = KEEP + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
    mask.floor_()
    return x.div(KEEP) * mask


def stochastic_depth(x):
    noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    return x * noise.bernoulli_(KEEP).div_(KEEP)


def locked(x):
    mask = x.data.new(x.size(0), 1, x.size(2)).bernoulli_(KEEP)
    mask = torch.autograd.Variable(mask, requires_grad=False) / KEEP
    return mask.expand_as(x) * x


def channels(x):
    return x * (torch.rand(*x.shape[:2], 1) > P) / KEEP


def columns(x):
    own = x.clone()
    own[:, :, torch.empty(x.size(2)).uniform_() < P] = 0
    return own


def weights(x):
    weight = torch.eye(4)
    return F.linear(x, weight * torch.bernoulli(torch.full_like(weight, KEEP)) / KEEP)


def contracted(x):
    return torch.einsum("ij,ij->ij", x, (torch.rand_like(x) > P).float())


def rates_of_rows(x):
    rates = torch.linspace(0.1, 0.5, len(x))[:, None]
    return x * ((torch.rand_like(x) > rates) / (1 - rates))


def oddly_scaled(x):
    return x * (3 * torch.bernoulli(torch.full_like(x, KEEP)))


def scaled_before_in_place(x):
    return in_place(x, lambda own: own.div_(KEEP).mul_(torch.rand_like(x) > P))


def of_numpy(x):
    return x * torch.from_numpy(np.random.default_rng(0).random(x.shape) > P)


def of_an_item(x):
    return x * float(torch.rand(()) > P)


def of_scores(x):
    return x * torch.zeros_like(x).scatter_(1, torch.rand_like(x).topk(3).indices, 1.0)


def gaussian(x):
    return x * (1 + torch.randn_like(x))


def into_out(x):
    return torch.mul(x, torch.rand_like(x) > P, out=torch.empty_like(x))
