"""Draws of random operators at an address, and which operators there are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.random import keep_mask
from dropkit.sites.handwritten.draws import RANDOM, drawn
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.attachment import attached
from tests.sites import disguises, lookalikes
from tests.sites.disguises import KEEP, PLAIN, SCALED, Follower, Forward, P, rows


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
    shape = (30,) if function is disguises.combined else (6, 5)
    kept = follower.found[0].kept.numpy().reshape(shape)
    # A mask whose sense is turned drops where another keeps, and has another threshold.
    assert np.array_equal(kept, keep_mask(7, shape, P)) or np.array_equal(~kept, keep_mask(7, shape, KEEP))


def test_a_mask_of_many_units_at_an_address_has_its_rate() -> None:
    x = torch.ones(1000, 1000)
    for function in (
        disguises.compared,
        disguises.floored,
        disguises.truncated,
        disguises.bernoulli,
        disguises.integers,
        disguises.filled,
    ):
        _, follower = at_an_address(Forward(function), x, 5)
        share = 1 - follower.found[0].kept.double().mean()
        assert abs(share - P) < 6 * (P * KEEP / x.numel()) ** 0.5  # false alarms: 2e-9


def test_shards_at_an_address() -> None:
    x = torch.randn(8, 5)
    for function in (disguises.compared, disguises.bernoulli, disguises.integers, disguises.uniform_between):
        whole, _ = at_an_address(Forward(function), x, 3)
        part, _ = at_an_address(Forward(function), x[4:], 3, offset=(4, 0), full_shape=(8, 5))
        assert torch.equal(part, whole[4:])


def test_several_keys_at_an_address() -> None:
    x = torch.randn(2, 5)
    draws = torch.tensor([3, 4])
    for function in (disguises.compared, disguises.bernoulli, disguises.bernoulli_in_place, disguises.integers):
        output, _ = at_an_address(Forward(function), x, draws)
        for row, key in zip(range(2), (3, 4), strict=True):
            [own], _ = at_an_address(Forward(function), x[row : row + 1], torch.tensor([key]))
            assert torch.equal(output[row], own)


def test_other_noise_has_no_address() -> None:
    with pytest.raises(UnsupportedError, match="randn_like cannot be drawn at an address"):
        at_an_address(Forward(lookalikes.noisy), rows(), 0)


def test_what_is_drawn_at_an_address_is_a_draw_to_other_handlers() -> None:
    model, x = Forward(lambda x: disguises.compared(disguises.bernoulli(x))), rows()
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
    ones = draw(torch.bernoulli, torch.full((3, 4), 0.5))
    assert torch.equal(draw(torch.bernoulli, input=torch.full((3, 4), 0.5)), ones)
    assert torch.equal(draw(torch.bernoulli, torch.empty(3, 4), p=0.5), ones)
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
