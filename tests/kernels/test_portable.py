"""The portable kernel gives NumPy's bits, for every address and whatever tensor they are applied to."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dropkit import random
from dropkit.kernels import portable
from dropkit.random.layout import Layout, layout
from tests.helpers import slow_masks
from tests.helpers.arrangements import arrangements

CPU = torch.device("cpu")
KEY = random.call_key(9, "kernel", step=3)
DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32, torch.complex64, torch.complex128,
)  # fmt: skip


def signed(*values: int) -> Tensor:
    """The bits of integers in [0, 2**64) as int64: one without an axis, several along one."""
    tensor = torch.from_numpy(np.array(values, np.uint64).view(np.int64).copy())
    return tensor[0] if len(values) == 1 else tensor


def in_int64(place: Layout) -> Layout:
    """A layout as operators take it: rows wrapped to 64 signed bits."""
    wrapped = [value if value < 2**63 else value - 2**64 for value in (*place.row_strides, place.first_row)]
    return place._replace(row_strides=tuple(wrapped[:-1]), first_row=wrapped[-1])


@st.composite
def addresses(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(0, 4))
    shape = draw(st.tuples(*[st.integers(0, (1, 80, 12, 6, 3)[rank])] * rank))
    axes = draw(st.lists(st.integers(0, rank - 1), unique=True)) if rank else []
    address: dict[str, Any] = {"shape": shape, "broadcast_dims": tuple(axes)}
    if draw(st.booleans()):
        bits = [64 // max(rank - 1, 1)] * (rank - 1) + [34] if rank else []
        address["full_shape"] = tuple(2**b for b in bits)
        address["offset"] = tuple(draw(st.integers(0, 2**b - n)) for b, n in zip(bits, shape, strict=True))
    return address


@given(addresses(), st.integers(0, 2**64 - 1), st.integers(0, 2**30 - 1), st.integers(0, 2**32))
def test_masks_and_integers_equal_numpy(address: dict[str, Any], key: int, stream: int, t: int) -> None:
    place = in_int64(layout("test", **address))
    fields = {"key": key, "stream": stream, **address}
    keep = portable.keep_mask(signed(key), torch.tensor(stream), torch.tensor(t), place, CPU)
    np.testing.assert_array_equal(keep, random.keep_mask(p=t / 2**32, **fields), strict=True)
    drawn = portable.integers(signed(key), torch.tensor(stream), place, CPU)
    np.testing.assert_array_equal(drawn, random.uniform32(**fields).astype(np.int64), strict=True)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 16385), (16385, 3), (5, 7, 11, 13), (2, 1, 300, 100)])
@pytest.mark.parametrize("p", [0.0, 2.0**-32, 0.1, 0.5, 1 - 2.0**-32, 1.0])
def test_shapes_that_span_tiles_equal_numpy(shape: tuple[int, ...], p: float) -> None:
    keep = portable.keep_mask(
        signed(KEY), torch.tensor(0), torch.tensor(random.threshold(p)), layout("test", shape), CPU
    )
    np.testing.assert_array_equal(keep, random.keep_mask(KEY, shape, p), strict=True)


@pytest.mark.parametrize("streams", [(0, 1, 2**30 - 1), (5,)])
@pytest.mark.parametrize("rest", [(), (13,), (4, 9), (2, 3, 17), (16400,)])
def test_slices_are_drawn_under_their_own_keys_streams_and_rates(
    rest: tuple[int, ...], streams: tuple[int, ...]
) -> None:
    keys, rates = (KEY, 2**64 - 1, 0), (0.1, 0.5, 1.0)
    thresholds = torch.tensor([random.threshold(p) for p in rates])
    stream = torch.tensor(streams).reshape(-1)
    keep = portable.keep_mask(signed(*keys), stream, thresholds, layout("test", rest), CPU)
    assert keep.shape == (3, *rest)
    for i, (key, p) in enumerate(zip(keys, rates, strict=True)):
        want = random.keep_mask(key, rest, p, stream=streams[i % len(streams)])
        np.testing.assert_array_equal(keep[i], want, strict=True)


def test_two_axes_of_slices() -> None:
    keys, streams = signed(KEY, 8, 9).reshape(3, 1), torch.tensor([[0, 4]])
    threshold = torch.tensor(random.threshold(0.3))
    keep = portable.keep_mask(keys, streams, threshold, layout("test", (5, 20)), CPU)
    assert keep.shape == (3, 2, 5, 20)
    for i, key in enumerate((KEY, 8, 9)):
        for j, stream in enumerate((0, 4)):
            np.testing.assert_array_equal(keep[i, j], random.keep_mask(key, (5, 20), 0.3, stream=stream))


def test_one_draw_under_several_rates() -> None:
    rates = torch.tensor([random.threshold(p) for p in (0.1, 0.10001, 0.9)])
    keep = portable.keep_mask(signed(KEY).reshape(1), torch.tensor([0]), rates, layout("test", (200, 100)), CPU)
    for i, p in enumerate((0.1, 0.10001, 0.9)):
        np.testing.assert_array_equal(keep[i], random.keep_mask(KEY, (200, 100), p), strict=True)


@pytest.mark.parametrize("several", [False, True])
def test_ties_are_decided_by_the_low_halves(several: bool) -> None:
    half = random.threshold(0.3) >> 16
    column = slow_masks.column_with_high_half(KEY, half, stop=2**21)
    place = layout("test", (1, 3), (), (0, column - 1), (2, 2**34))
    u = slow_masks.draw(KEY, 0, column)
    assert u >> 16 == half
    key = signed(4, KEY, 5) if several else signed(KEY)
    stream = torch.zeros_like(key)
    for t in (u - 1, u, u + 1):
        keep = portable.keep_mask(key, stream, torch.tensor(t), place, CPU)
        assert (keep[1, 0, 1] if several else keep[0, 1]).item() == (u >= t)


def test_ties_where_rates_share_a_draw() -> None:
    half = random.threshold(0.3) >> 16
    column = slow_masks.column_with_high_half(KEY, half, stop=2**21)
    u = slow_masks.draw(KEY, 0, column)
    place = layout("test", (1, 2), (), (0, column), (1, 2**34))
    thresholds = torch.tensor([u - 1, u, u + 1])
    keep = portable.keep_mask(signed(KEY).reshape(1), torch.tensor([0]), thresholds, place, CPU)
    assert keep[:, 0, 0].tolist() == [True, True, False]


def test_ties_where_slices_of_their_own_keys_share_draws_among_rates() -> None:
    half = random.threshold(0.3) >> 16
    column = slow_masks.column_with_high_half(KEY, half, stop=2**21)
    u = slow_masks.draw(KEY, 0, column)
    place = layout("test", (1, 2), (), (0, column), (1, 2**34))
    thresholds = torch.tensor([u - 1, u, u + 1]).expand(2, 3)
    keep = portable.keep_mask(signed(3, KEY), torch.tensor([0]), thresholds, place, CPU)
    assert keep.shape == (2, 3, 2)
    assert keep[1, :, 0].tolist() == [True, True, False]
    several = portable.keep_mask(signed(3, KEY).reshape(1, 2), torch.tensor([[0]]), thresholds.T, place, CPU)
    assert several.shape == (3, 2, 1, 2)
    assert several[:, 1, 0, 0].tolist() == [True, True, False]


@given(addresses(), st.integers(0, 2**64 - 1))
def test_floats_equal_numpy(address: dict[str, Any], key: int) -> None:
    place, stream = in_int64(layout("test", **address)), torch.tensor(3)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 4e-6)):
        fields = {"key": key, "stream": 3, "dtype": str(dtype).removeprefix("torch."), **address}
        uniform = portable.uniform(signed(key), stream, place, CPU, dtype)
        np.testing.assert_array_equal(uniform, random.uniform(**fields), strict=True)
        normal = portable.normal(signed(key), stream, place, CPU, dtype)
        assert normal.dtype == dtype
        np.testing.assert_allclose(normal, random.normal(**fields), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_are_single_precision_rounded(dtype: torch.dtype) -> None:
    address = (signed(KEY), torch.tensor(0), layout("test", (40, 50)), CPU)
    for draw in (portable.uniform, portable.normal):
        assert torch.equal(draw(*address, dtype), draw(*address, torch.float32).to(dtype))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_keys_fold_as_in_numpy(keys: list[int], b: int, c: int) -> None:
    folded = portable.fold(signed(*keys), b, c)
    assert folded.dtype == torch.int64
    assert [int(key) % 2**64 for key in folded] == [random.fold(key, b, c) for key in keys]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mask_is_that_of_logical_indices(dtype: torch.dtype) -> None:
    shape = (3, 4, 5, 6)
    keep = torch.from_numpy(random.keep_mask(KEY, shape, 0.4))
    for name, x in arrangements(torch.full(shape, 3.0).to(dtype)).items():
        address = (signed(KEY), torch.tensor(0), torch.tensor(random.threshold(0.4)), layout("test", shape))
        out = portable.dropout(x, *address, scaled=False)
        assert out.dtype == dtype, name
        wide = torch.complex128 if dtype.is_complex else torch.float64  # not every type can be compared
        assert torch.equal(out.to(wide), torch.where(keep, 3.0, 0.0).to(wide)), name
        assert torch.equal(portable.dropout(x, *address).to(wide) != 0, keep), name


def test_the_survivors_scale_is_that_of_the_realised_rate() -> None:
    thresholds = [random.threshold(p) for p in (0.0, 1e-10, 0.1, 1 / 3, 0.5, 1 - 2.0**-32)]
    scale = portable.survivor_scale(torch.tensor(thresholds))
    assert scale.dtype == torch.float64
    assert scale.tolist() == [2**32 / (2**32 - t) for t in thresholds]
    assert portable.survivor_scale(torch.tensor(2**32)).isfinite()
