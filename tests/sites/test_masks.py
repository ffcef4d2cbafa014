"""Hand-written masks: which are found and which left alone, what is told of them, and what remains where one is off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from dropkit.errors import UnsupportedError
from dropkit.random import keep_mask
from dropkit.sites import find
from dropkit.sites.applications import Application
from dropkit.sites.draws import RANDOM, Draw, drawn
from dropkit.sites.interceptor import Attachment, Handler, attached
from dropkit.sites.masks import Masks

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


# How each disguise drops, with whether survivors are scaled.


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


def tensor_rate(x):
    rate = torch.tensor(P)
    return x * (torch.rand_like(x) > rate) / (1 - rate)


def half(x):
    return x.to(torch.bfloat16) * (torch.rand_like(x) > P).bfloat16() / KEEP


SCALED = (
    cast, number_first, bernoulli, bernoulli_of_a_number, bernoulli_in_place, bernoulli_of_a_tensor_in_place,
    uniform_in_place, uniform_between, legacy_tensor, floored, floored_in_place, truncated, inverted, negated,
    where_zeros, where_method, where_numbers, filled, filled_in_place, multiplied_and_divided_in_place, integers,
    integers_in_place, distribution, combined, own_generator, tensor_rate, half,
)  # fmt: skip
PLAIN = (compared, below, signs, where, where_constants, assigned, multiplied_in_place)


@pytest.mark.parametrize("function", [*SCALED, *PLAIN], ids=lambda function: function.__name__)
def test_disguises(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    output, follower = follow(model, x)
    assert torch.equal(output, expected)
    assert not torch.equal(output, x)
    [draw], mask = follower.draws, follower.found[0].mask
    assert (mask.place.name, mask.place.path, mask.p) == ("~0", "", P)
    assert draw.place == mask.place
    assert (mask.is_dropout, mask.is_switchable, mask.is_scaled) == (True, True, function in SCALED)
    assert torch.equal(follower.found[0].kept.expand_as(x), output != 0)
    assert follower.found[0].shared == ()

    state = torch.get_rng_state()
    output, _ = follow(model, x.requires_grad_(), off={"~0"})
    assert torch.equal(output, x.to(expected.dtype))
    assert torch.equal(torch.get_rng_state(), state)
    output.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


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


@pytest.mark.parametrize(
    ("function", "shared"),
    [
        (drop_path, (1, 2)),
        (stochastic_depth, (1, 2)),
        (locked, (1,)),
        (channels, (2,)),
        (columns, (0, 1)),
        (weights, ()),
    ],
)
def test_shared_draws(function: Callable[[Tensor], Tensor], shared: tuple[int, ...]) -> None:
    x = torch.randn(6, 3, 4)
    _, follower = follow(Forward(function), x)
    [application] = follower.found
    assert (application.mask.is_dropout, application.mask.p, application.shared) == (True, P, shared)
    output, _ = follow(Forward(function), x, off={"~0"})
    torch.testing.assert_close(output, x, rtol=0, atol=0)


def test_a_block_grown_by_pooling_is_dropout_of_an_unknown_rate() -> None:
    def drop_block(x):
        seeds = (torch.rand(len(x), *x.shape[2:]) < 0.05).float()
        mask = 1 - F.max_pool2d(seeds[:, None], kernel_size=3, stride=1, padding=1).squeeze(1)
        return x * mask[:, None] * mask.numel() / mask.sum()

    x = torch.randn(2, 3, 8, 8)
    _, follower = follow(Forward(drop_block), x)
    [application] = follower.found
    assert (application.mask.is_dropout, application.mask.p, application.mask.is_scaled) == (True, None, True)
    assert application.shared == (1,)
    output, _ = follow(Forward(drop_block), x, off={"~0"})
    assert torch.equal(output, x)


def drop_of_timm() -> Any:
    return peers.timm_drop() or pytest.skip("needs timm")


@pytest.mark.parametrize(("batchwise", "fast"), [(False, False), (True, False), (False, True)])
def test_drop_blocks_of_timm(batchwise: bool, fast: bool) -> None:
    drop = drop_of_timm()
    model = drop.DropBlock2d(0.2, 3, batchwise=batchwise, fast=fast)
    x = torch.randn(2, 3, 8, 8)
    _, follower = follow(model, x)
    assert [application.mask.is_dropout for application in follower.found] == [True]
    output, _ = follow(model, x, off={"~0"})
    assert torch.equal(output, x)


@pytest.mark.parametrize("scale", [True, False])
def test_drop_path_of_timm(scale: bool) -> None:
    drop = drop_of_timm()
    x = torch.randn(8, 3, 4)
    _, follower = follow(drop.DropPath(0.3, scale), x)
    [application] = follower.found
    assert (application.mask.p, application.shared, application.mask.is_dropout) == (0.3, (1, 2), scale)
    output, _ = follow(drop.DropPath(0.3, scale), x, off={"~0"})
    assert torch.equal(output, x)


def test_a_mask_may_be_applied_to_two_tensors() -> None:
    def both(x, y):
        mask = (torch.rand_like(x) > P) / KEEP
        return x * mask, mask * y

    x, y = rows(), rows()
    _, follower = follow(Forward(both), x, y)
    first, second = follower.found
    assert first.mask is second.mask
    assert first.mask.is_dropout
    outputs, _ = follow(Forward(both), x, y, off={"~0"})
    assert torch.equal(outputs[0], x)
    assert torch.equal(outputs[1], y)


def test_a_mask_may_be_kept_over_steps() -> None:
    class Locked(nn.Module):
        mask: Tensor | None = None

        def forward(self, x):
            if self.mask is None:
                self.mask = torch.bernoulli(torch.full_like(x, KEEP)) / KEEP
            return x * self.mask

    _, follower = follow(Locked(), rows(), runs=3)
    assert len(follower.draws) == 1
    assert len(follower.found) == 3
    x = rows()
    output, _ = follow(Locked(), x, off={"~0"}, runs=3)
    assert torch.equal(output, x)


def test_a_buffer_may_hold_a_mask() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(6, 5))

        def forward(self, x):
            self.mask.copy_(torch.bernoulli(torch.full_like(x, KEEP)))
            return x * self.mask / KEEP

    x = rows()
    _, follower = follow(Buffered(), x)
    assert follower.found[0].mask.is_dropout
    output, _ = follow(Buffered(), x, off={"~0"})
    assert torch.equal(output, x)


def test_a_mask_of_masks_is_two_sites() -> None:
    def crossed(x):
        return x * ((torch.rand(len(x), 1) > P) / KEEP * ((torch.rand(1, x.size(1)) > P) / KEEP))

    x = rows()
    _, follower = follow(Forward(crossed), x)
    assert {application.place.name for application in follower.found} == {"~0", "~1"}
    output, _ = follow(Forward(crossed), x, off={"~0", "~1"})
    assert torch.equal(output, x)


def test_masks_one_after_another() -> None:
    def twice(x):
        return (torch.rand_like(x) > 0.5) * ((torch.rand_like(x) > P) * x) / KEEP / 0.5

    x = rows()
    _, follower = follow(Forward(twice), x)
    assert [(one.place.name, one.mask.p, one.mask.is_dropout) for one in follower.found] == [
        ("~1", P, True),
        ("~0", 0.5, True),
    ]
    assert all(one.mask.is_scaled for one in follower.found)
    output, _ = follow(Forward(twice), x, off={"~0", "~1"})
    assert torch.equal(output, x)
    for off, rate in (("~0", P), ("~1", 0.5)):
        output, _ = follow(Forward(twice), x, off={off})
        assert torch.equal(output, torch.where(output != 0, x / (1 - rate), 0.0))
        assert (output == 0).any()


def test_masks_inside_transforms() -> None:
    def mapped(x):
        return torch.func.vmap(bernoulli, randomness="different")(x)

    x = rows()
    torch.manual_seed(0)
    expected = mapped(x)
    torch.manual_seed(0)
    output, follower = follow(Forward(mapped), x)
    assert torch.equal(output, expected)
    assert len(follower.found) == 1
    gradient, _ = follow(Forward(torch.func.grad(lambda x: where(x).sum())), x, off={"~0"})
    assert torch.equal(gradient, torch.ones_like(x))


def test_names_count_every_random_operator_of_a_run() -> None:
    class Noisy(nn.Module):
        def forward(self, x):
            x = x + 0.1 * torch.randn_like(x)
            torch.randperm(4)
            F.gumbel_softmax(x)
            return compared(x)

    model = nn.Sequential(Noisy(), Forward(compared))
    _, follower = follow(model, rows())
    assert [draw.place.name for draw in follower.draws] == ["0~0", "0~1", "0~2", "0~3", "1~0"]
    assert [application.place.name for application in follower.found] == ["0~3", "1~0"]


def test_an_output_may_be_changed_in_place() -> None:
    x = rows()
    output, _ = follow(Forward(lambda x: compared(x).add_(1)), x, off={"~0"})
    assert torch.equal(output, x + 1)
    assert not torch.equal(output, x)


def test_another_mask_can_be_handed_in() -> None:
    kept = torch.rand(6, 5) > 0.5
    for function in (cast, bernoulli, where_zeros, filled, floored_in_place, assigned, multiplied_in_place):
        follower, x = Follower(), rows()
        model = Forward(function)
        follower.masks = Masks(follower, apply=lambda application: application.with_kept(kept))
        with attached(model, follower):
            output = model(x)
        expected = torch.where(kept, x / KEEP if function in SCALED else x, 0.0)
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=0)


# Random draws that are no dropout.


def reparameterised(x):
    return x + torch.randn_like(x) * x.exp()


def gumbel(x):
    noise = -torch.log(-torch.log(torch.rand_like(x)))
    return F.softmax(x + noise, -1) + F.gumbel_softmax(x)


def layer_drop(x):
    for _ in range(3):
        if torch.rand(()) > P:
            x = x + 1
    return x


def layer_drop_of_an_item(x):
    return x * 2 if torch.rand(1).item() < P else x


def shuffled(x):
    order = torch.argsort(torch.rand(x.shape), 1)
    return torch.gather(x, 1, order[:, :3])


def masked_tokens(x):
    ids = torch.randint(0, 9, x.shape)
    chosen = torch.bernoulli(torch.full(x.shape, 0.15)).bool()
    ids = torch.where(chosen, 9, ids)
    ids[chosen & torch.bernoulli(torch.full(x.shape, 0.5)).bool()] = 3
    return F.embedding(ids.masked_fill(chosen, 2), torch.randn(10, 4))


def mixed_up(x):
    weight = torch.rand(len(x), 1)
    return weight * x + (1 - weight) * x[torch.randperm(len(x))]


def noisy(x):
    return x + 0.1 * torch.randn_like(x) + torch.empty_like(x).uniform_(-0.1, 0.1)


def sampled(x):
    return torch.multinomial(F.softmax(x, -1), 1)


def initialised(x):
    weight = nn.init.uniform_(torch.empty(5, 5), -0.1, 0.1)
    return x @ weight.normal_(0, 0.1)


def dequantised(x):
    return (torch.floor(x * 255) + torch.rand_like(x)) / 256


def rounded(x):
    return torch.floor(x * 8 + torch.rand_like(x)) / 8


def rounded_up(x):
    low = x.floor()
    return low + (torch.rand_like(x) < x - low)


def leaky(x):
    return torch.where(x >= 0, x, x * torch.empty_like(x).uniform_(0.1, 0.3)) + F.rrelu(x, training=True)


def greedy(x):
    explores = torch.rand(len(x)) < P
    return torch.where(explores, torch.randint(0, 5, (len(x),)), x.argmax(-1))


def flipped(x):
    return x * (2 * torch.bernoulli(torch.full_like(x, 0.5)) - 1)


def salted(x):
    return x + (torch.rand_like(x) < P) * torch.randn_like(x)


def labels(x):
    ids = torch.randint(0, 9, (len(x),))
    return x + F.embedding(torch.where(torch.rand(len(x)) < P, 9, ids), torch.randn(10, 5))


NO_DROPOUT = (
    reparameterised, gumbel, layer_drop, layer_drop_of_an_item, shuffled, masked_tokens, mixed_up, noisy, sampled,
    initialised, dequantised, rounded, rounded_up, leaky, greedy, flipped, salted, labels,
)  # fmt: skip


@pytest.mark.parametrize("function", NO_DROPOUT, ids=lambda function: function.__name__)
def test_draws_that_are_no_dropout(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    torch.manual_seed(0)
    expected, state = model(x), torch.get_rng_state()
    torch.manual_seed(0)
    output, follower = follow(model, x)
    assert torch.equal(output, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert follower.draws
    assert not follower.found


# Draws that may be dropout, or not.


def dropped_labels(x):
    return x * (torch.rand(len(x), 1) > P)


def null_label(x):
    return torch.where(torch.rand(len(x), 1) < P, torch.zeros(1, 5), x)


def null_embedding(x):
    return torch.where(torch.rand(len(x), 1) < P, torch.randn(5), x)


def mask_token(x):
    mask = (torch.rand(len(x), 1) < 0.4).type_as(x)
    return x * (1 - mask) + torch.full((5,), 0.3) * mask


def cut_and_mixed(x):
    mask = torch.bernoulli(torch.full_like(x, 0.5))
    return mask * x + (1 - mask) * x.flip(0)


def pretext(x):
    mask = torch.rand_like(x) < P
    output = x.masked_fill(mask, 0.0)
    return ((output - x) ** 2 * mask).sum() / mask.sum()


def read_mask(x):
    mask = torch.rand_like(x) < P
    return x.masked_fill(mask, 0.0).sum() + x[mask].sum()


def stochastic_units(x):
    return x * torch.bernoulli(torch.sigmoid(x))


def dropped_keys(x):
    return torch.softmax(x.masked_fill(torch.rand_like(x) < P, float("-inf")), -1)


def padded(x):
    padding = torch.tensor([True, True, True, False, False])
    return x * ((torch.rand_like(x) > P) & padding)


def normal_sign(x):
    return x * (torch.randn_like(x) > 0)


PERHAPS = (
    dropped_labels, null_label, null_embedding, mask_token, cut_and_mixed, pretext, read_mask, stochastic_units,
    dropped_keys, padded, normal_sign,
)  # fmt: skip


@pytest.mark.parametrize("function", PERHAPS, ids=lambda function: function.__name__)
def test_draws_that_are_perhaps_dropout(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    output, follower = follow(model, x)
    assert torch.equal(output, expected)
    assert follower.found
    assert not any(application.mask.is_dropout for application in follower.found)


class Masked(nn.Module):
    """Hand-written masks of every sort; one of them in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = bernoulli(x)
            x = x + dropped_labels(x) + contracted(x)
        for _ in range(2):
            x = channels(x[..., None])[..., 0]
        return x


