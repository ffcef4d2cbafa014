"""Stochastic depth: one draw for a branch, exact over all masks; a branch that is dropped need not run."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import dropkit
from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.functional import drop_path, linear_rates, skip_path
from tests.helpers.contract import KEY, all_masks, assert_positive_zero, assert_same, chances, realised, scale


def values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


X = values(8, 3, 4)
MASK = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool).view(8, 1, 1)


class Branch(torch.nn.Module):
    """A branch that works row by row and notes of how many rows; its products are exact, whatever the batch."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(values(4, dtype=dtype))
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return torch.tanh(x * self.weight)


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3])
@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_moments_over_all_masks(p: float, mode: str, scale_by_keep: bool) -> None:
    layer, x, r = dropkit.nn.DropPath(p, mode, scale_by_keep), values(5, 2, 3), realised(p)
    masks = all_masks(5 if mode == "row" else 1)
    weights = chances(masks, p).view(-1, 1, 1, 1)
    outs = torch.stack([layer(x, mask=mask.view(-1, 1, 1)) for mask in masks])
    mean = x if scale_by_keep else (1 - r) * x
    torch.testing.assert_close((weights * outs).sum(0), mean, rtol=1e-12, atol=0)
    factor = r / (1 - r) if scale_by_keep else r * (1 - r)
    torch.testing.assert_close((weights * (outs - mean).square()).sum(0), factor * x**2, rtol=1e-12, atol=0)
    # The sum over a batch tells one draw from several: they add up before they are squared.
    total, wanted = outs.sum(1), x.sum(0).square() if mode == "batch" else x.square().sum(0)
    variance = (weights.squeeze(-1) * (total - mean.sum(0)).square()).sum(0)
    torch.testing.assert_close(variance, factor * wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(64,), (64, 3), (64, 3, 2, 2)])
def test_a_draw_for_each_row_or_one_for_the_batch(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    out, mask = drop_path(x, 0.4, key=KEY, return_mask=True)
    assert mask.shape == (64, *(1,) * (len(shape) - 1))
    assert torch.equal(mask, torch.from_numpy(random.keep_mask(KEY, mask.shape, 0.4)))
    assert_same(out, torch.where(mask, torch.tensor(scale(0.4), dtype=torch.float32), 0.0).expand(shape))
    assert 0 < mask.sum() < 64
    kept = [bool(drop_path(x, 0.4, mode="batch", key=key).all()) for key in range(64)]
    assert 0 < sum(kept) < 64
    for key in range(64):
        out, mask = drop_path(x, 0.4, mode="batch", key=key, return_mask=True)
        assert mask.shape == (1,) * len(shape)
        assert mask.item() == kept[key]
        assert len(out.unique()) == 1


@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_evaluation_is_the_input_itself_scaled_or_not(scale_by_keep: bool) -> None:
    layer = dropkit.nn.DropPath(0.4, scale_by_keep=scale_by_keep)
    assert layer.eval()(X) is X
    assert dropkit.nn.DropPath(0.0, scale_by_keep=scale_by_keep)(X) is X
    assert set((dropkit.nn.DropPath(0.4, "row", False)(torch.ones(64, 1), key=KEY)).unique().tolist()) == {0.0, 1.0}


def test_its_representation_and_its_other_name() -> None:
    assert dropkit.nn.StochasticDepth is dropkit.nn.DropPath
    assert repr(dropkit.nn.DropPath()) == "DropPath(p=0.1)"
    assert repr(dropkit.nn.DropPath(0.2, "batch", False)) == "DropPath(p=0.2, mode='batch', scale_by_keep=False)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale_by_keep", [True, False])
@pytest.mark.parametrize("mode", ["row", "batch"])
def test_skipping_is_the_same_to_the_bit(dtype: torch.dtype, scale_by_keep: bool, mode: str) -> None:
    layer, branch = dropkit.nn.DropPath(0.4, mode, scale_by_keep), Branch(dtype)
    x = values(16, 3, 4, dtype=dtype).requires_grad_()
    upstream = values(16, 3, 4, dtype=dtype).flip(0)
    for key in range(8):
        plain, mask = layer(branch(x), key=key, return_mask=True)
        branch.rows.clear()
        skipped, found = layer.skip(branch, x, key=key, return_mask=True)
        assert torch.equal(found, mask)
        rows = int(mask.expand(16, 1, 1).sum())
        assert branch.rows == ([rows] if rows else [])
        assert_same(skipped, plain)
        if rows:
            gradients = [torch.autograd.grad(out, [x, branch.weight], upstream) for out in (skipped, plain)]
            assert_same(gradients[0][0], gradients[1][0])
            torch.testing.assert_close(gradients[0][1], gradients[1][1])  # whose sum over rows has another order


