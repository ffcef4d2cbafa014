"""Compiled dropout that moves units, and Gaussian noise: as by portable operations, on every instruction set."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dropkit import random
from dropkit.kernels import affine, gaussian, portable
from dropkit.kernels.native import affine as native
from dropkit.kernels.native import fields
from dropkit.kernels.native import gaussian as native_gaussian
from dropkit.random.layout import Layout, layout
from tests.helpers.native import CPU, RATES, bits, signed, tensors

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

KEY = random.call_key(17, "affine", step=4)
NUMBERS = [torch.tensor(value, dtype=torch.float64) for value in (0.91, -0.37, 1.6)]


def is_dense(x: Tensor) -> bool:
    return bool(x.numel()) and torch.empty_like(x).stride() == x.stride()


def assert_as_portable(x: Tensor, *address: Any) -> None:
    found, want = native.affine_dropout(x, *address), portable.affine_dropout(x, *address)
    assert torch.equal(bits(found), bits(want))
    if is_dense(x):
        assert found.stride() == x.stride()


def assert_normal_times(x: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, place: Layout) -> None:
    """The kernel's result is that of the kernels' normals and PyTorch's product, bit for bit."""
    normals = fields.normal(key, stream, place, CPU, portable.computing_type(x))
    want = portable.multiply(x, portable.around_one(normals, deviation))
    found = native_gaussian.gaussian_dropout(x, key, stream, deviation, place)
    assert torch.equal(bits(found), bits(want))
    if is_dense(x):
        assert found.stride() == x.stride()


@given(tensors(), st.data())
def test_any_strides_and_any_sharing(x: Tensor, data: st.DataObject) -> None:
    shared = data.draw(st.lists(st.integers(0, x.dim() - 1), unique=True))
    if data.draw(st.booleans()):
        rate = torch.tensor(random.threshold(data.draw(st.sampled_from(RATES))))
        address, place = (signed(KEY), torch.tensor(3)), layout("test", x.shape, shared)
        numbers = NUMBERS
    else:
        shared = [axis for axis in shared if axis]
        place = layout("test", x.shape, shared, slices=1)
        rate = torch.randint(0, 2**32 + 1, (len(x),) if data.draw(st.booleans()) else ())
        address = torch.randint(-(2**63), 2**63 - 1, (len(x),)), torch.zeros(1, dtype=torch.int64)
        numbers = [torch.randn(rate.shape, dtype=torch.float64) for _ in NUMBERS]
    assert_as_portable(x, *address, rate, *numbers, place)
    assert_normal_times(x, *address, numbers[0], place)


@pytest.mark.parametrize("width", [1, 3, 8, 12, 28, 31, 32, 33, 64, 65, 100, 127, 128, 129, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_width(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2000 // width, width).to(dtype)
    for offset, whole in ((None, None), ((1, 5, 3), (9, 3000, 5000))):
        place = layout("test", x.shape, (), offset, whole)
        assert_as_portable(x, signed(KEY), torch.tensor(0), torch.tensor(random.threshold(0.3)), *NUMBERS, place)
        assert_normal_times(x, signed(KEY), torch.tensor(0), NUMBERS[2], place)


def test_the_operators_run_on_the_compiled_kernels() -> None:
    x = torch.randn(40, 50, dtype=torch.float64)
    place = layout("test", x.shape)
    address = signed(KEY), torch.tensor(0)
    moved = affine.affine_dropout(x, *address, torch.tensor(2**31), *NUMBERS, *place)
    assert torch.equal(moved, native.affine_dropout(x, *address, torch.tensor(2**31), *NUMBERS, place))
    noisy = gaussian.gaussian_dropout(x, *address, NUMBERS[0], *place)
    assert torch.equal(noisy, native_gaussian.gaussian_dropout(x, *address, NUMBERS[0], place))
    by_portable = portable.gaussian_dropout(x, *address, NUMBERS[0], place)
    assert not torch.equal(noisy, by_portable)
    torch.testing.assert_close(noisy, by_portable, rtol=0, atol=1e-12)


def test_what_the_kernels_do_not_take_is_left_to_portable_operations() -> None:
    rates = torch.randint(0, 2**32, (3, 5))
    several = [torch.randn(3, 5, dtype=torch.float64) for _ in NUMBERS]
    x, place, address = torch.randn(3, 5), layout("test", (3, 5)), (signed(KEY), torch.tensor(0))
    assert_as_portable(x, *address, rates, *several, place)
    assert_normal_times(x, *address, several[0], place)
    gaps = torch.randn(3, 10)[:, ::2]
    assert_as_portable(gaps, *address, torch.tensor(2**31), *NUMBERS, place)


@pytest.mark.parametrize("shape", [(100_003,), (70_001, 3), (5, 7, 1000)])
def test_the_number_of_threads_changes_nothing(shape: tuple[int, ...]) -> None:
    x, before, found = torch.randn(shape), torch.get_num_threads(), []
    place, address = layout("test", shape), (signed(KEY), torch.tensor(0))
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(native_gaussian.gaussian_dropout(x, *address, NUMBERS[0], place))
            found.append(native.affine_dropout(x, *address, torch.tensor(2**31 + 7), *NUMBERS, place))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[i], found[i % 2]) for i in range(2, 6))