def test_find_lists_masks() -> None:
    x, state = rows(), torch.get_rng_state()
    sites = find(nn.Sequential(Masked()), x)
    assert torch.equal(torch.get_rng_state(), state)
    facts = [(site.name, site.path, site.kind, site.p, site.is_certain, site.is_rewritable) for site in sites]
    assert facts == [
        ("0~0", "0", "mask", P, True, True),
        ("0~1", "0", "mask", P, False, True),
        ("0~2", "0", "mask", P, False, False),
        ("0~3", "0", "mask", P, True, True),
        ("0~4", "0", "mask", P, True, True),
    ]
    assert [(site.in_train, site.in_eval) for site in sites] == [(True, False)] * 3 + [(True, True)] * 2
    assert [(site.shape, site.shared) for site in sites[1:4:2]] == [((6, 5), (1,)), ((6, 5, 1), (2,))]
    assert [Path(site.file).name for site in sites] == ["test_masks.py"] * 5
    assert sites[3].line == channels.__code__.co_firstlineno + 1
    assert [line.split()[1] for line in str(sites).splitlines()[1:6]] == ["mask", "mask?", "mask?!", "mask", "mask"]


def test_find_counts_draws_and_not_applications() -> None:
    def shared(x):
        mask = (torch.rand_like(x) > P) / KEEP
        return x * mask + (x + 1) * mask

    model = nn.Sequential(layer := Forward(shared), nn.ReLU(), layer)
    [site] = find(model, rows())
    assert (site.name, site.calls) == ("0~0", 2)


