"""Attention by tiles has the mask, the output and the gradients of attention with all weights at once.

In Triton's interpreter here, and on a GPU where there is one.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.functional import scaled_dot_product_attention
from dropkit.kernels.attention import RAGGED, Mask, Weights

pytest.importorskip("triton")
from dropkit.kernels import triton_attention  # imports Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEY = random.call_key(17, "attention", step=4) - 2**63
P = 0.3


LONG = [pytest.mark.slow, pytest.mark.exhaustive]  # for the interpreter takes seconds for each


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, of queries and of keys, in tensors that the interpreter takes little time for."""
    if DEVICE.type == "cpu":
        tile = triton_attention.Tile(16, 32, 4, 1)
        monkeypatch.setattr(triton_attention, "tile_of", lambda *_: tile)


def mask_of(p: float = P, key: Any = KEY, stream: Any = 0, begins: Tensor | None = None) -> Mask:
    return Mask(torch.as_tensor(key), torch.as_tensor(stream), torch.tensor(random.threshold(p)), begins)


def inputs(heads: int = 2, own: int = 2, queries: int = 21, keys: int = 37, width: int = 16, columns: int = 16) -> Any:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, heads, queries, width), (2, own, keys, width), (2, own, keys, columns)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def by_tiles(
    tensors: list[Tensor], mask: Mask, weights: Weights, has_bits: bool, attn_mask: Tensor | None = None
) -> tuple[Tensor, tuple[Any, ...]]:
    """Output, and what the backward pass is given."""
    query, key, value = (tensor.detach().to(DEVICE) for tensor in tensors)
    mask = Mask(*(None if each is None else each.to(DEVICE) for each in mask))
    weights = Weights(*weights[:3], *(None if each is None else each.to(DEVICE) for each in weights[3:]))
    bits = triton_attention.attention_bits(query, *mask, *weights) if has_bits else None
    attn_mask = None if attn_mask is None else attn_mask.to(DEVICE)
    rest = (query, key, value, attn_mask, bits, *mask, *weights, query.size(-1) ** -0.5)
    output, logs = triton_attention.attention(*rest)
    return output.cpu(), (output, logs, *rest)


def with_gradients(*arguments: Any) -> list[Tensor]:
    """Output and gradients, for a gradient of the output that differs everywhere."""
    output, rest = by_tiles(*arguments)
    return [output, *(tensor.cpu() for tensor in triton_attention.attention_backward(gradient_of(rest[0]), *rest))]


def gradient_of(output: Tensor) -> Tensor:
    return torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype).view(output.shape)


