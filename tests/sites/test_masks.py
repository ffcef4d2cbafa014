"""Hand-written masks: which are found and which left alone, what is told of them, and what remains where one is off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from dropkit.errors import UnsupportedError
from dropkit.sites import find
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.attachment import Attachment, attached
from tests.sites import disguises, lookalikes
from tests.sites.disguises import KEEP, PLAIN, SCALED, Follower, Forward, P, follow, rows
from tests.sites.lookalikes import NO_DROPOUT, PERHAPS


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


@pytest.mark.parametrize(
    ("function", "shared"),
    [
        (disguises.drop_path, (1, 2)),
        (disguises.stochastic_depth, (1, 2)),
        (disguises.locked, (1,)),
        (disguises.channels, (2,)),
        (disguises.columns, (0, 1)),
        (disguises.weights, ()),
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


def test_a_mask_may_be_multiplied_with_a_weight_first() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x * (torch.bernoulli(torch.full_like(x, KEEP)) / KEEP * self.weight)

    model, x = Scaled(), rows()
    _, follower = follow(model, x)
    [application] = follower.found
    assert (application.mask.is_dropout, application.mask.p) == (True, P)
    nn.init.constant_(model.weight, 0.3)
    output, _ = follow(model, x, off={"~0"})
    assert torch.equal(output, x * model.weight)


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
        return torch.func.vmap(disguises.bernoulli, randomness="different")(x)

    x = rows()
    torch.manual_seed(0)
    expected = mapped(x)
    torch.manual_seed(0)
    output, follower = follow(Forward(mapped), x)
    assert torch.equal(output, expected)
    assert len(follower.found) == 1
    gradient, _ = follow(Forward(torch.func.grad(lambda x: disguises.where(x).sum())), x, off={"~0"})
    assert torch.equal(gradient, torch.ones_like(x))


def test_names_count_every_random_operator_of_a_run() -> None:
    class Noisy(nn.Module):
        def forward(self, x):
            x = x + 0.1 * torch.randn_like(x)
            torch.randperm(4)
            F.gumbel_softmax(x)
            return disguises.compared(x)

    model = nn.Sequential(Noisy(), Forward(disguises.compared))
    _, follower = follow(model, rows())
    assert [draw.place.name for draw in follower.draws] == ["0~0", "0~1", "0~2", "0~3", "1~0"]
    assert [application.place.name for application in follower.found] == ["0~3", "1~0"]


def test_an_output_may_be_changed_in_place() -> None:
    x = rows()
    output, _ = follow(Forward(lambda x: disguises.compared(x).add_(1)), x, off={"~0"})
    assert torch.equal(output, x + 1)
    assert not torch.equal(output, x)


def test_another_mask_can_be_handed_in() -> None:
    kept = torch.rand(6, 5) > 0.5
    for function in (
        disguises.cast,
        disguises.bernoulli,
        disguises.where_zeros,
        disguises.filled,
        disguises.floored_in_place,
        disguises.assigned,
        disguises.multiplied_in_place,
    ):
        follower, x = Follower(), rows()
        model = Forward(function)
        follower.masks = Masks(follower, apply=lambda application: application.with_kept(kept))
        with attached(model, follower):
            output = model(x)
        expected = torch.where(kept, x / KEEP if function in SCALED else x, 0.0)
        torch.testing.assert_close(output, expected, rtol=1e-6, atol=0)


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
            x = disguises.bernoulli(x)
            x = x + lookalikes.dropped_labels(x) + disguises.contracted(x)
        for _ in range(2):
            x = disguises.channels(x[..., None])[..., 0]
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
    assert [Path(site.file).name for site in sites] == ["disguises.py", "lookalikes.py", *["disguises.py"] * 3]
    assert sites[3].line == disguises.channels.__code__.co_firstlineno + 1
    assert [line.split()[1] for line in str(sites).splitlines()[1:6]] == ["mask", "mask?", "mask?!", "mask", "mask"]


def test_find_counts_draws_and_not_applications() -> None:
    def shared(x):
        mask = (torch.rand_like(x) > P) / KEEP
        return x * mask + (x + 1) * mask

    model = nn.Sequential(layer := Forward(shared), nn.ReLU(), layer)
    [site] = find(model, rows())
    assert (site.name, site.calls) == ("0~0", 2)


@pytest.mark.parametrize(
    "function",
    [disguises.contracted, disguises.rates_of_rows, disguises.oddly_scaled, disguises.scaled_before_in_place],
)
def test_what_cannot_be_switched(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Forward(function), rows()
    _, follower = follow(model, x)
    assert [application.mask.is_switchable for application in follower.found] == [False]
    with pytest.raises(UnsupportedError, match="~0 cannot be switched off"):
        follow(model, x, off={"~0"})


@pytest.mark.parametrize(
    "function", [disguises.of_numpy, disguises.of_an_item, disguises.of_scores, disguises.gaussian, disguises.into_out]
)
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
    model = Forward(disguises.drop_path)
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
        _, follower = follow(Forward(disguises.floored_in_place), x)
        output, _ = follow(Forward(disguises.floored_in_place), x, off={"~0"})
    assert follower.found[0].mask.is_dropout
    assert torch.equal(output, x)


def test_compiled_code_is_left_alone() -> None:
    model, x = Forward(disguises.compared), rows()
    compiled = torch.compile(model, backend="eager")
    follower = Follower()
    with attached(model, follower):
        torch.manual_seed(0)
        output = compiled(x)
    torch.manual_seed(0)
    assert torch.equal(output, disguises.compared(x))
    torch._dynamo.reset()
