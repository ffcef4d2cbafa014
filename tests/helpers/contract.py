"""The contract of inverted Bernoulli dropout, as checks of any operation that claims to keep it.

A check takes an operation called as ``operation(input, p, training, key=..., mask=..., return_mask=...)`` and raises
`AssertionError` where the operation breaks its promise, so that it can also be shown a broken one.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dropkit import random

Operation = Callable[..., Any]

KEY = 0xD20F_0000_1234_5678
RATES = (0.1, 0.25, 1 / 3, 0.5, 0.9, 1 - 2.0**-32)
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
CHECKS: dict[str, Callable[[Operation], None]] = {}


def contract(check: Callable[[Operation], None]) -> Callable[[Operation], None]:
    CHECKS[check.__name__] = check
    return check


def realised(p: float) -> float:
    return random.threshold(p) / 2**32


def scale(p: float) -> float:
    return 2**32 / (2**32 - random.threshold(p))


def all_masks(units: int) -> Tensor:
    """Every mask of so many units, one a row."""
    return torch.tensor(list(itertools.product((False, True), repeat=units)))


def chances(masks: Tensor, p: float) -> Tensor:
    """The probability of every mask, in float64."""
    r = realised(p)
    return torch.tensor([r, 1 - r], dtype=torch.float64)[masks.long()].prod(-1)


def wide(x: Tensor) -> Tensor:
    """The same numbers in a type in which everything can be computed and compared."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Check type, shape and every bit but those of NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(wide(actual.detach()).resolve_conj(), wide(expected.detach()).resolve_conj())


def assert_positive_zero(x: Tensor) -> None:
    parts = torch.view_as_real(wide(x.detach())) if x.is_complex() else wide(x.detach())
    assert torch.equal(parts, torch.zeros_like(parts))
    assert not parts.signbit().any()


@contract
def mean_and_variance_over_all_masks(operation: Operation) -> None:
    x = torch.tensor([0.36, -0.13, 0.42, 7.0], dtype=torch.float64)
    masks = all_masks(len(x))
    for p in RATES:
        out = operation(x.expand(masks.shape), p, mask=masks)
        mean = chances(masks, p) @ out
        torch.testing.assert_close(mean, x, rtol=1e-12, atol=0)
        variance = chances(masks, p) @ (out - x).square()
        torch.testing.assert_close(variance, x.square() * realised(p) / (1 - realised(p)), rtol=1e-12, atol=0)


@contract
def the_mask_is_the_definition(operation: Operation) -> None:
    for shape in ((), (13,), (3, 5), (2, 3, 4, 5)):
        for p in (0.1, 0.5, 1 / 3):
            want = torch.from_numpy(random.keep_mask(KEY, shape, p))
            out, keep = operation(torch.ones(shape), p, key=KEY, return_mask=True)
            assert torch.equal(keep, want)
            assert torch.equal(out != 0, want)


@contract
def true_is_kept(operation: Operation) -> None:
    mask = torch.tensor([True, False, True, True])
    out, keep = operation(torch.ones(4), 0.25, mask=mask, return_mask=True)
    assert torch.equal(keep, mask)
    assert torch.equal(out != 0, mask)


@contract
def the_gradient_is_gated_by_the_same_mask(operation: Operation) -> None:
    upstream = torch.linspace(-3, 3, 200, dtype=torch.float64).reshape(10, 20)
    for options in ({"key": KEY}, {}, {"mask": torch.from_numpy(random.keep_mask(3, (10, 20), 0.4))}):
        x = torch.ones(10, 20, dtype=torch.float64, requires_grad=True)
        out = operation(x, 0.4, **options)
        (gradient,) = torch.autograd.grad(out, x, upstream)
        assert_same(gradient, torch.where(out != 0, upstream * scale(0.4), 0.0))


@contract
def derivatives_of_first_and_second_order(operation: Operation) -> None:
    for dtype in (torch.float64, torch.complex128):
        x = torch.randn(2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for options in ({"key": KEY}, {"mask": torch.eye(2, 3) == 0}):
            assert torch.autograd.gradcheck(lambda v, options=options: operation(v, 0.4, **options), x, fast_mode=True)
            assert torch.autograd.gradgradcheck(
                lambda v, options=options: operation(v, 0.4, **options), x, fast_mode=True
            )


@contract
def what_is_dropped_is_positive_zero(operation: Operation) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, -1.0, -0.0, 1e300, -1e300, 5e-324], dtype=torch.float64)
    for dtype in (*REAL, *COMPLEX):
        x = values.to(dtype).requires_grad_()
        if dtype.is_complex:
            x = torch.complex(values, -values).to(dtype).requires_grad_()
        out = operation(x, 0.5, mask=torch.zeros(len(values), dtype=torch.bool))
        assert_positive_zero(out)
        (gradient,) = torch.autograd.grad(out, x, x.detach())
        assert_positive_zero(gradient)
        drawn, keep = operation(x, 0.9, key=KEY, return_mask=True)
        assert not keep.all()
        assert_positive_zero(drawn[~keep])
        (gradient,) = torch.autograd.grad(drawn, x, x.detach())
        assert_positive_zero(gradient[~keep])


