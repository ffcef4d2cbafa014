"""Attention where lengths vary: every example has its place in the mask, whatever stands beside it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.functional import attention_tiles, scaled_dot_product_attention
from dropkit.functional.examples import NumberedKey

KEY = 0x720F_0000_1234_5678
QUERIES, KEYS = (5, 1, 12), (7, 3, 12)
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def jagged(lengths: tuple[int, ...], heads: int = 2, width: int = 8, seed: int = 0) -> Tensor:
    values = torch.randn(sum(lengths), heads, width, generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.nested.nested_tensor_from_jagged(values.requires_grad_(), offsets).transpose(1, 2)


def tensors(own: int = 2) -> list[Tensor]:
    query, key = jagged(QUERIES), jagged(KEYS, own, seed=1)
    return [query, key, torch.nested.nested_tensor_from_jagged(torch.randn(own, 22, 8), key.offsets(), jagged_dim=2)]


def one_by_one(given: list[Tensor], keep: list[torch.Tensor], **options: Any) -> list[Tensor]:
    parts = zip(*(tensor.unbind() for tensor in given), keep, strict=True)
    return [scaled_dot_product_attention(*each, dropout_mask=mask, **options) for *each, mask in parts]


def masks(p: float, first: Any = (0, 1, 2), streams: Any = (0, 0, 0)) -> list[Tensor]:
    found = []
    for i, (queries, keys) in enumerate(zip(QUERIES, KEYS, strict=True)):
        place = {"offset": (first[i], 0, 0, 0), "full_shape": (max(first) + 1, 2, 2**32, 2**32)}
        keep = random.keep_mask(KEY, (1, 2, queries, keys), p, stream=streams[i], **place)
        found.append(torch.from_numpy(keep)[0])
    return found


@pytest.fixture(params=["by parts", "by tiles"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run it example by example; or all in one, by Triton's interpreter."""
    calls = []
    if request.param == "by tiles":
        pytest.importorskip("triton")
        from dropkit.kernels import triton_attention

        tile = triton_attention.Tile(16, 32, 4, 1)
        monkeypatch.setattr(triton_attention, "tile_of", lambda *_: tile)
        monkeypatch.setattr(attention_tiles, "is_served", lambda *_: True)

        def attention(*arguments: Any) -> tuple[Tensor, Tensor]:
            calls.append(arguments)
            return triton_attention.attention(*arguments)

        monkeypatch.setattr(attention_tiles.operators, "attention", attention)
        for name in ("attention_backward", "attention_bits"):
            monkeypatch.setattr(attention_tiles.operators, name, getattr(triton_attention, name))
    yield
    assert len(calls) == (request.param == "by tiles")


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("own", [2, 1])
def test_examples_are_those_of_dense_attention(way: None, is_causal: bool, own: int) -> None:
    given = tensors(own)
    options: dict[str, Any] = {"dropout_p": 0.3, "is_causal": is_causal, "enable_gqa": own != 2}
    found = scaled_dot_product_attention(*given, dropout_key=KEY, **options)
    wanted = one_by_one(given, masks(0.3), **options)
    assert found.shape[:2] == (3, 2)
    for one, other in zip(found.unbind(), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.values().sin().sum(), given[:1])
    want = torch.autograd.grad(sum(each.sin().sum() for each in wanted), given[:1])[0]
    torch.testing.assert_close(gradient.values(), want.values(), rtol=1e-5, atol=1e-5)


def test_examples_have_numbers(way: None) -> None:
    given = tensors()
    key = NumberedKey(KEY, ((9, 1), (2, 2)), (4,))
    found = scaled_dot_product_attention(*given, dropout_p=0.3, dropout_key=key)
    for one, other in zip(
        found.unbind(), one_by_one(given, masks(0.3, (9, 2, 3), (4, 4, 4)), dropout_p=0.3), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_examples_have_keys_of_their_own(way: None) -> None:
    given = tensors()
    found = scaled_dot_product_attention(*given, dropout_p=0.3, dropout_key=torch.tensor([KEY, KEY, 3]))
    for i in range(2):
        place = {"full_shape": (2, 2**32, 2**32), "offset": (0, 0, 0)}
        keep = torch.from_numpy(random.keep_mask(KEY, (2, QUERIES[i], KEYS[i]), 0.3, **place))
        want = scaled_dot_product_attention(*(each.unbind()[i] for each in given), dropout_p=0.3, dropout_mask=keep)
        torch.testing.assert_close(found.unbind()[i], want, rtol=1e-5, atol=1e-5)


def test_nothing_is_dropped_in_evaluation() -> None:
    given = tensors()
    keep = [torch.ones(2, *each, dtype=torch.bool) for each in zip(QUERIES, KEYS, strict=True)]
    for options in ({"training": False, "dropout_p": 0.3}, {"dropout_p": 0.0}):
        found = scaled_dot_product_attention(*given, **options)
        for one, other in zip(found.unbind(), one_by_one(given, keep), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    query, key, value = tensors()
    with pytest.raises(ArgumentError, match="`attn_mask` must be left out where the query is nested"):
        scaled_dot_product_attention(query, key, value, torch.ones(1, dtype=torch.bool), 0.3)
    with pytest.raises(ArgumentError, match="`return_dropout_mask` must be left out"):
        scaled_dot_product_attention(query, key, value, return_dropout_mask=True)
    with pytest.raises(ArgumentError, match="`key` must be of 3 examples like the query"):
        scaled_dot_product_attention(query, jagged((3, 4)), jagged((3, 4)), dropout_p=0.3)
    with pytest.raises(ArgumentError, match="`value` must be of as many rows as there are keys"):
        scaled_dot_product_attention(query, key, jagged(QUERIES), dropout_p=0.3)