def test_skipping_draws_what_the_layer_draws() -> None:
    layer, branch = dropkit.nn.DropPath(0.5), Branch()
    torch.manual_seed(4)
    want, state = layer(branch(X)), torch.get_rng_state()
    torch.manual_seed(4)
    assert torch.equal(layer.skip(branch, X), want)
    assert torch.equal(torch.get_rng_state(), state)
    own = dropkit.nn.DropPath(0.5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(own.skip(branch, X), want)
    assert torch.equal(torch.get_rng_state(), state)


def test_skipping_what_is_dropped_leaves_no_trace() -> None:
    x, branch = X.clone().requires_grad_(), Branch()
    bad = torch.where(MASK, x, torch.nan)
    out = skip_path(branch, bad, 0.5, mask=MASK)
    assert torch.equal(out, drop_path(branch(x), 0.5, mask=MASK))
    assert_positive_zero(out[~MASK.flatten()])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert_positive_zero(gradient[~MASK.flatten()])
    branch.rows.clear()
    for options in ({"p": 0.5, "mask": MASK[:1] & False}, {"p": 1.0}, {"p": 1.0, "mask": MASK | True}):
        out = skip_path(branch, bad, **options)
        assert_positive_zero(out)
        assert out.shape == X.shape
    assert branch.rows == []


def test_skipping_runs_the_whole_branch_where_nothing_is_drawn() -> None:
    branch, state = Branch(), torch.get_rng_state()
    for options in ({"training": False}, {"p": 0.0}, {"p": 1.0, "training": False}):
        out, mask = skip_path(branch, X, **options, return_mask=True)
        assert torch.equal(out, branch(X))
        assert mask.shape == (8, 1, 1)
        assert mask.all()
    assert set(branch.rows) == {8}
    assert torch.equal(torch.get_rng_state(), state)


def test_skipping_by_rates_and_keys_of_rows() -> None:
    branch, keys = Branch(), torch.arange(8)
    rates = torch.tensor([0.0, 1.0, 0.5, 0.1, 0.9, 0.5, 0.25, 1.0], dtype=torch.float64)
    for p in (0.5, rates):
        assert torch.equal(skip_path(branch, X, p, key=keys), drop_path(branch(X), p, key=keys))
    layer = dropkit.nn.DropPath(0.5)
    layer.follow()
    assert torch.equal(layer.skip(branch, X, key=3), drop_path(branch(X), 0.5, key=3))


def test_a_skipped_branch_with_batch_normalisation_sees_the_kept_rows_alone() -> None:
    """What the documentation warns of: it is the branch of a smaller batch."""
    branch = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(12), torch.nn.Unflatten(1, (3, 4))).double()
    rows = MASK.flatten()
    out = skip_path(branch, X, 0.5, mask=MASK)
    torch.testing.assert_close(out[rows], 2 * branch(X[rows]))
    assert not torch.allclose(out, drop_path(branch(X), 0.5, mask=MASK))
    before = branch[1].running_mean.clone()
    skip_path(branch, X, 1.0)
    assert torch.equal(branch[1].running_mean, before)
    branch.eval()
    torch.testing.assert_close(skip_path(branch, X, 0.5, mask=MASK), drop_path(branch(X), 0.5, mask=MASK))


def test_skipping_in_a_checkpoint() -> None:
    layer, branch, x = dropkit.nn.DropPath(0.5), Branch(), X.clone().requires_grad_()
    torch.manual_seed(2)
    (want,) = torch.autograd.grad(layer.skip(branch, x).sum(), x)
    torch.manual_seed(2)
    (found,) = torch.autograd.grad(checkpoint(lambda x: layer.skip(branch, x), x, use_reentrant=False).sum(), x)
    assert torch.equal(found, want)


def test_where_shapes_are_fixed_all_rows_run_with_the_same_result() -> None:
    layer, branch, key = dropkit.nn.DropPath(0.5), Branch(), torch.tensor(5)
    want = layer(branch(X), key=5)
    compiled = torch.compile(lambda x, key: layer.skip(torch.tanh, x, key=key), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X, key), layer(torch.tanh(X), key=5))
    batched = torch.func.vmap(lambda x: layer.skip(branch, x, key=5))(torch.stack([X, -X]))
    assert torch.equal(batched[0], want)


def test_a_branch_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"must be a function that keeps the shape \(4, 3, 4\), got \(4, 3, 5\)"):
        skip_path(torch.nn.Linear(4, 5, dtype=torch.float64), X, 0.5, mask=MASK)
    for rest in ((0.5, False), (0.0, True)):  # also where nothing is dropped, which training would find out late
        with pytest.raises(ArgumentError, match=r"must be a function that keeps the shape \(8, 3, 4\)"):
            skip_path(torch.nn.Linear(4, 5, dtype=torch.float64), X, *rest)


@pytest.mark.parametrize("kept", [True, False])
def test_a_branch_under_autocast_gives_one_type_whatever_is_dropped(kept: bool) -> None:
    mask = torch.full((8, 1, 1), kept)
    with torch.autocast("cpu"):
        assert skip_path(torch.nn.Linear(4, 4), X.float(), 0.5, mask=mask).dtype == torch.bfloat16


def test_skipping_keeps_the_memory_format_and_runs_on_meta() -> None:
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    mask = torch.tensor([True, False, True, True]).view(4, 1, 1, 1)
    found = skip_path(torch.tanh, images, 0.5, mask=mask)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, drop_path(torch.tanh(images), 0.5, mask=mask))
    assert skip_path(torch.tanh, torch.ones(4, 3, device="meta"), 0.5, key=KEY).shape == (4, 3)


def test_a_batch_that_shares_a_draw_has_one_key() -> None:
    rule = r"drop_path: `key` must be of no axis where mode is 'batch', got \(4,\)"
    with pytest.raises(ArgumentError, match=rule):
        drop_path(X, 0.5, mode="batch", key=torch.arange(4))


@pytest.mark.parametrize("first", ["zero", "paper"])
def test_rates_over_depth(first: str) -> None:
    rates = linear_rates(0.5, 54, first)
    assert len(rates) == 54
    assert rates[-1] == 0.5
    assert rates[0] == (0 if first == "zero" else pytest.approx(0.5 / 54, rel=1e-15))
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * 53, rel=1e-12)
    # 54 blocks and survival 0.5 at the last: (3L - 1) / 4 blocks are active on average, the paper's figure.
    active: Any = sum(1 - rate for rate in rates)
    assert active == pytest.approx(40.25 if first == "paper" else 40.5, rel=1e-12)
    assert linear_rates(0.3, 1, first) == [0.0 if first == "zero" else 0.3]
