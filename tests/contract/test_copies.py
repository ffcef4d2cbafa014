"""What copies of a layer with a generator of its own draw, for every layer of the registry."""

import copy
import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit.errors import ArgumentTypeError
from dropkit.nn.variants import VARIANTS
from tests.helpers.copies import pickled, saved

SEED = 3


def built(name: str) -> Any:
    """A layer with a generator of its own, and a rate at which no two draws are the same."""
    torch.manual_seed(0)  # for layers with weights
    layer = VARIANTS[name].build(0.5)
    layer.generator = torch.Generator().manual_seed(SEED)
    return layer


def drawn(name: str, layer: Any) -> Tensor:
    """What a layer makes of one input, by a draw of its generator."""
    row = VARIANTS[name]
    shapes = [(64,)] * len(row.inputs) if row.takes_any_shape else row.inputs
    generator, state = torch.Generator().manual_seed(1), torch.get_rng_state()
    inputs = [
        torch.randn(shape, generator=generator)
        if row.dtype.is_floating_point
        else torch.randint(1, 5, shape, generator=generator)
        for shape in shapes
    ]
    found = layer(*inputs)
    assert torch.equal(torch.get_rng_state(), state)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", VARIANTS)
def test_copies_draw_from_the_one_generator(name: str, duplicate: Any) -> None:
    alone = built(name)
    want = [drawn(name, alone) for _ in range(3)]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(want))
    layer = built(name)
    twin = duplicate(layer)
    assert twin.generator is layer.generator
    stack = duplicate([layer, torch.nn.Sequential(twin)])
    assert stack[1][0].generator is layer.generator
    for each, expected in zip((layer, twin, layer), want, strict=True):
        assert torch.equal(drawn(name, each), expected)
    twin.generator = None
    assert layer.generator is not None


@pytest.mark.parametrize("duplicate", [pickled, saved])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_pickle_takes_a_generator_of_its_own_along(name: str, duplicate: Any) -> None:
    layer = built(name)
    drawn(name, layer)
    twin = duplicate(layer)
    assert twin.generator is not layer.generator
    assert torch.equal(drawn(name, twin), drawn(name, layer))
    assert torch.equal(drawn(name, twin), drawn(name, layer))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_generator_is_checked_when_it_is_assigned(name: str) -> None:
    layer = built(name)
    before = layer.generator
    with pytest.raises(ArgumentTypeError, match=r"`generator` must be a torch\.Generator, got 3"):
        layer.generator = 3
    assert layer.generator is before
    assert "generator" in inspect.signature(VARIANTS[name].layer).parameters
