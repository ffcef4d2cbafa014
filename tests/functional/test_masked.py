"""A mask that is there already: the compiled kernels do what PyTorch's operations do, to the bit."""

import math

import pytest
import torch
from torch import Tensor

from dropkit.functional.eager import is_plain
from dropkit.functional.masked import apply_mask
from dropkit.kernels.portable import select
from tests.helpers.contract import REAL, assert_positive_zero, assert_same

SHAPES = [((7,), (7,)), ((3, 5, 7), (3, 5, 7)), ((3, 5, 7), (3, 1, 7)), ((3, 5, 7), (1, 5, 1)), ((3, 5, 7), (1, 1, 1)),
          ((64, 130), (64, 130)), ((64, 130), (64, 1)), ((2, 3, 4, 70), (2, 1, 4, 70)), ((), ())]  # fmt: skip
SCALE = torch.tensor(1.0 / 0.7, dtype=torch.float64)


def values(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def mask(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.3


@pytest.mark.native
@pytest.mark.parametrize(("shape", "of_mask"), SHAPES)
@pytest.mark.parametrize("dtype", REAL)
def test_compiled_kernels_do_what_operations_do(
    shape: tuple[int, ...], of_mask: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, keep = values(shape, dtype), mask(of_mask)
    bad = torch.where(keep, x, math.nan).requires_grad_()
    assert is_plain(bad)
    out, want = apply_mask(bad, keep, SCALE), select(x, keep, SCALE)
    assert_same(out, want)
    assert_same(apply_mask(bad.detach(), keep, SCALE), want)
    dropped = ~keep.expand(shape)
    assert_positive_zero(out[dropped])
    upstream = torch.where(keep, x.flip(0) if shape else x, math.inf)
    (gradient,) = torch.autograd.grad(out, bad, upstream)
    assert_same(gradient, select(upstream, keep, SCALE))
    assert_positive_zero(gradient[dropped])


@pytest.mark.native
def test_the_sign_of_zero_stays_with_what_is_kept() -> None:
    out = apply_mask(torch.tensor([-0.0, 0.0, -0.0]), torch.tensor([True, True, False]), SCALE)
    assert out.signbit().tolist() == [True, False, False]


def test_the_gradient_can_be_differentiated_again() -> None:
    x, keep = values((3, 5)).requires_grad_(), mask((3, 5))
    assert torch.autograd.gradgradcheck(lambda x: apply_mask(x * x, keep, SCALE), x)


def test_what_is_not_plain_is_left_to_operations() -> None:
    x, keep = values((2, 3, 4, 5)), mask((2, 1, 4, 5))
    want = select(x, keep, SCALE)
    last = x.to(memory_format=torch.channels_last)
    assert_same(apply_mask(last, keep, SCALE), want)
    assert_same(apply_mask(x.cfloat(), keep, SCALE), select(x.cfloat(), keep, SCALE))
    assert_same(torch.func.vmap(lambda x: apply_mask(x, keep, SCALE))(x[None])[0], want)
    scales = torch.tensor([2.0, 3.0], dtype=torch.float64)
    assert_same(apply_mask(x, keep, scales), torch.where(keep, x * scales.view(2, 1, 1, 1), 0.0))
    assert apply_mask(x[:0], keep[:0], SCALE).shape == (0, 3, 4, 5)