# What cannot be switched is said.


def contracted(x):
    return torch.einsum("ij,ij->ij", x, (torch.rand_like(x) > P).float())


def rates_of_rows(x):
    rates = torch.linspace(0.1, 0.5, len(x))[:, None]
    return x * ((torch.rand_like(x) > rates) / (1 - rates))


def oddly_scaled(x):
    return x * (3 * torch.bernoulli(torch.full_like(x, KEEP)))


def scaled_before_in_place(x):
    return in_place(x, lambda own: own.div_(KEEP).mul_(torch.rand_like(x) > P))


@pytest.mark.parametrize("function", [contracted, rates_of_rows, oddly_scaled, scaled_before_in_place])
def test_what_cannot_be_switched(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    _, follower = follow(model, x)
    assert [application.mask.is_switchable for application in follower.found] == [False]
    with pytest.raises(UnsupportedError, match="~0 cannot be switched off"):
        follow(model, x, off={"~0"})


# What cannot be seen.


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


@pytest.mark.parametrize("function", [of_numpy, of_an_item, of_scores, gaussian, into_out])
def test_what_cannot_be_seen(function: Callable[[Tensor], Tensor]) -> None:
    _, follower = follow(Forward(function), rows())
    assert not follower.found


def test_a_rate_of_0_is_no_site() -> None:
    assert not follow(Forward(lambda x: x * (torch.rand_like(x) >= 0)), rows())[1].found
    assert follow(Forward(lambda x: x * (torch.rand_like(x) > 1e-6)), rows())[1].found[0].mask.p == 1e-6


def test_a_mask_that_is_overwritten_is_none() -> None:
    def overwritten(x):
        mask = (torch.rand_like(x) > P).float()
        mask.fill_(1)
        return x * mask

    assert not follow(Forward(overwritten), rows())[1].found


def test_nothing_is_kept_of_tensors_that_are_gone() -> None:
    follower = Follower()
    model = Forward(drop_path)
    follower.masks = Masks(follower)
    attachment = Attachment(model, follower)
    for _ in range(3):
        model(torch.randn(4, 3, 2))
    attachment.remove()
    assert len(follower.masks._tags) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    x = rows()
    with mode():
        _, follower = follow(Forward(floored_in_place), x)
        output, _ = follow(Forward(floored_in_place), x, off={"~0"})
    assert follower.found[0].mask.is_dropout
    assert torch.equal(output, x)


def test_compiled_code_is_left_alone() -> None:
    model, x = Forward(compared), rows()
    compiled = torch.compile(model, backend="eager")
    follower = Follower()
    with attached(model, follower):
        torch.manual_seed(0)
        output = compiled(x)
    torch.manual_seed(0)
    assert torch.equal(output, compared(x))
    torch._dynamo.reset()


# Draws at an address.


def at_an_address(model: nn.Module, x: Tensor, key: int, **address: Any) -> Any:
    follower = Follower()
    follower.masks = Masks(follower, lambda draw: draw.at(key, **address), follower.apply)
    with attached(model, follower):
        output = model(x)
    return output, follower


@pytest.mark.parametrize("function", [*SCALED, *PLAIN], ids=lambda function: function.__name__)
def test_masks_at_an_address(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    state = torch.get_rng_state()
    first, follower = at_an_address(model, x, 7)
    again, _ = at_an_address(model, x, 7)
    other, _ = at_an_address(model, x, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shape = (30,) if function is combined else (6, 5)
    kept = follower.found[0].kept.numpy().reshape(shape)
    # A mask whose sense is turned drops where another keeps, and has another threshold.
    assert np.array_equal(kept, keep_mask(7, shape, P)) or np.array_equal(~kept, keep_mask(7, shape, KEEP))


def test_a_mask_of_many_units_at_an_address_has_its_rate() -> None:
    x = torch.ones(1000, 1000)
    for function in (compared, floored, truncated, bernoulli, integers, filled):
        _, follower = at_an_address(Forward(function), x, 5)
        share = 1 - follower.found[0].kept.double().mean()
        assert abs(share - P) < 6 * (P * KEEP / x.numel()) ** 0.5  # false alarms: 2e-9


def test_shards_at_an_address() -> None:
    x = torch.randn(8, 5)
    for function in (compared, bernoulli, integers, uniform_between):
        whole, _ = at_an_address(Forward(function), x, 3)
        part, _ = at_an_address(Forward(function), x[4:], 3, offset=(4, 0), full_shape=(8, 5))
        assert torch.equal(part, whole[4:])


def test_several_keys_at_an_address() -> None:
    x = torch.randn(2, 5)
    draws = torch.tensor([3, 4])
    output, _ = at_an_address(Forward(compared), x, draws)
    for row, key in zip(range(2), (3, 4), strict=True):
        [own], _ = at_an_address(Forward(compared), x[row : row + 1], torch.tensor([key]))
        assert torch.equal(output[row], own)


def test_other_noise_has_no_address() -> None:
    with pytest.raises(UnsupportedError, match="randn_like cannot be drawn at an address"):
        at_an_address(Forward(noisy), rows(), 0)


def test_what_is_drawn_at_an_address_is_a_draw_to_other_handlers() -> None:
    model, x = Forward(lambda x: compared(bernoulli(x))), rows()
    inner, outer = Follower(), Follower()
    inner.masks = Masks(inner, lambda draw: draw.at(9))
    with attached(model, inner), attached(model, outer):
        output = model(x)
    assert [application.place.name for application in outer.found] == ["~0", "~1"]
    assert all(application.mask.is_dropout for application in outer.found)
    assert torch.equal(output, at_an_address(model, x, 9)[0])


def test_uniforms_and_options_at_an_address() -> None:
    def draw(function: Any, *args: Any, **kwargs: Any) -> Tensor:
        return drawn(function, args, kwargs, 11)

    doubles = draw(torch.rand, 3, 4, dtype=torch.float64)
    assert doubles.dtype == torch.float64
    assert torch.equal(draw(torch.rand, (3, 4)), draw(torch.rand_like, torch.empty(3, 4)))
    assert torch.equal(draw(torch.rand, size=(3, 4)), draw(Tensor.uniform_, torch.empty(3, 4)))
    assert torch.equal(draw(torch.rand_like, torch.empty(3, 4), dtype=torch.float64), doubles)
    assert draw(torch.rand, 3, requires_grad=True).requires_grad
    wide = draw(Tensor.uniform_, torch.empty(3, 4), -2, 2)
    assert torch.equal(draw(Tensor.uniform_, torch.empty(3, 4), **{"from": -2, "to": 2}), wide)
    assert torch.equal(draw(nn.init.uniform_, torch.empty(3, 4), a=-2, b=2), wide)
    assert wide.min() < -1
    ints = [
        draw(torch.randint, 5, (90,)),
        draw(torch.randint, 2, 7, (90,)) - 2,
        draw(torch.randint, low=1, high=6, size=(90,)) - 1,
    ]
    ints += [draw(torch.randint_like, ints[0], 5), draw(Tensor.random_, torch.empty(90, dtype=torch.int64), 0, 5)]
    assert all(torch.equal(one, ints[0]) for one in ints)
    assert sorted(set(ints[0].tolist())) == [0, 1, 2, 3, 4]
    with pytest.raises(UnsupportedError, match="range under"):
        draw(Tensor.random_, torch.empty(3))


def test_every_random_operator_of_pytorch_is_known() -> None:
    dropout = ("dropout", "native_dropout", "lstm", "gru", "rnn", "attention", "rrelu_with_noise")
    ours = set(RANDOM.values())
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace != "aten" or (name.startswith("_") and name not in ours):
            continue
        operator = getattr(getattr(torch.ops.aten, name), schema.overload_name or "default", None)
        if operator is None or torch.Tag.nondeterministic_seeded not in operator.tags:
            continue
        if any(word in name for word in dropout) or not callable(getattr(torch, name, getattr(Tensor, name, None))):
            continue
        assert name in ours
