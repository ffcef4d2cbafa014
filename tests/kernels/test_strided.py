"""Tensors in any order in memory, and masks whose places elements share, as by portable operations, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dropkit import random
from dropkit.kernels import portable
from dropkit.kernels.native import operations
from dropkit.kernels.native.strided import bit_steps, memory_axes
from dropkit.random.layout import layout
from tests.helpers.native import RATES, bits, signed, tensors

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

KEY = random.call_key(17, "strided", step=4)


def strides_that_count(x: Tensor) -> list[tuple[int, int]]:
    return [(length, stride) for length, stride in zip(x.shape, x.stride(), strict=True) if length > 1]


def assert_as_portable(x: Tensor, *address: Any) -> None:
    found, want = operations.dropout(x, *address), portable.dropout(x, *address)
    assert torch.equal(bits(found), bits(want))
    assert strides_that_count(found) == strides_that_count(want) or not x.numel()


@given(tensors(), st.data())
def test_any_strides_and_any_sharing(x: Tensor, data: st.DataObject) -> None:
    shared = data.draw(st.lists(st.integers(0, x.dim() - 1), unique=True))
    if data.draw(st.booleans()):
        rate = torch.tensor(random.threshold(data.draw(st.sampled_from(RATES))))
        address = (signed(KEY), torch.tensor(3), rate, layout("test", x.shape, shared))
    else:
        shared = [axis for axis in shared if axis]
        place = layout("test", x.shape, shared, slices=1)
        rates = torch.randint(0, 2**32 + 1, (len(x),) if data.draw(st.booleans()) else ())
        address = (torch.randint(-(2**63), 2**63 - 1, (len(x),)), torch.zeros(1, dtype=torch.int64), rates, place)
    assert_as_portable(x, *address, data.draw(st.booleans()))


@pytest.mark.parametrize("shared", [(), (1,), (2, 3), (0, 2, 3), (0, 1, 2, 3), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3, 64, 1030])
def test_images_whose_channels_come_last(channels: int, shared: tuple[int, ...]) -> None:
    x = torch.randn(3, channels, 9, 70).to(memory_format=torch.channels_last)
    address = (signed(KEY), torch.tensor(0), torch.tensor(random.threshold(0.3)))
    assert_as_portable(x, *address, layout("test", x.shape, shared), True)


def test_axes_are_joined_where_bits_and_elements_go_on() -> None:
    def found(x: Tensor, *shared: int) -> tuple[list[int], list[int]] | None:
        axes = memory_axes(
            x.shape, x.stride(), bit_steps([1 if axis in shared else n for axis, n in enumerate(x.shape)])
        )
        return axes and (list(axes.lengths), list(axes.bit_steps))

    images = torch.empty(2, 3, 5, 7)
    assert found(images) == ([210], [1])
    assert found(images, 2, 3) == ([6, 35], [1, 0])
    assert found(images, 0) == ([2, 105], [0, 1])
    assert found(images, 0, 1, 2, 3) == ([210], [0])
    assert found(images.to(memory_format=torch.channels_last)) == ([2, 35, 3], [105, 1, 35])
    assert found(torch.empty(4, 6).t()) == ([4, 6], [1, 4])
    assert found(torch.empty(())) == found(torch.empty(1, 1)) == ([1], [0])
    assert found(images[..., ::2]) is None
    assert found(torch.empty(1).expand(3)) is None
