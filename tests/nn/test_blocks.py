"""DropBlock: blocks only where they fit, at the paper's rate, and the total that they leave."""

import inspect
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dropkit
from dropkit import functional, random
from dropkit.functional.blocks import seed_threshold
from dropkit.kernels.blocks import grow
from tests.helpers.contract import KEY, all_masks, assert_positive_zero, assert_same, realised

DIMS = (1, 2, 3)
SHAPES = {1: (3, 4, 12), 2: (3, 4, 6, 9), 3: (3, 2, 4, 5, 6)}


def layer(dims: int, *arguments: Any, **options: Any) -> torch.nn.Module:
    return getattr(dropkit.nn, f"DropBlock{dims}d")(*arguments, **options)


def values(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def blocked(keep: np.ndarray, block: tuple[int, ...]) -> np.ndarray:
    """The mask by hand: each place where a block begins drops the box that begins there."""
    dims = len(block)
    found = np.ones((*keep.shape[:-dims], *(n + b - 1 for n, b in zip(keep.shape[-dims:], block, strict=True))), bool)
    for *lead, at in ((*index[:-dims], index[-dims:]) for index in np.argwhere(~keep).tolist()):
        found[(*lead, *(slice(i, i + b) for i, b in zip(at, block, strict=True)))] = False
    return found


def gamma(p: float, lengths: tuple[int, ...], size: int) -> float:
    """Equation 1, a product over the axes of a map, of a block no longer than the map."""
    boxes = [(f, min(size, f)) for f in lengths]
    return p * math.prod(f / b / (f - b + 1) for f, b in boxes)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 50])
@pytest.mark.parametrize("share_channels", [False, True])
def test_the_mask_is_blocks_at_drawn_places(dims: int, size: int, share_channels: bool) -> None:
    p, shape = 0.4, SHAPES[dims]
    lengths = shape[2:]
    block = tuple(min(size, f) for f in lengths)
    out, mask = layer(dims, p, size, share_channels)(values(shape), key=KEY, return_mask=True)
    places = (*shape[:2], *(f - b + 1 for f, b in zip(lengths, block, strict=True)))
    shared = (1,) if share_channels else ()
    seeds = random.keep_mask(KEY, places, gamma(realised(p), lengths, size), broadcast_dims=shared)
    want = torch.from_numpy(blocked(seeds, block))
    assert torch.equal(mask, want)
    assert not mask.all()
    scale = want.numel() / want.sum().double()
    assert_same(out, torch.where(want, values(shape) * scale, 0.0))


@pytest.mark.parametrize(("length", "block"), [(6, 3), (6, 2), (5, 5), (7, 1), (9, 4)])
def test_blocks_grow_from_every_set_of_places(length: int, block: int) -> None:
    keep = all_masks(length - block + 1)
    assert torch.equal(grow(keep, [block]), torch.from_numpy(blocked(keep.numpy(), (block,))))


def mean_drop(p: float, lengths: tuple[int, ...], size: int) -> float:
    """The exact mean: a place is kept if no block begins at those that cover it."""
    rate = gamma(p, lengths, size)
    covers = [[min(i + 1, b, f - b + 1, f - i) for i in range(f)] for f, b in ((f, min(size, f)) for f in lengths)]
    return float(np.mean([1 - (1 - rate) ** math.prod(counts) for counts in itertools.product(*covers)]))


@pytest.mark.parametrize(("length", "fraction"), [(7, 0.100), (14, 0.093), (28, 0.094), (56, 0.095)])
def test_the_mean_drop_is_that_of_the_paper(length: int, fraction: float) -> None:
    """Of 0.1 asked for, in blocks of 7 by 7: slightly less, for they overlap, but never more."""
    exact = mean_drop(0.1, (length, length), 7)
    assert exact == pytest.approx(fraction, abs=5e-4)
    _, mask = layer(2, 0.1, 7)(torch.empty(256, 4, length, length), key=KEY, return_mask=True)
    of_maps = (~mask).double().mean((2, 3)).flatten()  # independent of each other
    assert abs(of_maps.mean() - exact) < 5 * of_maps.std() / len(of_maps) ** 0.5  # five standard errors: 6e-7 by chance


@pytest.mark.parametrize("documented", [functional.drop_block1d, *(type(layer(dims)) for dims in DIMS)])
def test_what_is_said_of_overlaps(documented: Any) -> None:
    said = re.findall(r"(0\.\d{3}) at(?: p =)? (0\.\d)", " ".join(inspect.getdoc(documented).split()))
    assert len(said) >= 3
    assert all(f"{mean_drop(float(p), (14, 14), 3):.3f}" == fraction for fraction, p in said)


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3, 1.0])
def test_the_rate_at_which_blocks_begin(p: float) -> None:
    rate = torch.tensor(random.threshold(p))
    for lengths, size in (((7, 7), 7), ((14, 9), 4), ((5,), 2), ((4, 5, 6), 3)):
        block = [min(size, f) for f in lengths]
        want = 1.0 if p == 1 else gamma(realised(p), lengths, size)
        assert seed_threshold(rate, lengths, block).item() / 2**32 == pytest.approx(want, abs=2.0**-32)
    assert seed_threshold(rate, (7, 7), [7, 7]) == rate  # a map that is one block is dropped at the very rate
    assert seed_threshold(rate, (9, 8), [1, 1]) == rate  # and so is a block of one place