@contract
def a_rate_of_one_leaves_zeros_without_a_gradient(operation: Operation) -> None:
    for dtype in (*REAL, *COMPLEX):
        for options in ({"key": KEY}, {}, {"mask": torch.ones(3, dtype=torch.bool)}):
            x = torch.tensor([1.0, -math.inf, math.nan]).to(dtype).requires_grad_()
            out, keep = operation(x, 1.0, return_mask=True, **options)
            assert_positive_zero(out)
            assert not keep.any()
            (gradient,) = torch.autograd.grad(out, x, torch.full_like(x, 3.0))
            assert gradient.dtype == dtype
            assert_positive_zero(gradient)


@contract
def no_dropping_is_the_input_itself(operation: Operation) -> None:
    state = torch.get_rng_state()
    for x in (torch.randn(3, 4), torch.tensor(math.nan), torch.randn(2, 0), torch.randn(3, requires_grad=True)):
        state = torch.get_rng_state()
        for p, training in ((0.0, True), (0, True), (-0.0, True), (0.5, False), (1.0, False), (0.0, False)):
            assert operation(x, p, training) is x
            out, keep = operation(x, p, training, return_mask=True)
            assert out is x
            assert keep.dtype == torch.bool
            assert keep.shape == x.shape
            assert keep.all()
        assert operation(x, 0.5, False, key=KEY) is x
        assert operation(x, 0.5, False, mask=torch.zeros(x.shape, dtype=torch.bool)) is x
        assert torch.equal(torch.get_rng_state(), state)


@contract
def the_scale_is_rounded_once(operation: Operation) -> None:
    values = torch.linspace(0.5, 2.5, 999, dtype=torch.float64)
    for p in (0.1, 0.2, 1 / 3, 0.7, 0.999, 1e-10, 2.0**-32):
        for dtype in REAL:
            computing = torch.float64 if dtype == torch.float64 else torch.float32
            x = values.to(dtype).requires_grad_()
            want = (x.detach().to(computing) * torch.tensor(scale(p), dtype=computing)).to(dtype)
            out = operation(x, p, mask=torch.ones(len(x), dtype=torch.bool))
            assert_same(out, want)
            (gradient,) = torch.autograd.grad(out, x, x.detach())
            assert_same(gradient, want)
            exact = values.to(dtype).to(torch.float64) * scale(p)
            half_unit = torch.finfo(dtype).eps / 2 * torch.exp2(exact.log2().floor())
            bound = (1 + 2.0**-10 if dtype.itemsize == 2 else 3) * half_unit  # the factor is rounded too
            assert ((out.detach().to(torch.float64) - exact).abs() <= bound).all()


@contract
def nothing_but_the_address_is_saved(operation: Operation) -> None:
    saved = []
    x = torch.ones(100, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        operation(x, 0.5, key=KEY).sum()
        operation(x, 0.5).sum()
    assert sum(saved) <= 2 * 3 * 8, "a key, a stream and a threshold of eight bytes a call"


@contract
def strides_and_memory_format_change_nothing(operation: Operation) -> None:
    values = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    want = operation(values, 0.4, key=KEY)
    for x in (
        values.contiguous(memory_format=torch.channels_last),
        values.transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([values, values], -1)[..., 1],
        torch.cat([values, values], 3)[..., :6],
    ):
        out = operation(x, 0.4, key=KEY)
        assert_same(out, want)
        if math.prod(x.shape) == x.untyped_storage().nbytes() // x.element_size():
            assert out.stride() == x.stride()
    assert_same(operation(values[:1].expand(3, 4, 5, 6), 0.4, key=KEY), operation(values[[0, 0, 0]], 0.4, key=KEY))


@contract
def every_type_has_the_same_mask(operation: Operation) -> None:
    want = torch.from_numpy(random.keep_mask(KEY, (7, 9), 0.3))
    for dtype in (*REAL, *COMPLEX):
        out = operation(torch.full((7, 9), 2.0).to(dtype), 0.3, key=KEY)
        assert out.dtype == dtype
        assert torch.equal(wide(out) != 0, want)


@contract
def a_seed_reproduces_and_calls_differ(operation: Operation) -> None:
    x = torch.ones(64)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([operation(x, 0.5) for _ in range(3)])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
    assert len({tuple(out.tolist()) for out in runs[0]}) == 3


@contract
def the_input_is_left_alone(operation: Operation) -> None:
    for options in ({"key": KEY}, {}, {"mask": torch.eye(4) == 0}):
        x = torch.randn(4, 4)
        before = x.clone()
        out = operation(x, 0.5, **options)
        assert out.data_ptr() != x.data_ptr()
        assert torch.equal(x, before)
