"""Locked dropout: one mask for all steps of a sequence, and one for each example."""

from typing import Any

import pytest
import torch
from torch import Tensor

import dropkit
from dropkit import random
from dropkit.functional import dropout, locked_dropout
from tests.helpers.contract import KEY, all_masks, chances, realised, scale


def values(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


X = values(2, 5, 4)


@pytest.mark.parametrize("batch_first", [True, False])
def test_all_steps_of_an_example_share_a_mask_and_examples_do_not(batch_first: bool) -> None:
    layer = dropkit.nn.LockedDropout(0.4, batch_first)
    ones = torch.ones(64, 7, 32, dtype=torch.float64) if batch_first else torch.ones(7, 64, 32, dtype=torch.float64)
    out, mask = layer(ones, key=KEY, return_mask=True)
    assert mask.shape == ((64, 1, 32) if batch_first else (1, 64, 32))
    keep = torch.from_numpy(random.keep_mask(KEY, (64, 32), 0.4))
    assert torch.equal(mask, keep.unsqueeze(1 if batch_first else 0))
    assert torch.equal(out, mask.double().expand(ones.shape) * scale(0.4))
    assert len({tuple(row) for row in keep.tolist()}) == 64


def test_the_order_of_axes_changes_no_mask() -> None:
    first = locked_dropout(X, 0.5, key=KEY)
    assert torch.equal(locked_dropout(X.transpose(0, 1), 0.5, batch_first=False, key=KEY).transpose(0, 1), first)
    assert torch.equal(dropout(X, 0.5, broadcast_dims=1, key=KEY), first)
    assert "batch_first=False" in repr(dropkit.nn.LockedDropout(batch_first=False))


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3])
def test_moments_over_all_masks(p: float) -> None:
    masks = all_masks(8)
    weights = chances(masks, p).view(-1, 1, 1, 1)
    outs = torch.stack([dropkit.nn.LockedDropout(p)(X, mask=mask.view(2, 1, 4)) for mask in masks])
    torch.testing.assert_close((weights * outs).sum(0), X, rtol=1e-12, atol=0)
    factor = realised(p) / (1 - realised(p))
    torch.testing.assert_close((weights * (outs - X).square()).sum(0), factor * X**2, rtol=1e-12, atol=0)
    # Steps move together: the sum over time has the variance of one draw, not of one a step.
    sums = outs.sum(2)
    variance = (weights.squeeze(-1) * (sums - X.sum(1)).square()).sum(0)
    torch.testing.assert_close(variance, factor * X.sum(1) ** 2, rtol=1e-12, atol=0)


def test_an_example_has_its_mask_whatever_the_batch() -> None:
    keys = torch.tensor([5, 9])
    whole = locked_dropout(X, 0.5, key=keys)
    for i in range(2):
        assert torch.equal(locked_dropout(X[i : i + 1], 0.5, key=keys[i : i + 1])[0], whole[i])
    rule = r"must be of no axis where batch_first is False, got \(2,\)"
    for name, address in {"key": {"key": keys}, "stream": {"key": 5, "stream": keys}}.items():
        with pytest.raises(dropkit.errors.ArgumentError, match=f"locked_dropout: `{name}` {rule}"):
            locked_dropout(X, 0.5, batch_first=False, **address)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_sequences_of_several_lengths(layout: Any) -> None:
    parts = [values(5, 4), values(2, 4), values(7, 4)]
    x = torch.nested.nested_tensor(parts, layout=layout)
    out = dropkit.nn.LockedDropout(0.5)(x, key=KEY).unbind()
    keep = torch.from_numpy(random.keep_mask(KEY, (3, 1, 4), 0.5))
    for part, found, mask in zip(parts, out, keep, strict=True):
        assert torch.equal(found, torch.where(mask, 2 * part, 0.0))
    with pytest.raises(dropkit.errors.ArgumentError, match="`batch_first` must be True where the input is nested"):
        locked_dropout(x, 0.5, batch_first=False)  # steps would share masks, examples would not
    flat = torch.nested.nested_tensor([part[0] for part in parts], layout=layout)
    with pytest.raises(dropkit.errors.ArgumentError, match=r"`input` must be of shape \(N, L, C\)"):
        locked_dropout(flat, 0.5)


def test_packed_sequences_are_refused_with_the_way_to_pad_them() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([values(5, 4), values(2, 4)])
    with pytest.raises(
        dropkit.errors.ArgumentTypeError, match=r"PackedSequence'> .*Call torch.nn.utils.rnn.pad_packed"
    ):
        dropkit.nn.LockedDropout()(packed)
