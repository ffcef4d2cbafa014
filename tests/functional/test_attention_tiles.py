"""Attention by tiles is given what attention with all weights at once is: in Triton's interpreter, or on a GPU."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit.functional import attention_tiles, scaled_dot_product_attention
from dropkit.functional.examples import NumberedKey
from dropkit.kernels.attention import Mask

pytest.importorskip("triton")
from dropkit.kernels import triton_attention  # imports Triton

KEY = 0x720F_0000_1234_5678


LONG = [pytest.mark.slow, pytest.mark.exhaustive]  # for the interpreter takes seconds for each


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Mask]:
    """Let tiles serve on CPUs, where the interpreter runs them; the masks of the calls that come."""
    found: list[Mask] = []

    def attention(*arguments: Any) -> tuple[Tensor, Tensor]:
        found.append(Mask(*arguments[5:9]))
        return triton_attention.attention(*arguments)

    tile = triton_attention.Tile(16, 32, 4, 1)
    monkeypatch.setattr(triton_attention, "tile_of", lambda *_: tile)
    monkeypatch.setattr(attention_tiles, "is_served", lambda *_: True)
    monkeypatch.setattr("dropkit.functional.attention.are_plain", lambda *_: False)  # nor is there a shorter way
    monkeypatch.setattr(attention_tiles.operators, "attention", attention)
    for name in ("attention_backward", "attention_bits"):
        monkeypatch.setattr(attention_tiles.operators, name, getattr(triton_attention, name))
    return found


def tensors(*leading: int, own: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    of_keys = leading if own is None else (*leading[:-1], own)
    shapes = (*leading, 5, 8), (*of_keys, 34, 8), (*of_keys, 34, 8)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def both(monkeypatch: pytest.MonkeyPatch, given: list[Tensor], **options: Any) -> None:
    """Compare outputs and gradients with those of all weights at once."""
    found = scaled_dot_product_attention(*given, **options)
    gradients = torch.autograd.grad(found.sin().sum(), given)
    with monkeypatch.context() as context:
        context.setattr(attention_tiles, "is_served", lambda *_: False)
        wanted = scaled_dot_product_attention(*given, **options)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(wanted.sin().sum(), given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leading", [(3,), *(pytest.param(each, marks=LONG) for each in ((2, 3), (2, 1, 3)))])
@pytest.mark.parametrize("kind", ["one", "several", "numbered", "passes"])
def test_keys_of_every_kind(
    calls: list[Mask], monkeypatch: pytest.MonkeyPatch, leading: tuple[int, ...], kind: str
) -> None:
    options: dict[str, Any] = {"dropout_p": 0.3, "dropout_key": KEY, "stream": 0}
    if kind == "several":
        options["dropout_key"] = torch.arange(leading[0])
        options["stream"] = torch.arange(leading[0])
        options["dropout_p"] = torch.linspace(0.1, 0.5, leading[0], dtype=torch.float64)
    if kind == "numbered":
        options["dropout_key"] = NumberedKey(KEY, ((2**40, 1), (5, leading[0] - 1)))
    if kind == "passes":
        streams = tuple(range(1, leading[0] + 1))
        options["dropout_key"] = NumberedKey(KEY, ((7, 1),), streams)
    both(monkeypatch, tensors(*leading), **options)
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_options(calls: list[Mask], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dropout_p": 0.3, "dropout_key": KEY}
    both(monkeypatch, tensors(2, 4, own=2), enable_gqa=True, is_causal=True, **options)
    both(monkeypatch, tensors(4, own=2), enable_gqa=True, **options)
    attn_mask = torch.rand(5, 34, generator=torch.Generator().manual_seed(1)) > 0.3
    both(monkeypatch, tensors(2, 2), attn_mask=attn_mask, scale=0.7, **options)
    query, key, value = tensors(2, 2)
    both(monkeypatch, [query, key[:1], value[:, :1]], **options)
    assert len(calls) == 4


@pytest.mark.slow
@pytest.mark.exhaustive
def test_bits_are_kept_where_they_are_few(calls: list[Mask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tiles, "_MOST_BITS", 2 * 2 * 5 * 34)
    both(monkeypatch, tensors(2, 2), dropout_p=0.3, dropout_key=KEY)
    monkeypatch.setattr(attention_tiles.operators, "attention_bits", None)
    both(monkeypatch, tensors(3, 2), dropout_p=0.3, dropout_key=KEY)
    assert len(calls) == 2


def test_second_derivatives(calls: list[Mask]) -> None:
    given = [tensor.detach()[..., :4, :].double().float().requires_grad_() for tensor in tensors(1, 2)]
    options: dict[str, Any] = {"dropout_p": 0.3, "dropout_key": KEY}

    def gradient(run: Any) -> Tensor:
        (first,) = torch.autograd.grad(run(*given, **options).sin().sum(), given[:1], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), given[1:2])
        return second

    found = gradient(scaled_dot_product_attention)
    assert len(calls) == 1
    options["return_dropout_mask"] = True
    torch.testing.assert_close(found, gradient(lambda *a, **b: scaled_dot_product_attention(*a, **b)[0]))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "change",
    [{"training": False}, {"dropout_p": 0.0}, {"return_dropout_mask": True}, {"dropout_key": None, "dropout_mask": 1}],
    ids=["evaluation", "p=0", "mask returned", "mask given"],
)
def test_what_tiles_do_not_serve(calls: list[Mask], change: dict[str, Any]) -> None:
    options: dict[str, Any] = {"dropout_p": 0.3, "dropout_key": KEY, **change}
    if "dropout_mask" in change:
        options["dropout_mask"] = torch.ones(2, 2, 5, 34, dtype=torch.bool)
    scaled_dot_product_attention(*tensors(2, 2), **options)
    wide = [torch.randn(1, 1, 3, 300) for _ in range(3)]
    scaled_dot_product_attention(*wide, dropout_p=0.3)
    doubles = [tensor.double() for tensor in tensors(1, 1)]
    scaled_dot_product_attention(*doubles, dropout_p=0.3)
    torch.func.vmap(lambda *a: scaled_dot_product_attention(*a, dropout_p=0.3), randomness="same")(*tensors(2, 2))
    assert not calls


# A GPU takes seconds to compile each: all forms for the widths most used, and for the others two.
EVERY_FORM = list(itertools.product((False, True), repeat=2))
ON_GPUS = [
    *((torch.bfloat16, width, *form) for width in (64, 128) for form in EVERY_FORM),
    *((torch.bfloat16, width, form, form) for width in (16, 200, 256) for form in (False, True)),
    *((dtype, 64, form, form) for dtype in (torch.float16, torch.float32) for form in (False, True)),
    *((torch.float32, 200, form, not form) for form in (False, True)),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "width", "is_causal", "has_bits"), ON_GPUS)
def test_a_gpu_has_the_output_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, is_causal: bool, has_bits: bool
) -> None:
    monkeypatch.setattr(attention_tiles, "_MOST_BITS", 2**40 if has_bits else 0)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, heads, 333, width, generator=generator) for heads in (4, 2, 2)]
    options: dict[str, Any] = {"dropout_p": 0.1, "dropout_key": KEY, "is_causal": is_causal, "enable_gqa": True}
    results = []
    for device in ("cpu", "cuda"):
        inputs = [each.to(device, dtype).requires_grad_() for each in given]
        output = scaled_dot_product_attention(*inputs, **options)
        gradients = torch.autograd.grad(output.float().sin().sum(), inputs)
        results.append([each.float().cpu() for each in (output, *gradients)])
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("has_bits", [False, True])
def test_compiled_and_captured_code_has_the_mask_of_eager_code(monkeypatch: pytest.MonkeyPatch, has_bits: bool) -> None:
    monkeypatch.setattr(attention_tiles, "_MOST_BITS", 2**40 if has_bits else 0)
    given = [each.cuda() for each in tensors(2, 4)]
    key = torch.tensor(KEY, device="cuda")

    def attend(*inputs: Tensor) -> Tensor:
        return scaled_dot_product_attention(*inputs, dropout_p=0.3, dropout_key=key)

    eager = attend(*given)
    torch.testing.assert_close(torch.compile(attend, fullgraph=True)(*given), eager)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = attend(*given)
    graph.replay()
    torch.testing.assert_close(captured, eager.detach())
    key.add_(1)
    graph.replay()
    torch.testing.assert_close(captured, attend(*given).detach())
    assert not torch.equal(captured, eager)
