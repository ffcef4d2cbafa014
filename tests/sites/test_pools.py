"""Fractional max pooling, which draws where it pools: seen, recorded, replayed and addressed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.sites import address, inject, record, samples
from tests.sites.disguises import Forward, bernoulli

POOLS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: nn.FractionalMaxPool2d(3, output_ratio=0.5), (4, 3, 12, 12)),
    "layer of volumes": (lambda: nn.FractionalMaxPool3d(2, output_size=3), (4, 3, 8, 8, 8)),
    "one example": (lambda: nn.FractionalMaxPool2d(3, output_ratio=0.5), (3, 12, 12)),
    "function": (lambda: Forward(lambda x: F.fractional_max_pool2d(x, 3, output_size=5)), (4, 3, 12, 12)),
    "of volumes": (
        lambda: Forward(lambda x: F.fractional_max_pool3d(input=x, kernel_size=2, output_size=3)),
        (3, 8, 8, 8),
    ),
    "with indices": (
        lambda: Forward(lambda x: F.fractional_max_pool2d(x, 3, 5, return_indices=True)[0]),
        (4, 3, 12, 12),
    ),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_is_replayed_with_its_gradient(name: str) -> None:
    build, shape = POOLS[name]
    model, x = build(), torch.randn(shape, requires_grad=True)
    torch.manual_seed(0)
    expected, state = model(x), torch.get_rng_state()
    torch.manual_seed(0)
    with record(model) as draws:
        output = model(x)
    assert torch.equal(output, expected)
    assert torch.equal(torch.get_rng_state(), state)
    [draw] = draws.values()
    assert (list(draws), draw.shape) == (
        [("~0", 0)],
        (shape[0] if len(shape) == draw.size(-1) + 2 else 1, 3, draw.size(-1)),
    )
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    with inject(model, draws):
        again = model(x)
    assert torch.equal(again, output)
    assert torch.equal(torch.autograd.grad(again.square().sum(), x)[0], gradient)


def test_a_pool_with_samples_of_its_own_draws_nothing() -> None:
    def pooled(x: Tensor) -> Tensor:
        return F.fractional_max_pool2d(x, 3, output_size=5, _random_samples=torch.full((4, 3, 2), 0.5))

    with record(Forward(pooled)) as draws:
        Forward(pooled)(torch.randn(4, 3, 12, 12))
    assert not draws


def test_what_it_draws_counts_in_names() -> None:
    def both(x: Tensor) -> Tensor:
        return bernoulli(F.fractional_max_pool2d(x, 3, output_size=5))

    model = Forward(both)
    with record(model) as draws:
        model(torch.randn(4, 3, 12, 12))
    assert list(draws) == [("~0", 0), ("~1", 0)]


def test_pools_of_numbered_examples() -> None:
    model, x = nn.FractionalMaxPool2d(3, output_ratio=0.5), torch.randn(6, 3, 12, 12)
    handle = address(model, seed=3)
    with samples(torch.arange(6)):
        whole = model(x)
    with samples(torch.tensor([4, 1])):
        assert torch.equal(model(x[[4, 1]]), whole[[4, 1]])
    handle.close()


def test_a_compiled_pool_draws_the_same() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), nn.FractionalMaxPool2d(3, output_ratio=0.5)), torch.randn(4, 3, 12, 12)
    outputs = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        handle = address(model, seed=3)
        outputs.append(run(x))
        handle.close()
    assert torch.equal(*outputs)
    torch._dynamo.reset()


def test_a_wrong_input_raises_what_the_function_raises() -> None:
    model = nn.FractionalMaxPool2d(3, output_ratio=0.5)
    with pytest.raises((RuntimeError, IndexError)), record(model):
        model(torch.randn(5, 5))
