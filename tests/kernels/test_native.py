"""Every instruction set that this processor has draws the reference's masks and applies them as PyTorch multiplies."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dropkit import random
from dropkit.kernels import portable
from dropkit.kernels.native import operations
from dropkit.kernels.native.library import library
from dropkit.random.layout import layout
from tests.helpers.native import CPU, RATES, Address, addresses, bits, dropped, keep_mask, reference, signed, using

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "mask_vectors.json").read_text())
KEY = random.call_key(17, "native", step=4)
WIDTHS = (
    *range(1, 10), 10, 13, 31, 32, 33, 63, 64, 65, 66, 100, 127, 128, 129, 130, 257, 512, 1000, 4095, 4096, 4097, 5000,
)  # fmt: skip
SHAPES = (
    (), (1,), (100_003,), (32_769,), (2, 49_160), (0,), (0, 5), (5, 0), (2, 0, 3), (7, 3, 5, 11), (70_001, 3),
    (3, 40_001), (300, 300),
)  # fmt: skip
TYPES = operations.TYPES
WHOLE = (2**64, 2**34)


def assert_same_numbers(found: Tensor, want: Tensor) -> None:
    """Equal bits, the sign of zero too, where NaN equals NaN."""
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(bits(found.nan_to_num(0.0)), bits(want.nan_to_num(0.0)))
    assert torch.equal(found.isinf(), want.isinf())


# Known answers


def test_known_draws_to_the_last_bit() -> None:
    """A draw is known where it is kept at its own value as threshold and dropped at the next."""
    for case in VECTORS["uniforms"]:
        u = np.array([case["u"]])
        address = Address(case["key"], u.shape, case["stream"], (case["row"], case["col"]), WHOLE)
        for t in (threshold for value in case["u"] for threshold in (value, value + 1)):
            np.testing.assert_array_equal(keep_mask(address, t), u >= t)


def test_known_draws_of_every_shape_and_of_a_shard() -> None:
    cases = [*VECTORS["shapes"], VECTORS["shard"]]
    assert len(cases) == 10
    for case in cases:
        u = np.array(case["u"]).reshape(case["shape"])
        address = Address(case["key"], u.shape, 0, case.get("offset"), case.get("full_shape"))
        for value in case["u"][:40]:
            for t in (value, value + 1):
                np.testing.assert_array_equal(keep_mask(address, t), u >= t)


def test_known_masks() -> None:
    for case in VECTORS["kept"]:
        keep = keep_mask(Address(case["key"], tuple(case["shape"])), random.threshold(case["p"]))
        assert keep.sum() == case["kept"]
        assert "".join(str(int(bit)) for bit in keep[0]) == case["row0"]
        assert "".join(str(int(bit)) for bit in keep[40]) == case["row40"]


def test_known_ties() -> None:
    case = VECTORS["ties"]
    last = max(place["col"] for place in case["at"])
    keep = keep_mask(Address(case["key"], (1, last + 1)), random.threshold(case["p"]))
    for place in case["at"]:
        assert keep[place["row"], place["col"]] == place["keep"]


# The reference


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_and_rate(width: int) -> None:
    rows = max(3, 700 // width)
    for p in RATES:
        address = Address(KEY, (rows, width))
        np.testing.assert_array_equal(keep_mask(address, random.threshold(p)), reference(address, p), strict=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_shards_of_every_width_begin_anywhere(width: int) -> None:
    rows = 2 + 150 // width
    columns = (1, 5, 8, 60, 64, 2**31 + 3, 2**34 - width)
    for column, row in itertools.product(columns, (2**32 - 2, 2**63 - 1, 2**64 - rows)):
        address = Address(KEY, (rows, width), 7, (row, column), WHOLE)
        for p in (0.1, 0.5):
            np.testing.assert_array_equal(keep_mask(address, random.threshold(p)), reference(address, p))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.0, 1 / 3, 0.5, 1.0])
def test_any_shape_and_type(shape: tuple[int, ...], p: float) -> None:
    address, t = Address(KEY, shape), random.threshold(p)
    keep = torch.from_numpy(reference(address, p))
    assert torch.equal(torch.from_numpy(keep_mask(address, t)), keep)
    scale = portable.survivor_scale(torch.tensor(t))
    for dtype in TYPES:
        x = torch.randn(shape).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for scaled in (True, False):
            want = torch.where(keep, (x.to(wide) * (scale.to(wide) if scaled else 1)).to(dtype), 0)
            assert_same_numbers(dropped(x, address, t, scaled), want)


@given(addresses(), st.integers(0, 2**32) | st.sampled_from([random.threshold(p) for p in RATES]), st.data())
def test_any_address(address: Address, t: int, data: st.DataObject) -> None:
    keep = reference(address, t / 2**32)
    np.testing.assert_array_equal(keep_mask(address, t), keep, strict=True)
    dtype = data.draw(st.sampled_from(list(TYPES)))
    x = torch.randint(-(2**15), 2**15, address.shape).to(dtype).div_(3)
    found = dropped(x, address, t)
    with using("scalar"):
        assert torch.equal(bits(found), bits(dropped(x, address, t)))
    want = portable.dropout(x, *address.tensors(t), address.place())
    assert torch.equal(bits(found), bits(want))
    assert bool((found[~torch.from_numpy(keep).expand(x.shape)] == 0).all())


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**30 - 1), min_size=4, max_size=4),
    st.lists(st.sampled_from(RATES), min_size=4, max_size=4),
    st.lists(st.integers(1, 70), max_size=2),
    st.tuples(st.booleans(), st.booleans()),
)
def test_slices_have_keys_streams_and_rates_of_their_own(
    keys: list[int], streams: list[int], rates: list[float], rest: list[int], shared: tuple[bool, bool]
) -> None:
    n = len(keys)
    streams = streams[:1] if shared[0] else streams[:n]
    rates = rates[:1] * n if shared[1] else rates[:n]
    thresholds = torch.tensor([random.threshold(p) for p in rates])
    threshold = thresholds[0] if shared[1] else thresholds
    address = (torch.stack([signed(key) for key in keys]), torch.tensor(streams), threshold)
    keep = operations.keep_mask(*address, layout("test", rest), CPU)
    x = torch.randn(n, *rest)
    out = operations.dropout(x, *address, layout("test", rest), True)
    for i, (key, p) in enumerate(zip(keys, rates, strict=True)):
        want = torch.from_numpy(random.keep_mask(key, rest, p, stream=streams[i % len(streams)]))
        assert torch.equal(keep[i], want)
        scale = portable.survivor_scale(thresholds[i]).float()
        assert torch.equal(out[i], torch.where(want, x[i] * scale, 0))


def test_two_axes_of_slices() -> None:
    keys, streams = torch.stack([signed(KEY), signed(8), signed(9)]).reshape(3, 1), torch.tensor([[0, 4]])
    keep = operations.keep_mask(keys, streams, torch.tensor(random.threshold(0.3)), layout("test", (5, 20)), CPU)
    for i, key in enumerate((KEY, 8, 9)):
        for j, stream in enumerate((0, 4)):
            np.testing.assert_array_equal(keep[i, j], random.keep_mask(key, (5, 20), 0.3, stream=stream))


def test_axes_between_which_rows_are_far_apart() -> None:
    """A shard of more elements than memory holds: its rows jump, past 2**32 and past 2**63."""
    full, shape = (2**20, 2**20, 2**24, 2**34), (2, 2, 3, 70)
    for offset in ((2**20 - 2, 1, 2**24 - 3, 2**34 - 70), (2**19 - 1, 2**20 - 2, 2**24 - 3, 2**31 + 1), (0, 255, 7, 3)):
        address = Address(KEY, shape, 3, offset, full)
        np.testing.assert_array_equal(keep_mask(address, random.threshold(0.4)), reference(address, 0.4))


# Numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 1 / 3, 0.5, 0.7, 0.9, 1 - 2.0**-20, 1 - 2.0**-32])
def test_all_numbers_of_the_half_types_are_scaled_and_rounded_as_by_pytorch(dtype: torch.dtype, p: float) -> None:
    t = random.threshold(p)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    scale = portable.survivor_scale(torch.tensor(t)).to(torch.float32)
    want = (x.to(torch.float32) * scale).to(dtype)
    for keep in (torch.full((2**10,), -1), torch.full((2**10,), 0x5A5A_5A5A_3C3C_3C3C)):
        out = torch.empty_like(x)
        library().apply_bits(TYPES[dtype], x.data_ptr(), out.data_ptr(), keep.data_ptr(), len(x), t, True)
        kept = torch.from_numpy(np.unpackbits(keep.numpy().view(np.uint8), bitorder="little").astype(bool))
        assert_same_numbers(out, torch.where(kept, want, 0))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_is_dropped_is_plus_zero_and_what_is_kept_is_multiplied(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, tiny, -tiny, tiny / 4, -tiny / 8, huge, -huge, 1.0]
    x = torch.tensor(special, dtype=torch.float64).to(dtype).repeat(300).reshape(-1, 45)
    for p in (0.1, 0.5, 1.0):
        address, t = Address(KEY, tuple(x.shape)), random.threshold(p)
        keep = torch.from_numpy(reference(address, p))
        found = dropped(x, address, t)
        assert bool((bits(found)[~keep] == 0).all())
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scaled = (x.to(wide) * portable.survivor_scale(torch.tensor(t)).to(wide)).to(dtype)
        assert_same_numbers(found, torch.where(keep, scaled, 0))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_bits_as_by_the_scalar_path(dtype: torch.dtype) -> None:
    """The payload of every NaN included."""
    x = torch.randint(-(2**63), 2**63 - 1, (40_000,)).view(dtype).reshape(100, -1)
    address = Address(KEY, tuple(x.shape))
    for p in (0.0, 0.1, 0.5):
        found = dropped(x, address, random.threshold(p))
        with using("scalar"):
            assert torch.equal(bits(found), bits(dropped(x, address, random.threshold(p))))


# The forms of a mask


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (2, 1, 100_003), (5, 333, 66), (3, 9_001, 3), (2, 64, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_and_bytes_of_a_mask_agree_and_bits_apply_it(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    native, t = library(), random.threshold(0.3)
    numbers = [np.array(values, np.uint64) for values in ([KEY + i for i in range(shape[0])], [0], [t])]
    packed = np.array([1, *shape, 2**31 - 5, 2**40, 13, *(values.ctypes.data for values in numbers), 1, 0, 0])
    elements = int(np.prod(shape))
    x = torch.randn(shape).to(dtype)
    out, by_bits = torch.empty_like(x), torch.empty_like(x)
    as_bytes, words = np.full(elements, 9, np.uint8), np.zeros((elements + 63) // 64, np.uint64)
    native.dropout(TYPES[dtype], x.data_ptr(), out.data_ptr(), packed.ctypes.data)
    native.keep_bytes(as_bytes.ctypes.data, packed.ctypes.data)
    native.keep_bits(words.ctypes.data, 0, packed.ctypes.data)
    native.apply_bits(TYPES[dtype], x.data_ptr(), by_bits.data_ptr(), words.ctypes.data, elements, t, True)
    addresses = [Address(KEY + i, shape[1:], 0, (2**31 - 5 + 2**40 * i, 13), WHOLE) for i in range(shape[0])]
    want = np.stack([reference(address, 0.3) for address in addresses])
    np.testing.assert_array_equal(as_bytes, want.ravel())
    as_bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    np.testing.assert_array_equal(as_bits[:elements], want.ravel())
    assert not as_bits[elements:].any()
    assert torch.equal(out != 0, torch.from_numpy(want))
    assert torch.equal(bits(by_bits), bits(out))


@pytest.mark.slow
def test_a_mask_of_more_than_two_to_the_31_elements() -> None:
    """As bits, a quarter of a gigabyte: no offset is counted in 32 bits."""
    rows, columns = 40_000, 53_703
    words = np.zeros((rows * columns + 63) // 64, np.uint64)
    numbers = [np.array([value], np.uint64) for value in (KEY, 0, random.threshold(0.5))]
    packed = np.array([0, 1, rows, columns, 0, 0, 0, *(number.ctypes.data for number in numbers), 0, 0, 0])
    assert rows * columns > 2**31
    library().keep_bits(words.ctypes.data, 0, packed.ctypes.data)
    for row in (0, 19_999, 39_990, rows - 1):
        begin = row * columns
        found = np.unpackbits(words[begin // 64 : (begin + columns) // 64 + 1].view(np.uint8), bitorder="little")
        want = random.keep_mask(KEY, (1, columns), 0.5, offset=(row, 0), full_shape=(rows, columns))[0]
        np.testing.assert_array_equal(found[begin % 64 :][:columns], want)
