"""The layers of words: thin over the functions, and an embedding table by arguments, parameters and state."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.functional import embedding_dropout, word_dropout
from dropkit.nn import EmbeddingDropout, WordDropout

KEY = 0x5EED_0000_0000_0007
TOKENS = torch.tensor([[5, 9, 2, 5, 0], [7, 5, 7, 0, 0]])


def table(**options: Any) -> EmbeddingDropout:
    torch.manual_seed(2)
    return EmbeddingDropout(10, 3, **{"p": 0.5, **options})


@pytest.mark.parametrize("training", [True, False])
def test_word_dropout_is_the_function(training: bool) -> None:
    layer = WordDropout(0.4, unknown=1, spared=[0]).train(training)
    found, mask = layer(TOKENS, key=KEY, return_mask=True)
    want, other = word_dropout(TOKENS, 0.4, training, unknown=1, spared=[0], key=KEY, return_mask=True)
    assert torch.equal(found, want)
    assert torch.equal(mask, other)
    assert repr(layer) == "WordDropout(p=0.4, unknown=1, spared=(0,))"
    assert repr(WordDropout()) == "WordDropout(p=0.3)"
    with pytest.raises(TypeError, match="of an integer type with `unknown`, got torch"):
        layer(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"of a floating or complex type, got torch\.int64 .*Tokens need `unknown`"):
        WordDropout()(TOKENS)


def test_the_table_is_pytorchs() -> None:
    torch.manual_seed(2)
    theirs = torch.nn.Embedding(10, 3)
    ours = table()
    assert isinstance(ours, torch.nn.Embedding)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.eval()(TOKENS), theirs(TOKENS))
    order = [name for name, p in inspect.signature(EmbeddingDropout).parameters.items() if p.kind is not p.KEYWORD_ONLY]
    assert order == list(inspect.signature(torch.nn.Embedding).parameters)


@pytest.mark.parametrize("wrong", [{"key": -1}, {"stream": -1}, {"mask": torch.ones(2, 3) > 0}, {"return_mask": 1}])
def test_a_call_with_wrong_arguments_leaves_a_bounded_table_as_it_is(wrong: dict[str, Any]) -> None:
    layer = table(max_norm=0.1)
    before, state = layer.weight.detach().clone(), torch.get_rng_state()
    with pytest.raises((ArgumentError, TypeError)):
        layer(TOKENS, **wrong)
    assert torch.equal(layer.weight, before)
    found = layer(TOKENS, key=KEY)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, embedding_dropout(layer.weight[TOKENS], TOKENS, 10, 0.5, key=KEY))
    assert layer.weight[TOKENS].norm(dim=-1).max() <= 0.1 + 1e-6


def test_evaluation_draws_nothing_and_a_rate_of_zero_is_the_plain_lookup() -> None:
    layer, state = table(), torch.get_rng_state()
    plain = layer.eval()(TOKENS)
    assert torch.equal(table(p=0.0)(TOKENS), plain)
    torch.set_rng_state(state)
    layer(TOKENS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"per": "batch"}, {"batch_first": False}], ids=str)
def test_it_is_the_lookup_and_the_function(options: dict[str, Any]) -> None:
    layer = table(**options)
    plain = torch.nn.functional.embedding(TOKENS, layer.weight)
    found, mask = layer(TOKENS, key=KEY, return_mask=True, stream=3)
    want = embedding_dropout(plain, TOKENS, 10, 0.5, key=KEY, stream=3, **options)
    assert torch.equal(found, want)
    assert torch.equal(layer(TOKENS, mask=mask), found)
    torch.manual_seed(1)
    first = layer(TOKENS)
    assert not torch.equal(layer(TOKENS), first)
    torch.manual_seed(1)
    assert torch.equal(layer(TOKENS), first)


def test_rows_of_the_table_are_dropped() -> None:
    """The same as a lookup in a table whose rows were zeroed and scaled by hand."""
    layer = table(per="batch")
    found, mask = layer(TOKENS, key=KEY, return_mask=True)
    dropped = torch.where(mask[:, None], layer.weight * 2, 0.0)
    assert torch.equal(found, torch.nn.functional.embedding(TOKENS, dropped))
    (gradient,) = torch.autograd.grad(found.sum(), layer.weight)
    (want,) = torch.autograd.grad(torch.nn.functional.embedding(TOKENS, dropped).sum(), layer.weight)
    assert torch.equal(gradient, want)
    used = torch.zeros(10, dtype=torch.bool).index_fill(0, TOKENS.flatten(), True)
    assert torch.equal(gradient.abs().sum(1) > 0, used & mask)


def test_padding_sparse_gradients_and_max_norm() -> None:
    layer = table(padding_idx=0, sparse=True)
    assert (layer(TOKENS)[TOKENS == 0] == 0).all()
    layer(TOKENS, key=KEY).sum().backward()
    assert layer.weight.grad.is_sparse
    dense = table(padding_idx=0)
    dense(TOKENS, key=KEY).sum().backward()
    assert torch.equal(layer.weight.grad.to_dense(), dense.weight.grad)
    assert (dense.weight.grad[0] == 0).all()
    bounded = table(max_norm=0.1)
    found = bounded(TOKENS, key=KEY).detach()
    norms = found.norm(dim=-1)
    kept = norms > 0
    assert kept.any()
    torch.testing.assert_close(norms[kept], torch.full_like(norms[kept], 0.2))  # 0.1, scaled by 2
    assert (bounded.weight[TOKENS.flatten()].norm(dim=-1) <= 0.1 + 1e-6).all()


def test_from_pretrained() -> None:
    weights = torch.randn(10, 3)
    layer = EmbeddingDropout.from_pretrained(weights, freeze=True)
    assert isinstance(layer, EmbeddingDropout)
    assert layer.p == 0.1
    assert not layer.weight.requires_grad
    layer.p = 0.5
    found = layer(TOKENS, key=KEY)
    assert torch.equal(found, table(_weight=weights)(TOKENS, key=KEY))


def test_switch_copies_and_representation() -> None:
    layer = table(padding_idx=0, per="batch")
    training, evaluation = layer(TOKENS, key=KEY), layer.eval()(TOKENS)
    layer.switch = "on"
    assert torch.equal(layer(TOKENS, key=KEY), training)
    layer.train().switch = "off"
    assert torch.equal(layer(TOKENS, key=KEY), evaluation)
    layer.switch = "auto"
    assert repr(layer) == "EmbeddingDropout(10, 3, padding_idx=0, p=0.5, per='batch')"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301  # our own bytes
        assert repr(twin) == repr(layer)
        assert torch.equal(twin(TOKENS, key=KEY), training)


@pytest.mark.parametrize("build", [table, lambda **o: WordDropout(o["p"], unknown=1)])
def test_a_rate_that_moves_compiles_once_and_changes_no_state(build: Any) -> None:
    layer = build(p=0.5)
    before = list(layer.state_dict())
    layer.follow()
    assert list(layer.state_dict()) == before
    graphs = CompileCounter()
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    for step, p in enumerate((0.1, 0.5, 1.0, 0.25)):
        layer.p = p
        torch.testing.assert_close(compiled(TOKENS, key=torch.tensor(step)), build(p=p)(TOKENS, key=step))
    assert graphs.frame_count == 1


def test_export_and_functional_call() -> None:
    layer = table().eval()
    torch.testing.assert_close(torch.export.export(layer, (TOKENS,)).module()(TOKENS), layer(TOKENS))
    layer.train()
    weight = layer.weight.detach().double().requires_grad_()

    def call(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (TOKENS,), {"key": KEY})

    assert torch.autograd.gradcheck(call, weight)


def test_a_generator_of_its_own_and_wrong_rates() -> None:
    layers = [table(generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    state = torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(layers[0](TOKENS), layers[1](TOKENS))
    assert torch.equal(torch.get_rng_state(), state)
    for layer in (table(), dropkit.nn.WordDropout()):
        with pytest.raises(ArgumentError, match=f"^{type(layer).__name__}: `p` must be a number in"):
            layer.p = 1.5


@pytest.mark.parametrize(
    ("sizes", "name"), [((9.5, 5), "num_embeddings"), ((-1, 5), "num_embeddings"), ((9, "5"), "embedding_dim")]
)
def test_sizes_that_are_none(sizes: tuple[Any, Any], name: str) -> None:
    with pytest.raises(
        (ArgumentError, ArgumentTypeError), match=rf"EmbeddingDropout: `{name}` must be an integer in \[0, 2\*\*31\)"
    ):
        dropkit.nn.EmbeddingDropout(*sizes)


def test_a_table_on_another_device() -> None:
    layer = dropkit.nn.EmbeddingDropout(4, 2, device="meta")
    with pytest.raises(ArgumentError, match="`input` must be on the table's device meta, got device"):
        layer(torch.tensor([1, 2]))
    assert layer(torch.tensor([1, 2], device="meta"), key=3).shape == (2, 2)


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_without_a_row(token: int) -> None:
    layer = dropkit.nn.EmbeddingDropout(4, 2)
    with pytest.raises(ArgumentError, match=rf"EmbeddingDropout: `input` must be numbers in \[0, 4\), got {token} "):
        layer(torch.tensor([0, token]))
