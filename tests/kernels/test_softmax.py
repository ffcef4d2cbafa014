"""Every instruction set computes the same softmax of rows, near enough to the exact one, and dropout of it."""

import math

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.kernels.native import operations
from tests.helpers.native import bits, using

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

SHAPES = [(1, 1), (3, 5), (2, 8), (33, 16), (7, 17), (4, 3, 128), (2, 2050), (1, 40_000), (300, 300)]
TYPES = [torch.float32, torch.float64]
HALF = random.threshold(0.5)


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain C++ serve too."""
    monkeypatch.setattr(operations, "activates", lambda: True)


def softmax(x: Tensor) -> Tensor:
    output = torch.full_like(x, math.nan)
    operations.softmax(x, output)
    return output


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_near_the_exact_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = 10 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    found = softmax(x)
    # By a rounding of each difference from the largest, of the exponential, which is within 2 units, of the sum, and of
    # the product; a difference is up to some 80, and a rounding of it that often as large in its exponential.
    unit = torch.finfo(dtype).eps
    exact = torch.softmax(x.double(), -1)
    assert (found.double() - exact).abs().le(60 * unit * exact + 1e-37).all()
    assert (found.sum(-1) - 1).abs().max() < 40 * unit
    operations.softmax(x, x)
    assert torch.equal(x, found)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("columns", [5, 16, 130])
def test_what_is_no_finite_number(columns: int, dtype: torch.dtype) -> None:
    x = torch.randn(8, columns, dtype=dtype)
    x[0, 1], x[1, -1], x[2, 3] = math.nan, math.inf, -math.inf
    x[3] = -math.inf
    x[4, :-1] = -math.inf  # all weight is on one
    x[5] = torch.finfo(dtype).max
    x[6] = torch.linspace(0, -2000, columns)
    bytes_of = x[7].view(torch.int32 if dtype == torch.float32 else torch.int64)
    bytes_of[0] = 0x7F800001 if dtype == torch.float32 else 0x7FF0000000000001  # NaN, whose last bit alone is set
    found, expected = softmax(x), torch.softmax(x, -1)
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[2, 3] == 0
    assert found[4, -1] == 1


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) > 1], ids=str)
def test_dropout_is_that_of_the_softmax(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    place = [(2, 5, 0), (1, 2**40, 3)], rows, columns, rows + 1, 2**64 - 5
    expected = softmax(x)
    operations.dropout_of_(expected, *place, HALF)
    found = torch.empty_like(x)
    operations.softmax_dropout(x, found, *place, HALF)
    assert torch.equal(found, expected)
    assert (found == 0).any() or x.numel() < 10
    operations.softmax_dropout(x, x, *place, 2**32)
    assert not x.any()


def test_the_same_from_every_instruction_set(instruction_set: str) -> None:
    for dtype in TYPES:
        for shape in SHAPES:
            x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
            with using("scalar"):
                expected = softmax(x)
            with using(instruction_set):
                assert torch.equal(bits(softmax(x)), bits(expected)), (dtype, shape)


def test_where_they_are_slower_than_pytorch_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, found = torch.randn(4, 30), torch.empty(4, 30)
    with using("scalar"):
        operations.softmax_dropout(x, found, [(1, 0, 0)], 4, 30, 4, 7, HALF)
    expected = torch.softmax(x, -1)
    operations.dropout_of_(expected, [(1, 0, 0)], 4, 30, 4, 7, HALF)
    assert torch.equal(found, expected)
