"""Keys, streams, rates, shards and shared axes: what decides a mask and what does not."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.functional import dropout
from tests.helpers.contract import scale

KEY = random.call_key(1, "layer", step=2)
SHAPE = (4, 3, 10)
RATES = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
KEYS = torch.tensor([5, -1, 0, 2**62])
STREAMS = torch.tensor([0, 1, 9, 2**30 - 1])


def kept(x: Tensor | None = None, p: Any = 0.4, **options: Any) -> np.ndarray:
    """The mask of a call, from its output."""
    out, keep = dropout(torch.ones(SHAPE) if x is None else x, p, return_mask=True, **options)
    np.testing.assert_array_equal(out != 0, np.broadcast_to(keep, out.shape))
    return keep.numpy()


@pytest.mark.parametrize("key", [0, 1, KEY, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("stream", [0, 1, 2**30 - 1])
def test_masks_are_those_of_the_definition(key: int, stream: int) -> None:
    want = random.keep_mask(key, SHAPE, 0.4, stream=stream)
    tensor = torch.tensor(key - 2**64 if key >= 2**63 else key)
    for form in (key, np.uint64(key), tensor):
        np.testing.assert_array_equal(kept(key=form, stream=stream), want)
        np.testing.assert_array_equal(kept(key=form, stream=torch.tensor(stream)), want)
        np.testing.assert_array_equal(kept(p=torch.tensor(0.4, dtype=torch.float64), key=form, stream=stream), want)


def test_neighbouring_addresses_have_other_masks() -> None:
    masks = [kept(key=KEY), kept(key=KEY + 1), kept(key=KEY, stream=1), kept(key=KEY + 2**32)]
    for first, second in itertools.combinations(masks, 2):
        assert (first != second).any()


def test_one_key_a_slice() -> None:
    want = [random.keep_mask(int(key) % 2**64, SHAPE[1:], 0.4) for key in KEYS]
    np.testing.assert_array_equal(kept(key=KEYS), np.stack(want))


def test_one_stream_a_slice() -> None:
    want = [random.keep_mask(KEY, SHAPE[1:], 0.4, stream=int(stream)) for stream in STREAMS]
    np.testing.assert_array_equal(kept(key=KEY, stream=STREAMS), np.stack(want))
    torch.manual_seed(3)
    drawn = kept(stream=STREAMS)
    assert len({mask.tobytes() for mask in drawn}) == 4


def test_one_key_stream_and_rate_a_slice() -> None:
    out = dropout(torch.ones(SHAPE, dtype=torch.float64), RATES, key=KEYS, stream=STREAMS)
    for i, p in enumerate(RATES.tolist()):
        keep = random.keep_mask(int(KEYS[i]) % 2**64, SHAPE[1:], p, stream=int(STREAMS[i]))
        np.testing.assert_array_equal(out[i], keep * (scale(p) if p < 1 else 0.0))


def test_one_rate_a_slice_leaves_the_addresses_alone() -> None:
    out = dropout(torch.ones(SHAPE, dtype=torch.float64), RATES, key=KEY)
    u = random.uniform32(KEY, SHAPE)
    for i, p in enumerate(RATES.tolist()):
        keep = u[i] >= np.uint64(random.threshold(p))
        np.testing.assert_array_equal(out[i], keep * (scale(p) if p < 1 else 0.0))


def test_slices_of_a_packed_call_are_single_calls() -> None:
    x = torch.randn(SHAPE)
    for shared in ((), (1,), (2,), (1, 2), (-1,)):
        packed = dropout(x, 0.4, key=KEYS, broadcast_dims=shared)
        alone = tuple(axis - 1 if axis > 0 else axis for axis in shared)
        for i, key in enumerate(KEYS):
            assert torch.equal(packed[i], dropout(x[i], 0.4, key=key, broadcast_dims=alone))


def test_packed_vectors_have_one_unit_a_slice() -> None:
    want = [random.keep_mask(int(key) % 2**64, (), 0.4).item() for key in KEYS]
    assert kept(torch.ones(4), key=KEYS).tolist() == want


def test_slices_of_a_packed_shard() -> None:
    options = {"offset": (0, 2, 5), "full_shape": (4, 9, 40)}
    packed = dropout(torch.ones(SHAPE), 0.4, key=KEYS, **options)
    for i, key in enumerate(KEYS):
        alone = dropout(torch.ones(SHAPE[1:]), 0.4, key=key, offset=(2, 5), full_shape=(9, 40))
        assert torch.equal(packed[i], alone)


def test_slices_of_a_packed_shard_lie_in_the_whole_one() -> None:
    for offset in ((1, 0, 0), (2**40, 0, 0)):
        with pytest.raises(ArgumentError, match="`full_shape` must be at least offset \\+ shape on every axis"):
            dropout(torch.ones(SHAPE), 0.4, key=KEYS, offset=offset, full_shape=SHAPE)


@pytest.mark.parametrize("shared", [(), 0, 1, 2, -1, -3, [0, 2], (0, 1, 2), (-1, 0), [1, -1]])
def test_shared_axes(shared: Any) -> None:
    mask = kept(key=KEY, broadcast_dims=shared)
    np.testing.assert_array_equal(mask, random.keep_mask(KEY, SHAPE, 0.4, broadcast_dims=shared), strict=True)
    torch.manual_seed(2)
    out = dropout(torch.ones(SHAPE), 0.5, broadcast_dims=shared)
    assert all((out.narrow(axis, 0, 1) == out).all() for axis in ((shared,) if isinstance(shared, int) else shared))


def test_sharing_channels_is_dropping_channels() -> None:
    out = dropout(torch.ones(50, 20, 3, 3), 0.5, broadcast_dims=(2, 3))
    channels = out.flatten(2)
    assert ((channels == 0).all(-1) | (channels == 2).all(-1)).all()
    assert (channels[..., 0] == 0).any()
    assert (channels[..., 0] == 2).any()


def test_any_split_reproduces_the_whole() -> None:
    x = torch.randn(4, 6, 20)
    whole = dropout(x, 0.4, key=KEY, broadcast_dims=1)
    for axis, size in ((0, 1), (1, 4), (2, 7), (2, 8)):
        parts = []
        for begin in range(0, x.shape[axis], size):
            offset = [0, 0, 0]
            offset[axis] = begin
            part = x.narrow(axis, begin, min(size, x.shape[axis] - begin))
            parts.append(dropout(part, 0.4, key=KEY, broadcast_dims=1, offset=offset, full_shape=x.shape))
        assert torch.equal(torch.cat(parts, axis), whole)


def test_shards_at_the_limits_of_addresses() -> None:
    place = {"offset": (2**64 - 3, 2**34 - 5), "full_shape": (2**64, 2**34), "stream": 2**30 - 1}
    want = random.keep_mask(2**64 - 1, (3, 5), 0.5, **place)
    np.testing.assert_array_equal(kept(torch.ones(3, 5), 0.5, key=2**64 - 1, **place), want)


def test_an_example_has_one_mask_in_any_batch() -> None:
    x = torch.randn(16, 3, 10)
    whole = dropout(x, 0.4, key=KEY)
    for size in (1, 5, 16):
        assert torch.equal(dropout(x[:size], 0.4, key=KEY), whole[:size])


def test_a_rate_below_half_a_unit_drops_nothing_but_is_a_copy() -> None:
    x = torch.randn(5)
    out = dropout(x, 1e-12, key=KEY)
    assert out is not x
    assert torch.equal(out, x)
    assert dropout(x, 1e-12, key=KEY).data_ptr() != x.data_ptr()


def test_a_rate_in_a_tensor_has_no_branches() -> None:
    x = torch.randn(5)
    zero, one = (torch.tensor(p, dtype=torch.float64) for p in (0.0, 1.0))
    assert torch.equal(dropout(x, zero, key=KEY), x)
    assert dropout(x, zero, key=KEY).data_ptr() != x.data_ptr()
    assert torch.equal(dropout(x, one, key=KEY), torch.zeros(5))


@pytest.mark.parametrize("name", ["p", "key", "stream"])
def test_slices_need_one_value_each(name: str) -> None:
    value = {"p": RATES[:3], "key": KEYS[:3], "stream": STREAMS[:3]}[name]
    with pytest.raises(
        ValueError,
        match=rf"`{name}` must be of shape \(\) or \(4,\), got \(3,\) .* It has 3 values, the input has 4 slices",
    ):
        dropout(torch.ones(SHAPE), **{"key": 1, name: value})
    with pytest.raises(
        ValueError, match=rf"`{name}` must be of shape \(\) or \(4,\), got \(3, 1\) .* or one for each slice of axis 0"
    ):
        dropout(torch.ones(SHAPE), **{"key": 1, name: value.reshape(3, 1)})
    with pytest.raises(ValueError, match=rf"`{name}` must be of shape \(\), got \(1,\) .* the input has no axis"):
        dropout(torch.tensor(1.0), **{"key": 1, name: value[:1]})


def test_slices_with_keys_of_their_own_share_no_draw() -> None:
    for shared in (0, -3, (0, 1)):
        with pytest.raises(ValueError, match="`broadcast_dims` must be axes other than 0 where key or stream has one"):
            dropout(torch.ones(SHAPE), key=KEYS, broadcast_dims=shared)
