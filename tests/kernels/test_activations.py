"""Every instruction set computes the same activations, near enough to the exact ones, and finite where these are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.special import log_ndtr

from dropkit import random
from dropkit.functional import activation_dropout
from dropkit.kernels.native import operations
from tests.helpers.native import bits, using

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("instruction_set")]

SHAPES = [(1,), (7,), (64,), (3, 7), (5, 100), (4, 1000), (9, 2050), (2, 3, 64), (70_001,)]
HALF = random.threshold(0.5)
ROOT = (2 / torch.pi) ** 0.5


def relu(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.clamp(min=0), (x > 0).double()


def gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    below, density = log_ndtr(x).exp(), (-x * x / 2).exp() / (2 * torch.pi) ** 0.5
    return x * below, below + x * density


def gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    u, slope = 2 * ROOT * (x + 0.044715 * x**3), 2 * ROOT * (1 + 3 * 0.044715 * x * x)
    return x * u.sigmoid(), u.sigmoid() + x * slope * u.sigmoid() * (-u).sigmoid()


def silu(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * x.sigmoid(), x.sigmoid() + x * x.sigmoid() * (-x).sigmoid()


EXACT: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu,
}  # fmt: skip


def computed(x: Tensor, name: str, threshold: int = 0) -> tuple[Tensor, Tensor]:
    """Return an activation and its derivative, with nothing dropped, or with all under another threshold."""
    place = operations.ACTIVATIONS.index(name)
    value = operations.activate_plain(x, None, place, 7, threshold)
    kept = value if name == "relu" else x  # what the gradient is computed from
    return value, operations.activate_gradient_plain(torch.ones_like(x), kept, None, place, 7, threshold)


def all_of(x: Tensor, grad: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Return what each operation makes of some numbers."""
    found = [operations.add_plain(x, grad, 7, HALF)]
    for place in range(len(operations.ACTIVATIONS)):
        found.append(operations.activate_plain(x, bias, place, 7, HALF))
        found.append(operations.activate_gradient_plain(grad, x, bias, place, 7, HALF))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", operations.TYPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_bits_are_those_of_the_scalar_path(shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool) -> None:
    x, grad = (5 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[-1]).to(dtype) if has_bias else None
    found = all_of(x, grad, bias)
    with using("scalar"):
        wanted = all_of(x, grad, bias)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_they_are_near_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    """A value keeps its relative precision in the tail, where one plus the error function would leave none."""
    relative, absolute = (2e-5, 4e-7) if dtype == torch.float32 else (2e-13, 3e-15)
    x = torch.cat([torch.linspace(-8, 12, 100_001), torch.randn(10_000) * 1e-4]).to(dtype)
    for found, wanted, is_value in zip(computed(x, name), EXACT[name](x.double()), (True, False), strict=True):
        error = (found.double() - wanted).abs()
        assert (error <= absolute * x.abs().clamp(min=1)).all(), error.max()
        if is_value:
            assert (error <= relative * wanted.abs()).all(), (error / wanted.abs()).nan_to_num(0.0).max()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_all_numbers_of_the_half_types_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = x[x.isfinite()]
    wide = x.double().clamp(-50, 50)  # beyond, the exact functions overflow where these do not
    value, derivative = EXACT[name](wide)
    value = torch.where(x.double() > 50, x.double(), value)
    for found, wanted in zip(computed(x, name), (value, derivative), strict=True):
        half_a_unit = 0.5 * torch.finfo(dtype).eps * wanted.abs()
        assert ((found.double() - wanted).abs() <= 1.01 * half_a_unit + 1e-7).all()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", operations.TYPES, ids=str)
def test_extreme_numbers(name: str, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    far = torch.tensor([1e4, info.max], dtype=dtype)
    value, derivative = computed(far, name)
    assert torch.equal(value, far)
    assert torch.equal(derivative, torch.ones_like(far))
    value, derivative = computed(-far, name)
    assert (value.double().abs() < 1e-30).all()
    assert (derivative.double().abs() < 1e-30).all()
    near = torch.tensor([info.smallest_normal, -info.smallest_normal, info.tiny / 8, 0.0, -0.0], dtype=dtype)
    value, derivative = computed(near, name)
    assert (value.abs() <= near.abs()).all()
    if name != "relu":
        assert torch.equal(derivative, torch.full_like(near, 0.5))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", operations.TYPES, ids=str)
def test_infinity_and_nan(name: str, dtype: torch.dtype) -> None:
    """As PyTorch's formulas have it, 0 times infinity is NaN; where an element is dropped, nothing shows of it."""
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=dtype)
    selects = name == "relu"
    wanted = [torch.inf, 0.0, torch.nan] if selects else [torch.inf, torch.nan, torch.nan]
    wanted_derivative = [1.0, 0.0, 1.0] if selects else [torch.nan] * 3
    for found, numbers in zip(computed(ends, name), (wanted, wanted_derivative), strict=True):
        torch.testing.assert_close(found, torch.tensor(numbers, dtype=dtype), rtol=0, atol=0, equal_nan=True)
    assert not any(bits(found).any() for found in computed(ends, name, 2**32))


def test_where_they_are_slower_than_pytorch_it_serves() -> None:
    x = torch.randn(3, 100)
    with using("scalar"):
        assert not operations.activates()
        found = activation_dropout(x, "gelu", 0.5, key=7)
    assert torch.equal(found, operations.dropout_plain(torch.nn.functional.gelu(x), 7, HALF))