@pytest.mark.parametrize("dims", DIMS)
def test_blocks_of_one_place_are_dropout_but_for_the_scale(dims: int) -> None:
    x = values(SHAPES[dims])
    out, mask = layer(dims, 0.4, 1)(x, key=KEY, return_mask=True)
    assert torch.equal(mask, functional.dropout(x, 0.4, key=KEY, return_mask=True)[1])
    torch.testing.assert_close(out, torch.where(mask, x, 0) * mask.numel() / mask.sum(), rtol=1e-15, atol=0)


def test_a_constant_map_keeps_its_total_whatever_the_mask() -> None:
    x = torch.full((1, 2, 5), 3.0, dtype=torch.float64, requires_grad=True)
    for mask in all_masks(10).view(-1, 1, 2, 5):
        out = functional.drop_block1d(x, 0.3, mask=mask)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        if mask.any():
            assert out.sum().item() == pytest.approx(30, rel=1e-12)
            torch.testing.assert_close(gradient, mask * 10 / mask.sum().double(), rtol=1e-12, atol=0)
        else:
            assert_positive_zero(out)
            assert_positive_zero(gradient)


def test_what_is_dropped_is_positive_zero_whatever_it_was() -> None:
    x = values(SHAPES[2])
    want, mask = layer(2, 0.4, 3)(x, key=KEY, return_mask=True)
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = torch.where(mask, x, bad).requires_grad_()
        out = layer(2, 0.4, 3)(spoiled, key=KEY)
        assert_same(out, want)
        (gradient,) = torch.autograd.grad(out.sum(), spoiled)
        assert_positive_zero(gradient[~mask])
        assert (gradient[mask] > 1).all()


def test_a_mask_may_be_shared_and_is_handed_out() -> None:
    x, mask = values((2, 3, 4, 5)), torch.ones(2, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, :2, :3] = False
    out, found = layer(2)(x, mask=mask, return_mask=True)
    assert torch.equal(found, mask)
    assert_same(out, torch.where(mask, x * (40 / torch.tensor(34.0).double()), 0.0))
    assert torch.equal(layer(2)(x, mask=mask.expand(x.shape)), out)
    _, kept = layer(2, share_channels=True).eval()(x, return_mask=True)
    assert kept.shape == mask.shape
    assert kept.all()


def test_the_whole_batch_is_counted_unless_its_slices_have_keys_or_rates() -> None:
    x, keys = values((3, 2, 12)), torch.tensor([5, 9, 2])
    one = layer(1, 0.5, 3)
    each = torch.cat([one(x[i : i + 1], key=keys[i : i + 1]) for i in range(3)])
    assert torch.equal(one(x, key=keys), each)
    rates = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    out, mask = functional.drop_block1d(x, rates, block_size=3, key=4, return_mask=True)
    assert torch.equal(out[0], x[0])
    assert not mask[2].any()
    assert_same(out[1], torch.where(mask[1], x[1] * (24 / mask[1].sum().double()), 0.0))
    whole, mask = one(x, key=4, return_mask=True)
    assert_same(whole, torch.where(mask, x * (72 / mask.sum().double()), 0.0))


@pytest.mark.parametrize("dims", [1, 3])
def test_one_example_needs_no_axis_of_its_own(dims: int) -> None:
    x = values(SHAPES[dims])[0]
    assert torch.equal(layer(dims, 0.3, 3)(x, key=KEY), layer(dims, 0.3, 3)(x[None], key=KEY)[0])


def test_an_empty_map() -> None:
    for shape in ((2, 3, 0), (0, 3, 4), (2, 0, 4)):
        out, mask = layer(1)(torch.ones(shape), return_mask=True)
        assert out.shape == mask.shape == shape


def test_its_representation() -> None:
    assert repr(layer(2)) == "DropBlock2d(p=0.1, block_size=7)"
    assert repr(layer(1, 0.2, 3, True)) == "DropBlock1d(p=0.2, block_size=3, share_channels=True)"


def test_memory_format_changes_no_mask_and_stays() -> None:
    x = values(SHAPES[2])
    last = x.to(memory_format=torch.channels_last)
    out = layer(2, 0.3, 3)(last, key=KEY)
    assert torch.equal(out, layer(2, 0.3, 3)(x, key=KEY))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_one_compiled_graph_takes_maps_of_any_size() -> None:
    one = layer(2, 0.3, 3)
    compiled = torch.compile(one, backend="eager", fullgraph=True, dynamic=True)
    for shape in ((3, 4, 6, 9), (2, 5, 8, 7)):
        assert torch.equal(compiled(values(shape), key=torch.tensor(5)), one(values(shape), key=5))
