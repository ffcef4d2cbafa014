"""Triton's kernels draw the masks of the definition: in its interpreter here, and on a GPU where there is one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.kernels import portable
from dropkit.random.layout import Layout, layout
from tests.helpers.native import Address, signed

pytest.importorskip("triton")
from dropkit.kernels import triton_address, triton_dropout  # import Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VECTORS = json.loads((Path(__file__).parents[1] / "data" / "mask_vectors.json").read_text())
KEY = random.call_key(17, "triton", step=4)
WHOLE = (2**64, 2**34)
RATES = (0.0, 2.0**-32, 0.1, 0.5, 1 - 2.0**-32, 1.0)
WIDTHS = (1, 2, 7, 8, 9, 10, 16, 64, 100, 513)


def keep_mask(address: Address, t: int) -> np.ndarray:
    return triton_dropout.keep_mask(*address.tensors(t), address.place(), DEVICE).cpu().numpy()


def reference(address: Address, p: float) -> np.ndarray:
    options: Any = {"offset": address.offset, "full_shape": address.full_shape, "stream": address.stream}
    return random.keep_mask(address.key, address.shape, p, broadcast_dims=address.broadcast_dims, **options)


def dropped(x: Tensor, place: Layout, p: float = 0.1, key: Tensor | None = None, scaled: bool = True) -> Tensor:
    key = signed(KEY) if key is None else key
    address = key, torch.full((1,) * key.dim(), 3), torch.tensor(random.threshold(p))
    return triton_dropout.dropout(x.to(DEVICE), *(each.to(DEVICE) for each in address), place, scaled).cpu()


def test_known_draws_of_every_shape_and_of_a_shard() -> None:
    for case in [*VECTORS["shapes"], VECTORS["shard"]]:
        u = np.array(case["u"]).reshape(case["shape"])
        address = Address(case["key"], u.shape, 0, case.get("offset"), case.get("full_shape"))
        for t in (threshold for value in case["u"][:3] for threshold in (value, value + 1)):
            np.testing.assert_array_equal(keep_mask(address, t), u >= t)


def test_known_ties() -> None:
    case = VECTORS["ties"]
    for at in case["at"]:
        place = (at["row"], at["col"])
        address = Address(case["key"], (1, 1), 0, place, WHOLE)
        assert keep_mask(address, random.threshold(case["p"])).item() == at["keep"]


def test_ties_at_the_lowest_and_the_highest_half() -> None:
    for half in (0, 2**16 - 1):
        for key in range(300):  # until an element has that half
            u = random.uniform32(key, (8, 64))
            if (u >> 16 == half).any():
                break
        drawn = int(u[u >> 16 == half][0])
        for t in (drawn, drawn + 1):
            np.testing.assert_array_equal(keep_mask(Address(key, u.shape), t), u >= t)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_and_rate(width: int) -> None:
    address = Address(KEY, (3, width), 5)
    for p in RATES:
        np.testing.assert_array_equal(keep_mask(address, random.threshold(p)), reference(address, p), strict=True)


@pytest.mark.parametrize("column", [1, 8, 60, 2**31 + 3, 2**34 - 30])
@pytest.mark.parametrize("row", [2**32 - 2, 2**63 - 1, 2**64 - 4])
def test_shards_begin_anywhere(column: int, row: int) -> None:
    address = Address(KEY, (4, 30), 7, (row, column), WHOLE)
    np.testing.assert_array_equal(keep_mask(address, random.threshold(0.3)), reference(address, 0.3))


def test_rows_that_do_not_follow_one_another() -> None:
    address = Address(KEY, (2, 3, 2, 12), 0, (1, 2, 0, 8), (5, 9, 4, 64))
    np.testing.assert_array_equal(keep_mask(address, random.threshold(0.3)), reference(address, 0.3))


@pytest.mark.parametrize("shared", [(1,), (2, 3), (0, 2), (), (0, 1, 2, 3)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (11, 3, 8, 9)])
def test_elements_that_share_a_draw_or_lie_in_another_order(
    shared: tuple[int, ...], order: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape).permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
    address = Address(KEY, shape, 0, None, None, shared)
    key, stream, t = address.tensors(random.threshold(0.4))
    for scaled in (True, False):
        found = triton_dropout.dropout(x.to(DEVICE), key, stream, t, address.place(), scaled)
        assert torch.equal(found.cpu(), portable.dropout(x, key, stream, t, address.place(), scaled))
        assert found.stride() == x.stride()


def test_parts_of_tensors() -> None:
    whole = torch.randn(6, 9, 10)
    for x in (whole[::2, :, 1:], whole[:, :1].expand(6, 4, 10), whole.transpose(0, 2)[..., ::3]):
        address = *Address(KEY, x.shape).tensors(random.threshold(0.4)), layout("test", x.shape), True
        assert torch.equal(triton_dropout.dropout(x.to(DEVICE), *address).cpu(), portable.dropout(x, *address))


@pytest.mark.parametrize("dtype", triton_dropout.TYPES)
@pytest.mark.parametrize("shape", [(5, 16), (3, 2, 10), (7,), (), (0, 8), (70, 33), (800, 3)])
@pytest.mark.parametrize("scaled", [True, False])
def test_values_are_those_of_the_portable_operations(dtype: torch.dtype, shape: tuple[int, ...], scaled: bool) -> None:
    x, place = torch.randn(shape).to(dtype), layout("test", shape)
    found = dropped(x, place, scaled=scaled)
    want = portable.dropout(x, signed(KEY), torch.tensor(3), torch.tensor(random.threshold(0.1)), place, scaled)
    assert found.dtype == dtype
    assert torch.equal(found == 0, want == 0)
    # The interpreter cuts bfloat16 off where a GPU rounds.
    is_cut = dtype == torch.bfloat16 and DEVICE.type == "cpu"
    torch.testing.assert_close(found, want, rtol=2**-7 if is_cut else 0, atol=0)


def test_what_is_dropped_is_zero_whatever_it_was() -> None:
    x = torch.full((4, 64), torch.nan)
    keep = torch.from_numpy(reference(Address(KEY, (4, 64), 3), 0.5))
    found = dropped(x, layout("test", x.shape), 0.5)
    assert torch.equal(found.isnan(), keep)
    assert (found[~keep] == 0).all()
    assert not found[~keep].signbit().any()
    assert (dropped(x, layout("test", x.shape), 1.0) == 0).all()


@pytest.mark.parametrize("rest", [(16,), (3, 10), ()])
def test_slices_have_keys_of_their_own(rest: tuple[int, ...]) -> None:
    keys = torch.arange(5) * 1_000_003 - 2
    place = layout("test", (5, *rest), slices=1)
    x = torch.randn(5, *rest)
    found = dropped(x, place, 0.3, keys)
    for each, key, one in zip(found, keys, x, strict=True):
        alone = dropped(one, layout("test", rest), 0.3, key)
        assert torch.equal(each, alone)


@pytest.mark.parametrize("key", [KEY, 3, -1, -(2**63)])
@pytest.mark.parametrize("width", [16, 10])
@pytest.mark.parametrize("p", RATES)
def test_addresses_of_plain_numbers(p: float, width: int, key: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(value: Tensor, *_: Any) -> int:  # as where the tensor is on a GPU and its address is not
        return int(value)

    x, place, address = torch.randn(3, width), layout("test", (3, width)), (signed(key), torch.tensor(3))
    want = portable.dropout(x, *address, torch.tensor(random.threshold(p)), place)
    monkeypatch.setattr(triton_address, "_spread", spread)
    assert torch.equal(dropped(x, place, p, signed(key)), want)


@pytest.mark.parametrize("keys", [torch.arange(6)[::2], torch.tensor([5]).expand(3)])
def test_keys_of_slices_may_lie_apart_or_in_one_place(keys: Tensor) -> None:
    x, place = torch.randn(3, 16), layout("test", (3, 16), slices=1)
    assert torch.equal(dropped(x, place, 0.3, keys), dropped(x, place, 0.3, keys.contiguous()))


def test_slices_have_rates_of_their_own() -> None:
    rates = torch.tensor([random.threshold(p) for p in (0.0, 0.3, 1.0)])
    x, place = torch.ones(3, 40), layout("test", (3, 40))
    address = signed(KEY), torch.tensor(0), rates
    found = triton_dropout.dropout(x.to(DEVICE), *(each.to(DEVICE) for each in address), place, True).cpu()
    want = portable.dropout(x, *address, place)
    assert torch.equal(found, want)


@pytest.mark.gpu
def test_the_operator_on_a_gpu_draws_what_a_cpu_draws() -> None:
    x = torch.randn(1000, 1000)
    for p in (0.1, 0.5):
        address = signed(KEY), torch.tensor(0), torch.tensor(random.threshold(p)), *layout("test", x.shape), True
        on_cpu, on_gpu = (torch.ops.dropkit.dropout(x.to(device), *address).cpu() for device in ("cpu", "cuda"))
        assert torch.equal(on_cpu, on_gpu)


@pytest.mark.gpu
def test_more_elements_than_fit_into_32_bits() -> None:
    rows, columns = 2**19 + 3, 2**13
    place = layout("test", (rows, columns))
    address = signed(KEY), torch.tensor(0), torch.tensor(random.threshold(0.5))
    found = triton_dropout.keep_mask(*address, place, torch.device("cuda"))
    last = Address(KEY, (3, columns), 0, (rows - 3, 0), (rows, columns))
    np.testing.assert_array_equal(found[-3:].cpu().numpy(), reference(last, 0.5))
