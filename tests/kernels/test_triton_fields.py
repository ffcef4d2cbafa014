"""Triton's fields of numbers are those of the definition: in its interpreter here, and on a GPU where there is one."""

from typing import Any

import numpy as np
import pytest
import torch

from dropkit import random
from dropkit.kernels import portable
from dropkit.random.layout import layout
from tests.helpers.native import Address, signed

pytest.importorskip("triton")
from dropkit.kernels import triton_fields  # imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEY = random.call_key(17, "triton", step=4)
WHOLE = (2**64, 2**34)
ADDRESSES = {
    **{f"width {width}": Address(KEY, (3, width), 5) for width in (1, 7, 8, 9, 64, 100, 2100)},
    "a shard": Address(KEY, (4, 70), 7, (2**64 - 4, 2**34 - 75), WHOLE),
    "rows apart": Address(KEY, (2, 3, 2, 12), 0, (1, 2, 0, 8), (5, 9, 4, 64)),
    "shared draws": Address(KEY, (2, 3, 4, 50), 0, None, None, (1,)),
    "a number": Address(KEY, ()),
    "none": Address(KEY, (3, 0)),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_integers_are_those_of_the_definition(name: str) -> None:
    address = ADDRESSES[name]
    found = triton_fields.integers(*address.tensors(0)[:2], address.place(), DEVICE).cpu().numpy()
    options: dict[str, Any] = {"offset": address.offset, "full_shape": address.full_shape, "stream": address.stream}
    wanted = random.uniform32(address.key, address.shape, broadcast_dims=address.broadcast_dims, **options)
    np.testing.assert_array_equal(found, wanted.astype(np.int64), strict=True)


# The interpreter rounds to bfloat16 towards zero.
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, BFLOAT16, torch.float8_e5m2])
def test_uniforms_are_exact_and_within_0_and_1(dtype: torch.dtype) -> None:
    place, address = layout("test", (5, 1000)), (signed(KEY), torch.tensor(3))
    found = triton_fields.uniform(*address, place, DEVICE, dtype).cpu()
    wanted = portable.uniform(*address, place, torch.device("cpu"), dtype)
    assert found.dtype == dtype
    assert torch.equal(found.double(), wanted.double())
    if dtype in (torch.float32, torch.float64):
        assert found.min() > 0
        assert found.max() < 1


def test_slices_have_keys_and_streams_of_their_own() -> None:
    keys, streams = torch.tensor([3, -2, 10**15]), torch.tensor([0, 1, 2])
    place = layout("test", (3, 2, 33), slices=1)
    found = triton_fields.integers(keys.to(DEVICE), streams.to(DEVICE), place, DEVICE).cpu().numpy()
    for each, key, stream in zip(found, keys.tolist(), streams.tolist(), strict=True):
        np.testing.assert_array_equal(each, random.uniform32(key % 2**64, (2, 33), stream=stream))
