"""Triton's kernels of normalisation give the numbers of the portable operations, in its interpreter and on a GPU."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.functional import dropout_add_layer_norm, dropout_add_rms_norm
from dropkit.kernels import norms

pytest.importorskip("triton")
from dropkit.kernels import triton_norm  # imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEY, STREAM, RATE = torch.tensor(-77), torch.tensor(3), torch.tensor(random.threshold(0.3))
# The interpreter cuts bfloat16 off where a GPU rounds, so that sums differ by one in the last place.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 4e-3, torch.bfloat16: 4e-2}
LENGTHS = [8, 24, 7, 37, 80]


@pytest.fixture(params=["whole rows", "long rows"])
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Go through every row at once, or through tiles of 32 columns as if it were too long for that."""
    if request.param == "long rows":
        monkeypatch.setattr(triton_norm, "_WIDEST", dict.fromkeys((2, 4, 8), (0, 0)))
        monkeypatch.setattr(triton_norm, "_TILE", 4)
    return request.param


def moved(arguments: tuple[Any, ...]) -> list[Any]:
    return [each.to(DEVICE) if isinstance(each, Tensor) else each for each in arguments]


def compare(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    address: tuple[Tensor, ...] = (KEY, STREAM, RATE),
    is_centred: bool = True,
    of_total: bool = False,
) -> None:
    """Compare both passes with the portable operations: numbers, types, and what is dropped."""
    options = x, residual, weight, bias, is_centred, 1e-5, x.dtype, *address
    wanted = norms.forward(*options)
    assert_alike(triton_norm.dropout_add_norm(*moved(options)), wanted)
    _, total, mean, scale = wanted
    grad, grad_total = torch.randn(x.shape).to(x.dtype), torch.randn(x.shape).to(total.dtype) if of_total else None
    needed = [weight is not None, bias is not None]
    given = grad, grad_total, total, weight, mean, scale, is_centred, needed, x.dtype, *address
    found, wanted = triton_norm.dropout_add_norm_backward(*moved(given)), norms.backward(*given)
    assert torch.equal(found[0].cpu() == 0, wanted[0] == 0)
    assert_alike(found, wanted)


def assert_alike(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        tolerance = 4 * max(TOLERANCE[each.dtype] for each in wanted)
        torch.testing.assert_close(one.cpu(), other, atol=tolerance, rtol=tolerance)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("is_centred", [True, False])
def test_both_passes(columns: int, is_centred: bool, row: str) -> None:
    x, residual = numbers(3, columns), numbers(3, columns) + 3
    compare(x, residual, numbers(columns), numbers(columns), is_centred=is_centred)
    compare(x, residual, None, None, is_centred=is_centred, of_total=True)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_types(dtype: torch.dtype, row: str) -> None:
    x, residual, weight = numbers(2, 64, dtype=dtype), numbers(2, 64, dtype=dtype), numbers(64, dtype=dtype)
    compare(x, residual, weight, weight, of_total=True)
    compare(x, residual, weight, None, is_centred=False)


def test_wider_residuals_and_weights(row: str) -> None:
    compare(numbers(2, 40, dtype=torch.float16), numbers(2, 40), numbers(40), numbers(40).half(), of_total=True)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "address",
    [
        (torch.arange(4) * 1_000_003 - 2, torch.tensor([0]), RATE),
        (KEY, STREAM, torch.tensor([random.threshold(p) for p in (0.0, 0.2, 0.7, 1.0)])),
        (torch.tensor(2**62), torch.tensor(2**29), torch.tensor(random.threshold(0.5))),
        (KEY, STREAM, torch.tensor(2**32)),
        (torch.arange(4).unsqueeze(1), torch.arange(2).unsqueeze(0), RATE),
    ],
    ids=["keys", "rates", "large numbers", "everything", "keys and streams"],
)
def test_addresses(address: tuple[Tensor, ...], row: str) -> None:
    compare(numbers(4, 2, 24), numbers(4, 2, 24), numbers(24), numbers(24), address)


def test_shapes_and_strides(row: str) -> None:
    for shape in ((16,), (1, 9), (2, 1, 3, 10)):
        compare(numbers(*shape), numbers(*shape), numbers(shape[-1]), None)
    compare(numbers(4, 6).t(), numbers(12, 4)[::2], numbers(8)[::2], numbers(1).expand(4))
    compare(numbers(0, 6), numbers(0, 6), numbers(6), None)  # which portable operations serve, and so what follows
    compare(numbers(6), numbers(6), None, None, (KEY, STREAM, RATE.expand(6).clone()))


def test_what_is_dropped_counts_for_nothing() -> None:
    x, residual = torch.full((2, 32), torch.nan), numbers(2, 32)
    given = x, residual, None, None, True, 1e-5, x.dtype, KEY, STREAM, torch.tensor(2**32)
    output, total, *_ = triton_norm.dropout_add_norm(*moved(given))
    assert torch.equal(total.cpu(), residual)
    torch.testing.assert_close(output.cpu(), torch.nn.functional.layer_norm(residual, (32,)))


def test_large_means_do_not_drown_the_variance(row: str) -> None:
    x, residual = torch.zeros(1, 80), 1e4 + numbers(1, 80)
    given = x, residual, None, None, True, 1e-5, x.dtype, KEY, STREAM, RATE
    output = triton_norm.dropout_add_norm(*moved(given))[0].cpu()
    torch.testing.assert_close(
        output.double(), torch.nn.functional.layer_norm(residual.double(), (80,)), atol=2e-3, rtol=0
    )


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("prenorm", [False, True])
def test_gradients_by_differences(prenorm: bool, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dropout_add_norm", "dropout_add_norm_backward"):
        monkeypatch.setattr(norms, name, getattr(triton_norm, name))
    tensors = [torch.randn(shape, dtype=torch.float64, device=DEVICE) for shape in ((2, 5), (2, 5), (5,), (5,))]
    how: dict[str, Any] = {"p": 0.4, "key": torch.tensor(3), "prenorm": prenorm}
    for function, count in ((dropout_add_layer_norm, 4), (dropout_add_rms_norm, 3)):
        given = [tensor.clone().requires_grad_() for tensor in tensors[:count]]
        assert torch.autograd.gradcheck(partial(function, eps=1e-5, **how), given)
