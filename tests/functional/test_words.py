"""Words dropped token by token and type by type: which, what becomes of them, moments, addresses and gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dropkit import random
from dropkit.errors import ArgumentError
from dropkit.functional import embedding_dropout, word_dropout
from tests.helpers.contract import all_masks, chances, realised, scale

KEY = 0x5EED_0000_0000_0007
TOKENS = torch.tensor([[5, 9, 2, 5, 0], [7, 5, 7, 0, 0]])
EMBEDDED = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def drawn(shape: tuple[int, ...], p: float, key: int = KEY) -> Tensor:
    return torch.from_numpy(random.keep_mask(key, shape, p))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("spared", [(), (0,), [0, 5]])
def test_tokens_become_the_unknown_word_unless_they_are_spared(dtype: torch.dtype, spared: Any) -> None:
    tokens = TOKENS.to(dtype)
    keep = drawn((2, 5), 0.6)
    for word in spared:
        keep = keep | (word == TOKENS)
    found, mask = word_dropout(tokens, 0.6, unknown=1, spared=spared, key=KEY, return_mask=True)
    assert torch.equal(mask, keep)
    assert found.dtype == dtype
    assert torch.equal(found.long(), torch.where(keep, TOKENS, 1))
    assert (found == 1).any()
    assert torch.equal(word_dropout(tokens, 0.6, unknown=1, spared=spared, mask=drawn((2, 5), 0.6)), found)


def test_spared_tokens_survive_a_rate_of_one_and_all_others_do_not() -> None:
    found = word_dropout(TOKENS, 1.0, unknown=1, spared=[0])
    assert torch.equal(found, torch.where(TOKENS == 0, 0, 1))
    kept = word_dropout(TOKENS, 1.0, unknown=-4, mask=torch.ones_like(TOKENS, dtype=torch.bool))
    assert (kept == -4).all()


def test_whole_embeddings_become_zeros_and_nothing_is_scaled() -> None:
    found, mask = word_dropout(EMBEDDED, 0.6, key=KEY, return_mask=True)
    assert torch.equal(mask, drawn((2, 5, 1), 0.6))
    assert torch.equal(found, torch.where(mask, EMBEDDED, 0))
    x = EMBEDDED.clone()
    x[~mask.expand_as(x)] = math.nan
    x.requires_grad_()
    out = word_dropout(x, 0.6, key=KEY)
    assert torch.equal(out, found)
    (gradient,) = torch.autograd.grad(-out.sum(), x)
    assert torch.equal(gradient, -mask.double().expand_as(x))
    assert not gradient[~mask.expand_as(x)].signbit().any()


@pytest.mark.parametrize("p", [0.1, 0.5, 1 - 2.0**-32])
def test_moments_over_all_masks(p: float) -> None:
    x, masks = EMBEDDED[0], all_masks(5)
    found = word_dropout(x.expand(32, 5, 3), p, mask=masks[:, :, None])
    r, chance = realised(p), chances(masks, p)
    mean = torch.einsum("m,mtf->tf", chance, found)
    torch.testing.assert_close(mean, (1 - r) * x, rtol=1e-12, atol=0)
    variance = torch.einsum("m,mtf->tf", chance, (found - mean) ** 2)
    torch.testing.assert_close(variance, r * (1 - r) * x**2, rtol=1e-12, atol=0)


def test_slices_have_keys_and_rates_of_their_own() -> None:
    keys, rates = torch.tensor([3, 4]), torch.tensor([0.2, 0.8], dtype=torch.float64)
    for x, options, shape in ((TOKENS, {"unknown": 1}, (5,)), (EMBEDDED, {}, (5, 1))):
        _, mask = word_dropout(x, rates, key=keys, return_mask=True, **options)
        for row, (key, p) in enumerate(((3, 0.2), (4, 0.8))):
            assert torch.equal(mask[row], drawn(shape, p, key))
    with pytest.raises(ArgumentError, match=r"`key` must be of shape \(\), got \(3,\)"):
        word_dropout(EMBEDDED[0, 0], key=torch.arange(3))


def test_evaluation_and_a_rate_of_zero_are_the_input_itself() -> None:
    state = torch.get_rng_state()
    for p, training in ((0.0, True), (0.5, False)):
        for x, options in ((TOKENS, {"unknown": 1}), (EMBEDDED, {})):
            found, mask = word_dropout(x, p, training, return_mask=True, **options)
            assert found is x
            assert mask.all()
            assert mask.shape == (x.shape if options else (2, 5, 1))
        found, mask = embedding_dropout(EMBEDDED, TOKENS, 10, p, training, return_mask=True)
        assert found is EMBEDDED
        assert mask.shape == (2, 10)
        assert mask.all()
    assert torch.equal(torch.get_rng_state(), state)


def by_hand(mask: Tensor, p: float, batch_first: bool = True) -> Tensor:
    """Dropout of the rows of a table for each sequence, looked up token by token."""
    out = torch.zeros_like(EMBEDDED)
    for n in range(2):
        for t in range(5):
            kept = mask[n, TOKENS[n, t]] if mask.dim() == 2 else mask[TOKENS[n, t]]
            if kept:
                out[n, t] = EMBEDDED[n, t] * scale(p)
    return out


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("per", ["sequence", "batch"])
def test_all_occurrences_of_a_word_vanish_together(per: str, batch_first: bool) -> None:
    x, tokens = (EMBEDDED, TOKENS) if batch_first else (EMBEDDED.movedim(1, 0), TOKENS.T)
    options = {"per": per, "batch_first": batch_first}
    found, mask = embedding_dropout(x, tokens, 10, 0.5, key=KEY, return_mask=True, **options)
    assert torch.equal(mask, drawn((2, 10) if per == "sequence" else (10,), 0.5))
    want = by_hand(mask, 0.5)
    assert torch.equal(found, want if batch_first else want.movedim(1, 0))
    assert torch.equal(embedding_dropout(x, tokens, 10, 0.5, mask=mask, **options), found)
    if per == "sequence":
        assert not torch.equal(mask[0], mask[1])
        shared = embedding_dropout(x, tokens, 10, 0.5, mask=mask[:1], **options)
        assert torch.equal(shared, embedding_dropout(x, tokens, 10, 0.5, mask=mask[0], per="batch"))


def test_one_sequence_and_sequences_of_several_axes() -> None:
    found, mask = embedding_dropout(EMBEDDED[0], TOKENS[0], 10, 0.5, key=KEY, return_mask=True)
    assert torch.equal(mask, drawn((10,), 0.5))
    assert torch.equal(found, by_hand(mask, 0.5)[0])
    deep, tokens = EMBEDDED.repeat(1, 2, 1).reshape(2, 2, 5, 3), TOKENS.repeat(1, 2).reshape(2, 2, 5)
    found, mask = embedding_dropout(deep, tokens, 10, 0.5, key=KEY, return_mask=True)
    assert mask.shape == (2, 10)
    assert torch.equal(found[:, 0], by_hand(mask, 0.5))
    assert torch.equal(found[:, 1], by_hand(mask, 0.5))


@pytest.mark.parametrize("batch_first", [True, False])
def test_sequences_have_keys_and_rates_of_their_own(batch_first: bool) -> None:
    keys, rates = torch.tensor([3, 4]), torch.tensor([0.2, 0.8], dtype=torch.float64)
    x, tokens = (EMBEDDED, TOKENS) if batch_first else (EMBEDDED.movedim(1, 0), TOKENS.T)
    found, mask = embedding_dropout(x, tokens, 10, rates, key=keys, return_mask=True, batch_first=batch_first)
    found = found if batch_first else found.movedim(0, 1)
    for row, (key, p) in enumerate(((3, 0.2), (4, 0.8))):
        assert torch.equal(mask[row], drawn((10,), p, key))
        torch.testing.assert_close(found[row], by_hand(mask, p)[row], rtol=1e-12, atol=0)
    with pytest.raises(ArgumentError, match=r"`key` must be of shape \(\)"):
        embedding_dropout(EMBEDDED, TOKENS, 10, key=keys, per="batch")


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_embedding_moments_and_covariance_over_all_masks(p: float) -> None:
    tokens, x = torch.tensor([0, 2, 0, 1]), EMBEDDED[0, :4, 0]
    masks = all_masks(3)
    found = torch.stack([embedding_dropout(x[:, None], tokens, 3, p, mask=mask)[:, 0] for mask in masks])
    chance, odds = chances(masks, p), realised(p) / (1 - realised(p))
    mean = chance @ found
    torch.testing.assert_close(mean, x, rtol=1e-12, atol=0)
    covariance = torch.einsum("m,mi,mj->ij", chance, found - x, found - x)
    same = tokens[:, None] == tokens
    torch.testing.assert_close(covariance, same.double() * odds * torch.outer(x, x), rtol=1e-12, atol=1e-15)


def test_at_a_rate_of_one_all_is_zero_whatever_it_was() -> None:
    bad = EMBEDDED.clone()
    bad[0, 0, 0] = math.nan
    bad.requires_grad_()
    for options in ({}, {"mask": torch.ones(2, 10, dtype=torch.bool)}):
        found, mask = embedding_dropout(bad, TOKENS, 10, 1.0, return_mask=True, **options)
        assert torch.equal(found, torch.zeros_like(found))
        assert not mask.any()
        assert torch.equal(torch.autograd.grad(found.sum(), bad)[0], torch.zeros_like(bad))


def test_derivatives_and_transforms() -> None:
    x = EMBEDDED.clone().requires_grad_()
    for operation in (
        lambda v: word_dropout(v, 0.4, key=KEY),
        lambda v: embedding_dropout(v, TOKENS, 10, 0.4, key=KEY),
        lambda v: embedding_dropout(v, TOKENS, 10, 0.4, key=KEY, per="batch", batch_first=False),
    ):
        assert torch.autograd.gradcheck(operation, x)
        assert torch.autograd.gradgradcheck(operation, x)
        several = torch.stack([EMBEDDED, 2 * EMBEDDED])
        torch.testing.assert_close(torch.func.vmap(operation)(several)[1], operation(2 * EMBEDDED))
    both = torch.func.vmap(lambda t: word_dropout(t, 0.4, unknown=1, key=KEY))(torch.stack([TOKENS, TOKENS + 1]))
    assert torch.equal(both[1], word_dropout(TOKENS + 1, 0.4, unknown=1, key=KEY))


def test_compiled_code_gives_the_same_without_compiling_again() -> None:
    def run(tokens: Tensor, x: Tensor, p: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (word_dropout(tokens, p, unknown=1, spared=(0,), key=key), word_dropout(x, p, key=key),
                embedding_dropout(x, tokens, 10, p, key=key))  # fmt: skip

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for p, key in ((0.2, 3), (0.7, KEY), (1.0, 5)):
        values = TOKENS, EMBEDDED, torch.tensor(p, dtype=torch.float64), torch.tensor(key)
        with torch.compiler.set_stance("default" if key == 3 else "fail_on_recompile"):
            for found, want in zip(compiled(*values), run(*values), strict=True):
                torch.testing.assert_close(found, want)


def test_kept_counts_agree_with_the_rate() -> None:
    """Of 100,000 tokens and of as many words; each count is off by 5 deviations in 6e-7 of all keys, and is fixed."""
    count, p = 100_000, 0.3
    bound = 5 * math.sqrt(count * p * (1 - p))
    tokens = torch.arange(count)
    dropped = (word_dropout(tokens, p, unknown=-1, key=KEY) == -1).sum()
    assert abs(dropped - count * p) < bound
    gone = (embedding_dropout(torch.ones(count, 1), tokens, count, p, key=KEY) == 0).sum()
    assert abs(gone - count * p) < bound
