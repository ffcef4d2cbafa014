"""Which tensors dropout takes, and what it does with each kind."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dropkit import functional, nn, random
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.functional import dropout
from tests.helpers.contract import COMPLEX, REAL, assert_positive_zero, scale, wide

COMPLEX_HALF = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


@COMPLEX_HALF
@pytest.mark.parametrize("dtype", [*REAL, *COMPLEX], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1, 1), (2, 3, 4, 5, 6)])
def test_shapes_and_types(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 3.0).to(dtype)
    out, keep = dropout(x, 0.4, key=9, return_mask=True)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    np.testing.assert_array_equal(keep, random.keep_mask(9, shape, 0.4), strict=True)
    assert torch.equal(wide(out) != 0, keep)
    assert dropout(x, 0.4).shape == x.shape


def refused() -> dict[str, Callable[[], object]]:
    types = (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
        torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    )  # fmt: skip
    inputs: dict[str, Callable[[], object]] = {str(t): lambda t=t: torch.zeros(3, 4).to(t) for t in types}
    return inputs | {
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
        "sparse columns": lambda: torch.eye(3).to_sparse_csc(),
        "opaque": lambda: torch.eye(3).to_mkldnn(),
        "array": lambda: np.ones(3),
        "list": lambda: [1.0, 2.0],
        "number": lambda: 1.0,
        "nothing": lambda: None,
        "string": lambda: "x",
    }


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:.*[qQ]uanti:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*[qQ]uanti:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", refused())
def test_inputs_that_are_refused(name: str, training: bool) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ArgumentTypeError, match=r"^dropout: `input` must be (a|of a) ") as caught:
        dropout(refused()[name](), 0.5, training)
    assert isinstance(caught.value, TypeError)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_complex_number_is_one_unit() -> None:
    z = torch.complex(torch.ones(500), torch.full((500,), -2.0))
    out = dropout(z, 0.25, key=4)
    keep = torch.from_numpy(random.keep_mask(4, (500,), 0.25))
    assert torch.equal(out, torch.where(keep, z * scale(0.25), 0))
    infinite = torch.complex(torch.full((9,), math.inf), torch.zeros(9))
    kept = dropout(infinite, 0.5, mask=torch.ones(9, dtype=torch.bool))
    assert torch.equal(kept, infinite), "an infinite part makes no NaN of the other"


@pytest.mark.parametrize("mode", ["drawn", "masked", "evaluated"])
@pytest.mark.parametrize("view", ["conjugated", "negated", "transposed"])
def test_lazy_views_of_complex_tensors(mode: str, view: str) -> None:
    z = torch.randn(4, 6, dtype=torch.complex64)
    x = {"conjugated": z.conj(), "negated": z.conj().imag, "transposed": z.mH}[view]
    plain = x.resolve_conj().resolve_neg().clone()

    def run(value: Tensor) -> Tensor:
        if mode == "drawn":
            return dropout(value, 0.4, key=3)
        if mode == "masked":
            return dropout(value, 0.4, mask=torch.ones(value.shape, dtype=torch.bool).triu())
        return dropout(value, 0.4, False, scale_at="eval")

    assert torch.equal(run(x), run(plain))


def test_memory_formats_survive() -> None:
    for x, memory_format in (
        (torch.randn(2, 3, 4, 5), torch.channels_last),
        (torch.randn(2, 3, 4, 5, 6), torch.channels_last_3d),
    ):
        out, keep = dropout(x, 0.4, key=3, return_mask=True)
        last = x.to(memory_format=memory_format).requires_grad_()
        for options in ({"key": 3}, {"mask": keep}, {"key": 3, "scale_at": "eval"}):
            found = dropout(last, 0.4, **options)
            assert found.is_contiguous(memory_format=memory_format)
        (gradient,) = torch.autograd.grad(dropout(last, 0.4, key=3), last, torch.ones_like(last))
        assert gradient.is_contiguous(memory_format=memory_format)
        assert torch.equal(dropout(last, 0.4, key=3), out)
        assert dropout(last.detach(), 0.4, False, scale_at="eval").is_contiguous(memory_format=memory_format)


def test_in_place_overwrites_and_returns_the_input() -> None:
    for x in (torch.randn(4, 6), torch.randn(6, 4).T, torch.randn(4, 12)[:, ::2], torch.randn(4, 6).half()):
        want = dropout(x, 0.4, key=3)
        pointer, strides = x.data_ptr(), x.stride()
        assert dropout(x, 0.4, inplace=True, key=3) is x
        assert (x.data_ptr(), x.stride()) == (pointer, strides)
        assert torch.equal(x, want)
        mask = torch.rand(4, 6) > 0.5
        want = dropout(x, 0.4, mask=mask)
        out, keep = dropout(x, 0.4, inplace=True, mask=mask, return_mask=True)
        assert out is x
        assert torch.equal(x, want)
        assert torch.equal(keep, mask)
    x = torch.full((3,), torch.nan)
    assert_positive_zero(dropout(x, 1.0, inplace=True))
    assert dropout(x, 0.5, False, True) is x


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (1.0, False)])
def test_a_leaf_that_is_not_written_may_require_gradients(p: float, training: bool) -> None:
    leaf = torch.ones(3, requires_grad=True)
    assert torch.nn.functional.dropout(leaf, p, training, inplace=True) is leaf
    assert dropout(leaf, p, training, inplace=True) is leaf


@pytest.mark.parametrize("options", [{"key": 3}, {}, {"mask": torch.ones(3, dtype=torch.bool)}])
def test_a_leaf_that_requires_gradients_is_not_overwritten(options: dict[str, object]) -> None:
    leaf = torch.ones(3, requires_grad=True)
    state = torch.get_rng_state()
    with pytest.raises(ArgumentError, match="`inplace` must be False for a leaf that requires grad"):
        dropout(leaf, 0.5, inplace=True, **options)
    assert torch.equal(leaf, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert dropout(leaf, 1.0, inplace=True) is leaf
    assert torch.equal(leaf, torch.zeros(3))


@pytest.mark.parametrize("kind", ["view of a leaf", "expanded"])
def test_what_pytorch_refuses_in_place_costs_no_draw(kind: str) -> None:
    x = torch.ones(3, 1, requires_grad=kind == "view of a leaf")
    x = x[:2] if kind == "view of a leaf" else x.expand(3, 4)
    state = torch.get_rng_state()
    with pytest.raises((RuntimeError, ArgumentError)):
        dropout(x, 0.5, inplace=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_type_alone(dtype: torch.dtype) -> None:
    x = torch.randn(16, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        hidden = x @ x
        assert hidden.dtype == dtype
        for value in (x, hidden):
            out = dropout(value, 0.4, key=3)
            assert out.dtype == value.dtype
            assert torch.equal(out != 0, torch.from_numpy(random.keep_mask(3, (16, 16), 0.4)) & (value != 0))
        out.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "options", [{}, {"key": 3}, {"key": 3, "broadcast_dims": 1}, {"return_mask": True}, {"p": 1.0}]
)
def test_fake_and_meta_tensors_tell_shapes(options: dict[str, object]) -> None:
    x = torch.randn(4, 6, 5).transpose(0, 2)
    real = dropout(x, **options)
    with FakeTensorMode() as mode:
        fake = dropout(mode.from_tensor(x), **options)
        keys = dropout(mode.from_tensor(x), key=mode.from_tensor(torch.arange(5)))
    meta = dropout(x.to("meta"), **options)
    assert keys.shape == x.shape
    for found, kind in ((fake, FakeTensor), (meta, Tensor)):
        pairs = zip(found, real, strict=True) if isinstance(real, tuple) else [(found, real)]
        for one, other in pairs:
            assert isinstance(one, kind)
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
    assert dropout(x.to("meta"), 0.5).is_meta


def test_a_meta_tensor_that_requires_gradients() -> None:
    x = torch.ones(3, 4, device="meta", requires_grad=True)
    dropout(x, 0.5).sum().backward()
    assert x.grad.is_meta


def test_parameters_are_tensors() -> None:
    weight = torch.nn.Parameter(torch.ones(30))
    out = dropout(weight, 0.5, key=3)
    assert type(out) is Tensor
    out.sum().backward()
    assert torch.equal(weight.grad, out.detach())


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_does_not_record_a_mask_for_ever() -> None:
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match=r"^dropout: torch\.jit\.trace would record one mask for ever\."):
        torch.jit.trace(lambda x: dropout(x, 0.5, key=3), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_complex_result_may_be_overwritten() -> None:
    x = torch.randn(3, 4, dtype=torch.complex64, requires_grad=True)
    out = dropout(x, 0.5, key=1).mul_(2)
    out.abs().sum().backward()
    assert torch.equal(out, 2 * dropout(x, 0.5, key=1))


@pytest.mark.parametrize("kind", [np.array, np.float16, np.float32, np.float64, int], ids=lambda kind: kind.__name__)
def test_a_rate_may_be_a_number_of_any_kind(kind: Callable[[float], Any]) -> None:
    """With the bits that a float gives, so by the same kernels."""
    x, query = torch.randn(8, 64), torch.randn(2, 3, 16, 8)
    calls: tuple[Callable[[Any], Tensor], ...] = (
        lambda p: functional.dropout(x, p, key=3),
        lambda p: functional.dropout_add(x, x, p, key=3),
        lambda p: functional.activation_dropout(x, "gelu", p, key=3),
        lambda p: functional.scaled_dot_product_attention(query, query, query, dropout_p=p, dropout_key=3),
        lambda p: nn.Dropout(p)(x, key=3),
    )
    for call, p in itertools.product(calls, (0, 1) if kind is int else (0.0, 0.25, 1.0)):
        assert torch.equal(call(kind(p)), call(float(p)))
