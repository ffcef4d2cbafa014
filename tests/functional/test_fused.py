"""Dropout with what stands around it: the same numbers as the operations one after another."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import activation_dropout, dropout, dropout_add
from dropkit.kernels.native import operations
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
        if operations.activates():  # PyTorch's own GELU has NaN there
            assert (found[keep & (x == torch.inf)] == torch.inf).all()


@pytest.mark.parametrize("key", [5, torch.tensor(5)], ids=["number", "tensor"])
@pytest.mark.parametrize("way", ["once", "expanded", "twice"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_infinity_is_as_pytorch_has_it_where_kept(name: str, dtype: torch.dtype, way: str, key: int | Tensor) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan]).to(dtype).repeat(40).requires_grad_()
    # Of +inf, PyTorch's GELU has NaN in float32 and half types if there is more than one number, and inf in float64.
    exact = x.detach().to(torch.float64 if operations.activates() else dtype).requires_grad_()
    keep = torch.from_numpy(keep_mask(5, (len(x),), 0.5))
    found, wanted = activation_dropout(x, name, 0.5, key=key), ACTIVATIONS[name](exact)
    grad = torch.ones(()).to(dtype).expand(len(x)) if way == "expanded" else torch.ones_like(x)
    (of_x,) = torch.autograd.grad(found, x, grad, create_graph=way == "twice")
    (of_exact,) = torch.autograd.grad(wanted, exact, torch.ones_like(exact))
    for one, other in ((found, wanted), (of_x, of_exact)):
        torch.testing.assert_close(one[keep].double(), 2 * other[keep].double(), rtol=0, atol=0, equal_nan=True)
        assert (one[~keep] == 0).all()
        assert not torch.signbit(one[~keep]).any()


@pytest.mark.parametrize("key", [5, torch.tensor(5)], ids=["number", "tensor"])
def test_relu_keeps_no_tensor_but_its_result(key: int | Tensor) -> None:
    x, bias, kept = torch.randn(20, 50, requires_grad=True), torch.randn(50), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = activation_dropout(x, "relu", 0.3, key=key, bias=bias)
    assert [tensor.data_ptr() for tensor in kept if tensor.dim()] == [found.data_ptr()]


@pytest.mark.parametrize("key", [3, torch.tensor(3)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_both_orders(name: str, key: int | Tensor) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, b: Tensor) -> Tensor:
        return activation_dropout(x, name, 0.4, bias=b, key=key)

    assert torch.autograd.gradcheck(call, (x, bias), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, bias))
    residual = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    add = partial(dropout_add, p=0.4, key=key)
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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_keys_in_tensors_give_the_bits_of_keys(name: str) -> None:
    bias = torch.randn(40, requires_grad=True)
    results = []
    for key in (2**64 - 3, torch.tensor(-3)):
        x, residual = torch.randn(6, 40, requires_grad=True), torch.randn(6, 40, requires_grad=True)
        torch.manual_seed(1)
        x.data.normal_(), residual.data.normal_()
        found = activation_dropout(x, name, 0.3, bias=bias, key=key), dropout_add(x, residual, 0.3, key=key)
        gradients = torch.autograd.grad(found[0].pow(2).sum() + found[1].pow(2).sum(), (x, residual, bias))
        results.append((*found, *gradients))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"key": torch.arange(6)},
        {"key": torch.tensor(3), "stream": torch.arange(6)},
        {"key": 3, "p": torch.linspace(0, 1, 6, dtype=torch.float64)},
        {"key": 3, "p": torch.tensor(0.0, dtype=torch.float64)},
        {"key": 3, "p": torch.tensor(1.0, dtype=torch.float64)},
        {"key": 3, "stream": 7},
        {"key": torch.tensor(3), "p": 1},
    ],
    ids=str,
)
def test_every_kind_of_address(options: dict[str, Any]) -> None:
    options = {"p": 0.3} | options
    x, residual, bias = (torch.randn(shape, requires_grad=True) for shape in ((6, 40), (6, 40), (40,)))
    pairs = (
        (dropout_add(x, residual, **options), residual + dropout(x, **options)),
        (activation_dropout(x, "silu", bias=bias, **options), dropout(F.silu(x + bias), **options)),
    )
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, atol=4e-6, rtol=4e-6)
        gradients = [
            torch.autograd.grad(out.square().sum(), (x, residual, bias), allow_unused=True) for out in (found, wanted)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=4e-5, rtol=4e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_transforms_see_the_operations(name: str) -> None:
    x, key = torch.randn(6, 8, dtype=torch.float64), torch.tensor(3)

    def call(x: Tensor) -> Tensor:
        return activation_dropout(x, name, 0.4, key=key).pow(2).sum()

    def apart(x: Tensor) -> Tensor:
        return dropout(ACTIVATIONS[name](x), 0.4, key=3).pow(2).sum()

    torch.testing.assert_close(torch.func.hessian(call)(x), torch.func.hessian(apart)(x))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [forward_ad.unpack_dual(f(dual)).tangent for f in (call, apart)]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("key", [3, torch.tensor(3)], ids=["number", "tensor"])
def test_infinite_gradients_stop_where_relu_does(key: int | Tensor) -> None:
    x = torch.tensor([-1.0, 0.0, 1.0]).repeat(20).requires_grad_()
    activation_dropout(x, "relu", 0.5, key=key).backward(torch.full_like(x, torch.inf))
    keep = torch.from_numpy(keep_mask(3, (len(x),), 0.5))
    assert torch.equal(x.grad, torch.where(keep & (x > 0), torch.inf, 0.0))


def test_complex_numbers() -> None:
    x, residual = (torch.randn(6, 40, dtype=torch.complex64) for _ in range(2))
    assert torch.equal(dropout_add(x, residual, 0.3, key=5), residual + dropout(x, 0.3, key=5))
    assert torch.equal(activation_dropout(x, "silu", 0.3, key=5), dropout(F.silu(x), 0.3, key=5))
    for name in ("relu", "gelu", "gelu_tanh"):
        with pytest.raises(ArgumentTypeError, match=f"`input` must be real for '{name}'.*view_as_real"):
            activation_dropout(x, name, 0.3, key=5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_tensors(layout: torch.layout) -> None:
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    residual, dropped = 2 * x, dropout(x, 0.3, key=5)
    found = dropout_add(x, residual, 0.3, key=5)
    for one, other, sum_ in zip(residual.unbind(), dropped.unbind(), found.unbind(), strict=True):
        assert torch.equal(sum_, one + other)
    found = activation_dropout(x, "relu", 0.3, key=5)
    for one, part in zip(dropped.unbind(), found.unbind(), strict=True):
        assert torch.equal(part, one.relu())
    other = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(2, 4)], layout=layout)
    with pytest.raises(ArgumentError, match="`residual` must be of shape"):
        dropout_add(x, other, key=5)
    for one, another in ((x, torch.randn(2, 4)), (torch.randn(2, 4), x)):
        with pytest.raises(ArgumentTypeError, match=r"`residual` must be (nested|a dense tensor)"):
            dropout_add(one, another, key=5)
    if layout == torch.jagged:
        assert activation_dropout(x, "relu", 0.3, bias=torch.ones(4), key=5).shape == x.shape
        equal = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
        with pytest.raises(ArgumentError, match="offsets must be those of the input"):
            dropout_add(x, equal, key=5)
    else:
        with pytest.raises(ArgumentError, match="`bias` must be None"):
            activation_dropout(x, "relu", 0.3, bias=torch.ones(4), key=5)


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
        (lambda x: dropout_add(x, x.to_sparse()), ArgumentTypeError, "`residual` must be a dense or nested tensor"),
        (lambda x: dropout_add(x, x.to("meta")), ArgumentError, "`residual` must be on the input's device"),
        (lambda x: activation_dropout(x, bias=x[0].to("meta")), ArgumentError, "`bias` must be on the input's device"),
        (lambda x: activation_dropout(x, bias=x[0].to_sparse()), ArgumentTypeError, "`bias` must be a dense"),
        (lambda x: activation_dropout(x, bias="x"), ArgumentTypeError, "`bias` must be a torch.Tensor"),
        (lambda x: activation_dropout(x, key=torch.tensor(3), p=2.0), ArgumentError, "`p`"),
        (lambda x: dropout_add(x, x, key=torch.arange(3)), ArgumentError, "`key`"),
    ],
    ids=map(str, range(18)),
)
def test_bad_arguments(call: Callable[[Tensor], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(torch.ones(2, 3))


@pytest.mark.parametrize("key", [7, torch.tensor(7)], ids=["number", "tensor"])
def test_autocast_mixes_types_as_sums_and_layers_do(key: int | Tensor) -> None:
    layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = F.linear(x, layer.weight)
        added = dropout_add(hidden, x, 0.5, key=key)
        activated = activation_dropout(hidden, "gelu", 0.5, bias=layer.bias, key=key)
    assert added.dtype == torch.float32
    assert torch.equal(added, x + dropout(hidden.float(), 0.5, key=7))
    assert activated.dtype == torch.bfloat16
    wanted = dropout(F.gelu(hidden.float() + layer.bias.bfloat16().float()), 0.5, key=7)
    torch.testing.assert_close(activated.float(), wanted, rtol=1e-2, atol=1e-2)
    (added.sum() + activated.sum()).backward()
    assert layer.bias.grad is not None
    assert layer.bias.grad.dtype == torch.float32
