"""Dropout with what stands around it: the same numbers as the operations one after another."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import activation_dropout, dropout, dropout_add
from dropkit.random import keep_mask

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}
# In units of the result's last place; the float32 activations are within a few units of PyTorch's own.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(7,), (3, 7), (5, 100), (2, 3, 64), (4, 1000)]


def assert_near(found: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), wanted.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_residual_is_added_to_what_dropout_gives(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    wanted = residual.double() + dropout(x.double(), 0.3, key=5)
    assert_near(dropout_add(x, residual, 0.3, key=5), wanted)


def test_float32_has_the_bits_of_the_two_operations() -> None:
    x, residual = torch.randn(50, 100), torch.randn(50, 100)
    assert torch.equal(dropout_add(x, residual, 0.3, key=5), residual + dropout(x, 0.3, key=5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_an_activation_and_its_gradient(name: str, dtype: torch.dtype, shape: tuple[int, ...], has_bias: bool) -> None:
    x, grad = (3 * torch.randn(shape)).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[-1]).to(dtype).requires_grad_() if has_bias else None
    found = activation_dropout(x, name, 0.3, bias=bias, key=5)
    found.backward(grad)
    exact = x.detach().double().requires_grad_()
    exact_bias = bias.detach().double().requires_grad_() if bias is not None else torch.zeros(shape[-1]).double()
    wanted = dropout(ACTIVATIONS[name](exact + exact_bias), 0.3, key=5)
    wanted.backward(grad.double())
    assert_near(found, wanted)
    assert_near(x.grad, exact.grad)
    if bias is not None:
        rows = x.numel() // shape[-1]
        torch.testing.assert_close(
            bias.grad.double(), exact_bias.grad, atol=rows * TOLERANCE[dtype], rtol=4 * TOLERANCE[dtype]
        )


def test_extreme_inputs() -> None:
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 100.0, -100.0, 1e-40, -1e30, 1e30])
    x = values.repeat(20)
    keep = torch.from_numpy(keep_mask(5, (len(x),), 0.5))
    for name, activation in ACTIVATIONS.items():
        found = activation_dropout(x, name, 0.5, key=5)
        assert (found[~keep] == 0).all()
        assert not torch.signbit(found[~keep]).any()
        finite = x.isfinite()
        torch.testing.assert_close(found[keep & finite], 2 * activation(x)[keep & finite], atol=1e-6, rtol=1e-5)
        assert found[keep & x.isnan()].isnan().all()
        assert (found[keep & (x == torch.inf)] == torch.inf).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_both_orders(name: str) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    call = lambda x, b: activation_dropout(x, name, 0.4, bias=b, key=3)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, bias), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, bias))
    residual = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    add = lambda x, r: dropout_add(x, r, 0.4, key=3)  # noqa: E731
    assert torch.autograd.gradcheck(add, (x, residual), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(add, (x, residual))


def test_other_ways_give_the_same() -> None:
    x, residual, bias = torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)
    added, activated = (
        dropout_add(x, residual, 0.3, key=5),
        activation_dropout(x, "gelu", 0.3, bias=bias, key=5),
    )
    turned, turned_residual = (tensor.t().contiguous().t() for tensor in (x, residual))
    assert torch.equal(dropout_add(turned, turned_residual, 0.3, key=5), added)
    assert_near(activation_dropout(turned, "gelu", 0.3, bias=bias, key=5), activated)
    key = torch.tensor(5)
    assert torch.equal(dropout_add(x, residual, 0.3, key=key), added)
    mapped = torch.func.vmap(lambda x, r: dropout_add(x, r, 0.3, key=5))(x, residual)
    assert mapped.shape == x.shape
    assert torch.equal(dropout_add(x, residual, 0.3, training=False), x + residual)
    assert torch.equal(activation_dropout(x, "relu", 0.0), x.relu())
    assert torch.equal(dropout_add(x, residual, 1.0, key=5), residual)


def test_drawn_keys_are_those_of_dropout() -> None:
    x, zeros = torch.randn(6, 40), torch.zeros(6, 40)
    torch.manual_seed(0)
    wanted = dropout(x, 0.3)
    torch.manual_seed(0)
    assert torch.equal(dropout_add(x, zeros, 0.3), wanted)
    torch.manual_seed(0)
    assert torch.equal(activation_dropout(x.abs(), "relu", 0.3), wanted.abs())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: dropout_add(x, x[:1]), ArgumentError, "`residual` must be of shape"),
        (lambda x: dropout_add(x, x.double()), ArgumentTypeError, "`residual` must be of the input's type"),
        (lambda x: dropout_add(x, 3.0), ArgumentTypeError, "`residual` must be a torch.Tensor"),
        (lambda x: dropout_add(x, x, 1.5), ArgumentError, "`p`"),
        (lambda x: dropout_add(x, x, float("nan")), ArgumentError, "`p`"),
        (lambda x: dropout_add(x, x, key=-1), ArgumentError, "`key`"),
        (lambda x: dropout_add(x.int(), x.int()), ArgumentTypeError, "`input`"),
        (lambda x: activation_dropout(x, "tanh"), ArgumentError, "'gelu'"),
        (lambda x: activation_dropout(x, bias=x[0, :2]), ArgumentError, "`bias` must be of shape"),
        (lambda x: activation_dropout(x, bias=x[0].half()), ArgumentTypeError, "`bias` must be of the input's type"),
        (lambda x: activation_dropout("x"), ArgumentTypeError, "`input`"),
    ],
    ids=map(str, range(11)),
)
def test_bad_arguments(call: Callable[[Tensor], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(torch.ones(2, 3))
