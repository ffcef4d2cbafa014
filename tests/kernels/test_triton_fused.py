"""Triton's kernels of dropout and its neighbours give the numbers of other kernels, in its interpreter and on a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.kernels import fused
from dropkit.kernels.native.operations import ACTIVATIONS

pytest.importorskip("triton")
from dropkit.kernels import triton_fused  # imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEY, STREAM, RATE = torch.tensor(-77), torch.tensor(3), torch.tensor(random.threshold(0.3))
# In units of the last place; the interpreter cuts bfloat16 off where a GPU rounds.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = [(5, 16), (3, 2, 10), (7,), ()]


def on_device(*arguments: Any) -> list[Any]:
    return [each.to(DEVICE) if isinstance(each, Tensor) else each for each in arguments]


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Compare with exact numbers; what is dropped is +0."""
    assert found.dtype == dtype
    found = found.cpu()
    torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert (found[wanted == 0] == 0).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_residual(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    found = triton_fused.dropout_add(*on_device(x, residual, KEY, STREAM, RATE))
    assert_near(found, fused.dropout_add(x.double(), residual.double(), KEY, STREAM, RATE), dtype)
    if dtype == torch.float32:
        assert torch.equal(found.cpu(), fused.dropout_add(x, residual, KEY, STREAM, RATE))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 16), (3, 2, 10)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_gradient(name: str, shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype) -> None:
    x, upper = (3 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[-1]).to(dtype) if has_bias else None
    exact_bias = None if bias is None else bias.double()
    address = KEY, STREAM, RATE
    found = triton_fused.activation_dropout(*on_device(x, bias, name, *address))
    wanted = fused.activation_dropout(x.double(), exact_bias, name, *address)
    assert_near(found, wanted, dtype)
    if name == "relu":  # for which the result is kept
        x, bias, exact_bias = found.cpu(), None, None
    found = triton_fused.activation_dropout_backward(*on_device(upper, x, bias, name, *address))
    exact = upper.double(), x.double(), exact_bias
    assert_near(found, fused.activation_dropout_backward(*exact, name, *address), dtype)


@pytest.mark.parametrize(
    "address",
    [
        (torch.arange(4) * 1_000_003 - 2, torch.tensor([0]), RATE),
        (KEY, STREAM, torch.tensor([random.threshold(p) for p in (0.0, 0.2, 0.7, 1.0)])),
        (KEY, STREAM, torch.tensor(2**32)),
        (KEY, STREAM, RATE.expand(4, 3).clone()),
        (KEY, STREAM, RATE.expand(4, 3, 8).clone()),
    ],
    ids=["keys", "rates", "everything", "rates of rows", "rates of elements"],
)
def test_addresses(address: tuple[Tensor, ...]) -> None:
    x, other, bias = torch.randn(4, 3, 8), torch.randn(4, 3, 8), torch.randn(8)
    for name, given in (
        ("dropout_add", (x, other)),
        ("activation_dropout", (x, bias, "silu")),
        ("activation_dropout_backward", (other, x, bias, "gelu")),
    ):
        found = getattr(triton_fused, name)(*on_device(*given, *address)).cpu()
        torch.testing.assert_close(found, getattr(fused, name)(*given, *address), atol=4e-6, rtol=4e-6)


def test_other_layouts_of_memory_are_served() -> None:
    x, other, bias = torch.randn(4, 3, 8).transpose(0, 1), torch.randn(3, 4, 8), torch.randn(16)[::2]
    for name, given in (
        ("dropout_add", (x, other)),
        ("dropout_add", (other, x)),
        ("activation_dropout", (other, bias, "gelu_tanh")),
        ("activation_dropout", (x, bias, "gelu_tanh")),
        ("activation_dropout_backward", (x, other, bias, "silu")),
        ("activation_dropout_backward", (x[:, :0], other[:, :0], bias, "silu")),
    ):
        found = getattr(triton_fused, name)(*on_device(*given, KEY, STREAM, RATE)).cpu()
        torch.testing.assert_close(found, getattr(fused, name)(*given, KEY, STREAM, RATE), atol=4e-6, rtol=4e-6)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # of the interpreter's NumPy
def test_extreme_inputs() -> None:
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 100.0, -100.0, 1e-40, -1e30, 1e30])
    x = values.repeat(4)
    keep = torch.from_numpy(random.keep_mask(5, (len(x),), 0.5))
    address = torch.tensor(5), torch.tensor(0), torch.tensor(2**31)
    for name in ACTIVATIONS:
        found = triton_fused.activation_dropout(*on_device(x, None, name, *address)).cpu()
        assert (found[~keep] == 0).all()
        assert not found[~keep].signbit().any()
        wanted, is_plain = 2 * fused.activate(name, x.double(), None).float(), keep & x.isfinite()
        torch.testing.assert_close(found[is_plain], wanted[is_plain], atol=1e-6, rtol=1e-5)
        assert found[keep & x.isnan()].isnan().all()
        assert (found[keep & (x == torch.inf)] == torch.inf).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_operators_on_a_gpu(dtype: torch.dtype) -> None:
    x, other, bias = (torch.randn(shape).to(dtype) for shape in ((100, 3, 1000), (100, 3, 1000), (1000,)))
    for operator, given in (
        (fused.dropout_add, (x, other)),
        *((fused.activation_dropout, (x, bias, name)) for name in ACTIVATIONS),
        *((fused.activation_dropout_backward, (other, x, bias, name)) for name in ACTIVATIONS if name != "relu"),
    ):
        exact = [each.double() if isinstance(each, Tensor) else each for each in given]
        found = operator(*on_device(*given, KEY, STREAM, RATE))
        assert_near(found, operator(*exact, KEY, STREAM, RATE), dtype)
