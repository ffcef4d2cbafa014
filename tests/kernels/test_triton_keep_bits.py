"""Triton's kernel draws the bits of the definition's masks: in its interpreter here, on a GPU where there is one."""

from typing import Any

import numpy as np
import pytest
import torch

from dropkit import random
from dropkit.kernels import bits
from tests.helpers.native import Address, signed

pytest.importorskip("triton")
from dropkit.kernels import triton_keep_bits  # imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEY = random.call_key(17, "triton", step=4)
WHOLE = (2**64, 2**34)
RATES = (0.0, 2.0**-32, 0.1, 0.5, 1 - 2.0**-32, 1.0)


def keep_mask(address: Address, t: int) -> np.ndarray:
    place = address.place()
    packed = triton_keep_bits.keep_bits(*address.tensors(t), place, DEVICE)
    assert packed.dtype == torch.int32
    assert packed.shape[-1] * bits.WORD < address.shape[-1] + 2 * bits.WORD
    return bits.unpack(packed, place.shape, place.first_column).cpu().numpy()


def reference(address: Address, p: float) -> np.ndarray:
    options: Any = {"offset": address.offset, "full_shape": address.full_shape, "stream": address.stream}
    return random.keep_mask(address.key, address.shape, p, broadcast_dims=address.broadcast_dims, **options)


@pytest.mark.parametrize("width", [1, 8, 31, 32, 33, 64, 100, 513])
def test_every_width_and_rate(width: int) -> None:
    address = Address(KEY, (3, width), 5)
    for p in RATES:
        np.testing.assert_array_equal(keep_mask(address, random.threshold(p)), reference(address, p), strict=True)


@pytest.mark.parametrize("column", [1, 8, 28, 2**31 + 3, 2**34 - 70])
@pytest.mark.parametrize("row", [2**32 - 2, 2**64 - 4])
def test_shards_begin_anywhere(column: int, row: int) -> None:
    address = Address(KEY, (4, 70), 7, (row, column), WHOLE)
    np.testing.assert_array_equal(keep_mask(address, random.threshold(0.3)), reference(address, 0.3))


def test_rows_that_do_not_follow_one_another_and_draws_that_are_shared() -> None:
    for address in (
        Address(KEY, (2, 3, 2, 12), 0, (1, 2, 0, 8), (5, 9, 4, 64)),
        Address(KEY, (2, 3, 4, 50), 0, None, None, (1,)),
    ):
        np.testing.assert_array_equal(keep_mask(address, random.threshold(0.3)), reference(address, 0.3))


def test_slices_have_keys_and_rates_of_their_own() -> None:
    keys, rates = [3, -2, 10**15], (0.0, 0.3, 1.0)
    place = Address(0, (40,)).place()
    thresholds = torch.tensor([random.threshold(p) for p in rates])
    packed = triton_keep_bits.keep_bits(
        torch.tensor(keys), torch.zeros(3, dtype=torch.int64), thresholds, place, DEVICE
    )
    found = bits.unpack(packed, place.shape, 0).cpu().numpy()
    for row, key, p in zip(found, keys, rates, strict=True):
        np.testing.assert_array_equal(row, random.keep_mask(key % 2**64, (40,), p))


@pytest.mark.parametrize("shape", [(), (0, 40), (2, 0)])
def test_scalars_and_empty_masks(shape: tuple[int, ...]) -> None:
    place = Address(KEY, shape).place()
    address = signed(KEY), torch.tensor(0), torch.tensor(random.threshold(0.5))
    found = bits.unpack(triton_keep_bits.keep_bits(*address, place, DEVICE), place.shape, 0)
    assert found.shape == shape
    assert torch.equal(found.cpu(), torch.as_tensor(random.keep_mask(KEY, shape, 0.5)))


def test_rates_that_differ_within_a_row() -> None:
    place = Address(KEY, (5,)).place()
    rates = torch.tensor([random.threshold(p) for p in (0.0, 0.5, 1.0, 0.2, 0.9)])
    packed = triton_keep_bits.keep_bits(signed(KEY), torch.tensor(0), rates, place, DEVICE)
    want = torch.ops.dropkit.keep_mask(signed(KEY), torch.tensor(0), rates, *place, torch.device("cpu"))
    assert torch.equal(bits.unpack(packed, place.shape, 0).cpu(), want)