def compare(
    tensors: list[Tensor],
    has_bits: bool,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    mask: Mask | None = None,
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    """Compare with the output and the gradients of the CPU."""
    query, key, _ = tensors
    options.setdefault("dropout_key", KEY % 2**64)
    options.setdefault("dropout_p", P)
    wanted = scaled_dot_product_attention(
        *tensors, attn_mask, is_causal=is_causal, enable_gqa=query.size(1) != key.size(1), **options
    )
    weights = Weights(is_causal, query.size(2), key.size(2))
    gradients = torch.autograd.grad(wanted, tensors, gradient_of(wanted))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.size(2))
    found = with_gradients(tensors, mask or mask_of(options["dropout_p"]), weights, has_bits, attn_mask)
    for one, other in zip(found, (wanted, *gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def kept_weights(mask: Mask, shape: tuple[int, int, int, int], has_bits: bool, is_causal: bool = False) -> Tensor:
    """Which weights are kept: all are equal, and values are the rows of an identity matrix."""
    batch, heads, queries, keys = shape
    query, key = torch.zeros(batch, heads, queries, 16), torch.zeros(batch, heads, keys, 16)
    value = torch.eye(keys).expand(batch, heads, keys, keys)
    weights = Weights(is_causal, queries, keys)
    output = by_tiles([query, key, value], mask, weights, has_bits)[0]
    return output > 0


@pytest.mark.parametrize("has_bits", [False, True])
@pytest.mark.parametrize("p", [0.1, 1.0, *(pytest.param(p, marks=LONG) for p in (0.5, 2.0**-17))])
def test_the_mask_is_that_of_all_weights(p: float, has_bits: bool) -> None:
    shape = (2, 1, 20, 70)
    want = random.keep_mask(KEY % 2**64, shape, p, stream=5)
    assert torch.equal(kept_weights(mask_of(p, stream=5), shape, has_bits), torch.from_numpy(want))


@pytest.mark.parametrize("has_bits", [False, True])
def test_ties_are_decided_by_the_bits_below(has_bits: bool) -> None:
    shape = (1, 1, 32, 70)
    u = random.uniform32(KEY % 2**64, shape)
    drawn = int(u[0, 0, 17, 43])
    for t in (drawn, drawn + 1):
        mask = mask_of()._replace(threshold=torch.tensor(t))
        assert torch.equal(kept_weights(mask, shape, has_bits), torch.from_numpy(u >= t))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("has_bits", [False, True])
def test_examples_may_have_keys_streams_and_rows_of_their_own(has_bits: bool) -> None:
    shape = (2, 2, 20, 40)
    keys = [3, KEY % 2**63]
    each = kept_weights(mask_of(key=keys, stream=[1, 2]), shape, has_bits)
    for example, key in enumerate(keys):
        want = random.keep_mask(key, shape[1:], P, stream=example + 1)
        assert torch.equal(each[example], torch.from_numpy(want))
    numbered = kept_weights(mask_of(begins=torch.tensor([5 * 40, 2**63 - 7])), shape, has_bits)
    for example, row in enumerate((5 * 40, 2**63 - 7)):
        want = random.keep_mask(KEY % 2**64, (40, 40), P, offset=(row, 0), full_shape=(2**64, 2**34))
        assert torch.equal(numbered[example].reshape(40, 40), torch.from_numpy(want))


@pytest.mark.parametrize("has_bits", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys"), [(21, 37), *(pytest.param(*each, marks=LONG) for each in ((37, 21), (64, 64), (1, 1)))]
)
@pytest.mark.parametrize("is_causal", [True, pytest.param(False, marks=LONG)])
def test_output_and_gradients(has_bits: bool, queries: int, keys: int, is_causal: bool) -> None:
    compare(inputs(queries=queries, keys=keys), has_bits, is_causal)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("is_causal", [False, True])
def test_heads_that_serve_several(is_causal: bool) -> None:
    compare(inputs(heads=6, own=2), True, is_causal)
    compare(inputs(heads=2, own=1), False, is_causal)


@pytest.mark.parametrize(
    ("width", "columns"),
    [(24, 40), *(pytest.param(*each, marks=LONG) for each in ((8, 8), (64, 16), (16, 100), (256, 256)))],
)
def test_widths(width: int, columns: int) -> None:
    compare(inputs(width=width, columns=columns, queries=9, keys=33), False)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [(2, 2, 21, 37), (2, 1, 1, 37), (21, 37), (2, 1, 21, 1)])
@pytest.mark.parametrize("is_bool", [True, False])
def test_attention_masks(shape: tuple[int, ...], is_bool: bool) -> None:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    attn_mask = numbers > -0.5 if is_bool else numbers.masked_fill(numbers < -1, -torch.inf)
    compare(inputs(), False, attn_mask=attn_mask)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_queries_that_attend_to_nothing_have_zeros() -> None:
    attn_mask = torch.ones(21, 37, dtype=torch.bool)
    attn_mask[3] = False
    compare(inputs(), False, attn_mask=attn_mask)
    weights = Weights(False, 21, 37)
    output, _ = by_tiles(inputs(), mask_of(), weights, False, attn_mask.expand(2, 2, 21, 37))
    assert (output[:, :, 3] == 0).all()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_strides() -> None:
    tensors = [tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for tensor in inputs()]
    compare(tensors, False)
    whole = torch.randn(2, 21, 3, 2, 16)
    packed = [part.transpose(1, 2).requires_grad_() for part in whole.unbind(2)]
    compare(packed, True, is_causal=True)
    across = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in inputs()]
    compare(across, False)


# The interpreter multiplies no matrices of bfloat16.
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_half_types_are_near(dtype: torch.dtype) -> None:
    tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs()]
    compare(tensors, False, tolerance=2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("has_bits", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_lengths_that_vary(has_bits: bool, is_causal: bool) -> None:
    lengths = [(21, 37), (0, 5), (33, 2), (4, 0), (16, 32)]
    query_ends = torch.tensor([0, 21, 21, 54, 58, 74], dtype=torch.int32)
    key_ends = torch.tensor([0, 37, 42, 44, 44, 76], dtype=torch.int32)
    tensors = [torch.randn(1, 2, rows, 16, requires_grad=True) for rows in (74, 76, 76)]
    found = with_gradients(tensors, mask_of(), Weights(is_causal, 33, 37, query_ends, key_ends), has_bits)
    outputs = []
    for example, (queries, keys) in enumerate(lengths):
        first, first_key = int(query_ends[example]), int(key_ends[example])
        query = tensors[0][:, :, first : first + queries]
        key, value = (tensor[:, :, first_key : first_key + keys] for tensor in tensors[1:])
        whole = (len(lengths), 2, RAGGED, RAGGED)
        shape, offset = (1, 2, queries, keys), (example, 0, 0, 0)
        kept = random.keep_mask(KEY % 2**64, shape, P, offset=offset, full_shape=whole)
        options = {"dropout_p": P, "is_causal": is_causal, "dropout_mask": torch.from_numpy(kept)}
        outputs.append(scaled_dot_product_attention(query, key, value, **options))
    want = torch.cat(outputs, 2)
    gradients = torch.autograd.grad(want, tensors, gradient_of(want))
    for one, other in zip(found, (want, *gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
def test_not_a_number_stays_where_it_is_kept() -> None:
    tensors = inputs()
    with torch.no_grad():
        tensors[0][0, 0, 3] = torch.nan
    output = by_tiles(tensors, mask_of(), Weights(False, 21, 37), False)[0]
    assert output[0, 0, 3].isnan().all()
    assert not output[0, 0, :3].isnan().any()
