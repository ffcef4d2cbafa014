"""Dropout, residual and normalisation as one: the numbers of the operations one after another, and what is kept."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import dropout_add, dropout_add_layer_norm, dropout_add_rms_norm
from dropkit.random import keep_mask

pytestmark = [
    # Of PyTorch's own making, while it traces and scripts.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
]
# In units of the result's last place; normalised numbers are a few.
TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(7,), (3, 7), (5, 100), (2, 3, 64)]


def with_bias(x: Tensor, residual: Tensor, weight: Tensor | None = None, **how: Any) -> Any:
    return dropout_add_layer_norm(x, residual, weight, None if weight is None else weight.flip(0), **how)


NORMS: dict[str, Callable[..., Any]] = {
    "layer": dropout_add_layer_norm,
    "layer, bias": with_bias,
    "root mean square": dropout_add_rms_norm,
}


def apart(name: str, x: Tensor, residual: Tensor, weight: Tensor | None, eps: float = 1e-5, **how: Any) -> Tensor:
    """The same by operations one after another."""
    total = dropout_add(x, residual, **how)
    if name == "root mean square":
        return F.rms_norm(total, total.shape[-1:], weight, eps)
    bias = weight.flip(0) if weight is not None and name == "layer, bias" else None
    return F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def assert_near(found: Tensor, wanted: Tensor, scale: float = 1.0) -> None:
    tolerance = scale * TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), wanted.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NORMS)
def test_results_and_gradients(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = [torch.randn(size).to(dtype).requires_grad_() for size in (shape, shape, shape[-1:])]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found, total = NORMS[name](*tensors, p=0.3, eps=1e-5, prenorm=True, key=5)
    wanted = apart(name, *exact, p=0.3, key=5)
    assert found.dtype == total.dtype == dtype
    assert torch.equal(total, dropout_add(*tensors[:2], 0.3, key=5))
    assert_near(found, wanted, 4)
    grad = torch.randn(shape).to(dtype)
    gradients = torch.autograd.grad(found, tensors, grad)
    for one, other in zip(gradients, torch.autograd.grad(wanted, exact, grad.double()), strict=True):
        assert_near(one, other, 20)


@pytest.mark.parametrize("key", [5, torch.tensor(5)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", NORMS)
def test_masks_are_those_of_dropout(name: str, key: int | Tensor) -> None:
    x, residual = torch.ones(6, 40, requires_grad=True), torch.zeros(6, 40)
    _, total = NORMS[name](x, residual, p=0.3, prenorm=True, key=key)
    keep = torch.from_numpy(keep_mask(5, (6, 40), 0.3))
    assert torch.equal(total != 0, keep)
    total.sum().backward()
    assert torch.equal(x.grad != 0, keep)


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_derivatives_of_both_orders(name: str, prenorm: bool) -> None:
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (3, 5), (5,))]
    call = partial(NORMS[name], p=0.4, eps=1e-5, prenorm=prenorm, key=torch.tensor(3))
    assert torch.autograd.gradcheck(call, tensors, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_what_is_kept_for_the_backward_pass_is_the_sum_and_two_numbers_a_row() -> None:
    x, residual, weight = torch.randn(20, 50, requires_grad=True), torch.randn(20, 50), torch.randn(50)
    for name, rows in (("layer", 2), ("root mean square", 1)):
        kept: list[Tensor] = []

        def pack(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _, total = NORMS[name](x, residual, weight, p=0.3, prenorm=True, key=5)
        large = [tensor.data_ptr() for tensor in kept if tensor.numel() == x.numel()]
        assert large == [total.data_ptr()]
        assert sum(tensor.numel() for tensor in kept if tensor.shape == (20, 1)) == 20 * rows
        assert all(tensor.dtype != torch.bool for tensor in kept)


@pytest.mark.parametrize("name", NORMS)
def test_residuals_and_weights_may_be_wider(name: str) -> None:
    x, residual, weight = torch.randn(4, 32).bfloat16().requires_grad_(), torch.randn(4, 32), torch.randn(32)
    residual.requires_grad_(), weight.requires_grad_()
    found, total = NORMS[name](x, residual, weight, p=0.3, eps=1e-5, prenorm=True, key=5)
    assert (found.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, residual, weight)]
    wanted = apart(name, *exact, p=0.3, key=5)
    torch.testing.assert_close(total, dropout_add(exact[0], exact[1], 0.3, key=5).float())
    assert_near(found, wanted)
    grad = torch.randn(4, 32).bfloat16()
    found.backward(grad)
    wanted.backward(grad.double())
    for one, other in zip((x, residual, weight), exact, strict=True):
        assert one.grad.dtype == one.dtype
        assert_near(one.grad, other.grad, 10)


@pytest.mark.parametrize("name", NORMS)
def test_half_types_are_computed_in_float32_without_dropout_too(name: str) -> None:
    x, residual = (torch.randn(4, 256).bfloat16() for _ in range(2))
    found = NORMS[name](x, residual, eps=1e-5, training=False)
    wanted = apart(name, x.float(), (x + residual).float() - x.float(), None, training=False).bfloat16()
    assert (found == wanted).float().mean() > 0.99


@pytest.mark.parametrize(
    "options",
    [
        {"key": torch.arange(6)},
        {"key": torch.tensor(3), "stream": torch.arange(6)},
        {"key": 3, "p": torch.linspace(0, 1, 6, dtype=torch.float64)},
        {"key": 3, "p": torch.tensor(1.0, dtype=torch.float64)},
        {"key": 3, "p": 1.0},
        {"key": 3, "stream": 7},
        {"p": 0.0},
        {"training": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NORMS)
def test_every_kind_of_address(name: str, options: dict[str, Any]) -> None:
    options = {"p": 0.3} | options
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((6, 40), (6, 40), (40,))]
    found, wanted = NORMS[name](*tensors, eps=1e-5, **options), apart(name, *tensors, **options)
    torch.testing.assert_close(found, wanted, atol=4e-6, rtol=4e-6)
    gradients = [torch.autograd.grad(out.square().sum(), tensors) for out in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_other_layouts_of_memory_give_the_same() -> None:
    x, residual, weight = torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)
    wanted = dropout_add_layer_norm(x, residual, weight, p=0.3, key=5)
    turned = [tensor.t().contiguous().t() for tensor in (x, residual)]
    assert torch.equal(dropout_add_layer_norm(*turned, weight, p=0.3, key=5), wanted)
    spread = torch.stack((weight, weight), -1)[:, 0]
    assert torch.equal(dropout_add_layer_norm(x, residual, spread, p=0.3, key=5), wanted)
    assert dropout_add_rms_norm(x[:0], residual[:0], weight, key=5).shape == (0, 40)


def test_the_default_of_the_root_mean_square_is_pytorch_s() -> None:
    for dtype in TOLERANCE:
        x, residual = torch.full((3, 8), 1e-4).to(dtype), torch.zeros(3, 8, dtype=dtype)
        for how in ({"training": False}, {"p": 1e-9}):
            assert_near(dropout_add_rms_norm(x, residual, key=5, **how), F.rms_norm(x, (8,)))


def test_a_tensor_may_be_given_twice() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)

    def run(x: Tensor, weight: Tensor, key: Tensor) -> Tensor:
        return dropout_add_layer_norm(x, x, weight, weight, 0.4, key=key)

    found = run(x, weight, torch.tensor(3))
    torch.testing.assert_close(found, F.layer_norm(dropout_add(x, x, 0.4, key=3), (8,), weight, weight))
    (of_weight,) = torch.autograd.grad(found.square().sum(), weight)
    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(x, weight, torch.tensor(3))
    torch.testing.assert_close(torch.autograd.grad(compiled.square().sum(), weight)[0], of_weight)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NORMS)
def test_transforms_see_the_operations(name: str) -> None:
    x, residual = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    calls = [partial(NORMS[name], eps=1e-5), partial(apart, name, weight=None)]
    each = [torch.func.hessian(lambda x, f=f: f(x, residual, p=0.4, key=3).pow(3).sum())(x) for f in calls]
    torch.testing.assert_close(*each)
    keys = torch.arange(6)
    mapped = torch.func.vmap(lambda x, r, key: NORMS[name](x, r, p=0.4, eps=1e-5, key=key))(x, residual, keys)
    torch.testing.assert_close(mapped, NORMS[name](x, residual, p=0.4, eps=1e-5, key=keys))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [forward_ad.unpack_dual(f(dual, residual, p=0.4, key=3)).tangent for f in calls]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_compiled_equals_eager(name: str, prenorm: bool, backend: str) -> None:
    torch._dynamo.reset()
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((6, 40), (6, 40), (40,))]

    def run(x: Tensor, residual: Tensor, weight: Tensor, key: Tensor) -> Any:
        return NORMS[name](x, residual, weight, p=0.3, eps=1e-5, prenorm=prenorm, key=key)

    compiled = torch.compile(run, backend=backend, fullgraph=True)
    for key in (torch.tensor(-7), torch.tensor(8)):
        results = []
        for call in (compiled, run):
            found = call(*tensors, key)
            outs = found if prenorm else (found,)
            gradients = torch.autograd.grad(sum(out.square().sum() for out in outs), tensors)
            results.append((*outs, *gradients))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NORMS)
def test_compiled_without_gradients(name: str) -> None:
    torch._dynamo.reset()

    def run(x: Tensor, residual: Tensor) -> Any:
        return NORMS[name](x, residual, p=0.3, eps=1e-5, key=7)

    tensors = torch.randn(6, 40), torch.randn(6, 40)
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(*tensors), run(*tensors))
    torch._dynamo.reset()


def test_under_autocast_results_have_the_wider_type() -> None:
    x, residual = torch.randn(4, 16).bfloat16(), torch.randn(4, 16)
    weight = torch.randn(16)
    with torch.autocast("cpu", torch.bfloat16):
        found, total = dropout_add_layer_norm(x, residual, weight, weight, 0.3, prenorm=True, key=5)
        alike = dropout_add_rms_norm(x, residual.bfloat16(), weight, 0.3, key=5)
        narrow, narrow_total = dropout_add_layer_norm(residual, x, training=False, prenorm=True)
    assert found.dtype == total.dtype == torch.float32
    torch.testing.assert_close(found, dropout_add_layer_norm(x.float(), residual, weight, weight, 0.3, key=5))
    assert alike.dtype == torch.bfloat16
    assert narrow.dtype == narrow_total.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: dropout_add_layer_norm(x, x[:1]), ArgumentError, "`residual` must be of shape"),
        (lambda x: dropout_add_layer_norm(x, x.double()), ArgumentTypeError, "`residual` must be of the input's type"),
        (
            lambda x: dropout_add_layer_norm(x.half(), x.bfloat16()),
            ArgumentTypeError,
            "`residual` must be of the input's type torch.float16 or torch.float32",
        ),
        (lambda x: dropout_add_rms_norm(x, x, x), ArgumentError, "`weight` must be of shape"),
        (lambda x: dropout_add_layer_norm(x, x, bias=x[0].half()), ArgumentTypeError, "`bias` must be of the input's"),
        (lambda x: dropout_add_rms_norm(x, x, x[0].to("meta")), ArgumentError, "`weight` must be on the input's"),
        (lambda x: dropout_add_rms_norm(x, x, eps=-1e-5), ArgumentError, "`eps`"),
        (lambda x: dropout_add_layer_norm(x, x, eps=float("nan")), ArgumentError, "`eps`"),
        (lambda x: dropout_add_layer_norm(x, x, p=1.5), ArgumentError, "`p`"),
        (lambda x: dropout_add_layer_norm(x.sum(), x.sum()), ArgumentError, "of one axis or more"),
        (lambda x: dropout_add_layer_norm(x, x, prenorm=1), ArgumentTypeError, "`prenorm` must be True or False"),
    ],
    ids=map(str, range(11)),
)
def test_bad_arguments(call: Callable[[Tensor], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(torch.randn(3, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [64, 1000, 1024, 4096, 8192, 16384, 20000])
@pytest.mark.parametrize("name", NORMS)
def test_on_a_gpu(name: str, columns: int, dtype: torch.dtype) -> None:
    tensors = [torch.randn(shape).to(dtype) for shape in ((300, columns), (300, columns), (columns,))]
    grads = [torch.randn(300, columns).to(dtype) for _ in range(2)]
    results = []
    for device, wide in (("cuda", dtype), ("cpu", torch.float64)):
        given = [tensor.to(device, wide).requires_grad_() for tensor in tensors]
        found = NORMS[name](*given, p=0.1, eps=1e-5, prenorm=True, key=5)
        gradients = torch.autograd.grad(found, given, [grad.to(device, wide) for grad in grads])
        results.append([each.cpu() for each in (*found, *gradients)])
    kept = torch.from_numpy(keep_mask(5, (300, columns), 0.1))
    assert torch.equal(results[0][2] != 0, kept & (results[0][3] != 0))
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        assert_near(one, other, 300 if i == 4 else 20)  # the gradient of the weight is a sum over rows
