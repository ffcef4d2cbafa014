"""Wrong arguments of dropout of words."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY, Choice, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, factory, inputs, of_one, source, tensors

TOKENS, X = torch.tensor([[1, 2, 0], [3, 1, 1]]), torch.ones(2, 3, 4)
WORD, WORDS = Integer(-(2**63), 2**63 - 1, "[-2**63, 2**63)"), Integer(0, 2**34, "[0, 2**34]")
PER = Choice(("sequence", "batch"))
UNKNOWN = {"unknown": 1}


def words() -> Iterator[Wrong]:
    yield from by_constraint("unknown", WORD)
    for value in (3, "ab", None, {1}):
        yield Wrong("spared", value, ArgumentTypeError, "a sequence of tokens", beside=UNKNOWN)
    for wrong in by_constraint("spared[1]", WORD):
        yield Wrong("spared", (0, wrong.value), wrong.error, wrong.rule, wrong.remedy, (wrong.value,), wrong.name,
                    beside=UNKNOWN)  # fmt: skip
    remedy = "Embeddings do not tell their words."
    yield Wrong("spared", (0,), ArgumentError, "empty without `unknown`", remedy)


def embedded(where: str) -> Iterator[Wrong]:
    for wrong in inputs():
        whole = isinstance(wrong.value, torch.Tensor) and wrong.value.dtype in (torch.int64, torch.int32, torch.uint8)
        if not (whole and where == "word_dropout"):
            yield wrong
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    rule = "a dense tensor, not a nested one"
    remedy = "Apply it to the values of a jagged tensor, or to its parts one by one."
    yield Wrong("input", nested, ArgumentTypeError, rule, remedy, shown=(nested.layout,))
    rule = "of one axis or more, the last of them the features"
    yield Wrong("input", torch.ones(()), ArgumentError, rule, shown=((),))


def word_inputs() -> Iterator[Wrong]:
    yield from embedded("word_dropout")
    rule, remedy = "of a floating or complex type", "Tokens need `unknown`."
    yield Wrong("input", TOKENS, ArgumentTypeError, rule, remedy, (TOKENS.dtype,))


def masks(*shape: int) -> Iterator[Wrong]:
    for value, shown in ((1, 1), ([True], [True]), (torch.ones(shape), torch.float32)):
        yield Wrong("mask", value, ArgumentTypeError, "a bool tensor", "True is kept.", shown=(shown,))
    for unfit in (shape[1:], (*shape[:-1], 7), (*shape, 1)):
        rule = f"of shape {shape}, or with length 1 on axes that share"
        yield Wrong("mask", torch.ones(unfit, dtype=torch.bool), ArgumentError, rule, shown=(unfit,))
    mask = torch.ones(shape, dtype=torch.bool)
    rule, remedy = "left out where `key` is given", "`key` draws a mask: leave one of them out."
    yield Wrong("mask", mask, ArgumentError, rule, remedy, shown=(mask.dtype,), beside={"key": 3})


def word_function() -> Iterator[Wrong]:
    yield from word_inputs()
    tokens = {"unknown": 1}
    rule = "of an integer type with `unknown`"
    yield Wrong("input", X, ArgumentTypeError, rule, shown=(X.dtype,), beside=tokens)
    yield Wrong("input", [1], ArgumentTypeError, "a torch.Tensor", beside=tokens)
    sparse = TOKENS.to_sparse()
    rule = "a dense tensor, not a sparse or nested one"
    yield Wrong("input", sparse, ArgumentTypeError, rule, shown=(sparse.layout,), beside=tokens)
    narrow = {"input": TOKENS.byte()}
    yield Wrong("unknown", 300, ArgumentError, "a number of torch.uint8", beside=narrow)
    for spared in ((0, 300), (0, -1)):
        yield Wrong("spared", spared, ArgumentError, "a number of torch.uint8", shown=(spared[1],), label="spared[1]",
                    beside=UNKNOWN | narrow)  # fmt: skip
    yield from words()
    yield from source()
    yield from masks(2, 3, 1)
    yield from by_type("return_mask", FLAGS, "True or False")


def embedding_function() -> Iterator[Wrong]:
    yield from embedded("embedding_dropout")
    yield from by_type("tokens", (None, [1], 3), "a torch.Tensor")
    yield Wrong("tokens", X, ArgumentTypeError, "of an integer type", shown=(X.dtype,))
    yield Wrong("tokens", TOKENS.T, ArgumentError, "of shape (2, 3)", shown=((3, 2),))
    meta = TOKENS.to("meta")
    yield Wrong("tokens", meta, ArgumentError, "on the input's device cpu", shown=(meta.device,))
    remedy = "Negative padding, such as -100, has no embedding: replace it first."
    for token in (-1, 5):
        yield Wrong("tokens", torch.full((2, 3), token), ArgumentError, "numbers in [0, 5)", remedy, shown=(token,))
    yield from by_constraint("words", WORDS)
    yield from by_constraint("per", PER)
    yield from by_type("batch_first", FLAGS, "True or False")
    yield from source()
    yield from masks(2, 5)
    yield from by_type("return_mask", FLAGS, "True or False")


def called(where: str) -> Iterator[Wrong]:
    wrongs = [*of_one(by_constraint("key", KEY)), *by_type("return_mask", FLAGS, "True or False")]
    for wrong in (*wrongs, *(wrong for wrong in tensors() if wrong.name != "p")):
        yield wrong._replace(where=where)


def word_layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from words()
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def embedding_layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_constraint("per", PER)
    yield from by_type("batch_first", FLAGS, "True or False")
    yield from factory()


def word_call() -> Iterator[Wrong]:
    for wrong in (*word_inputs(), *masks(2, 3, 1)):
        yield wrong._replace(where="word_dropout")
    yield from called("word_dropout")


def embedding_call() -> Iterator[Wrong]:
    yield from by_type("input", (None, [1], 3), "a torch.Tensor")
    for value in (TOKENS.float(), TOKENS.byte(), TOKENS > 0):
        yield Wrong("input", value, ArgumentTypeError, "of type torch.int64 or torch.int32", shown=(value.dtype,))
    for wrong in masks(2, 5):
        yield wrong._replace(where="embedding_dropout")
    yield from called("embedding_dropout")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.word_dropout": {"input": X},
    "dropkit.functional.embedding_dropout": {"input": X, "tokens": TOKENS, "words": 5},
    "dropkit.nn.WordDropout": {},
    "dropkit.nn.WordDropout.forward": {"self": dropkit.nn.WordDropout(), "input": X},
    "dropkit.nn.EmbeddingDropout": {"num_embeddings": 5, "embedding_dim": 4},
    "dropkit.nn.EmbeddingDropout.forward": {"self": dropkit.nn.EmbeddingDropout(5, 4, max_norm=0.1), "input": TOKENS},
}
CASES = {
    "dropkit.functional.word_dropout": list(word_function()),
    "dropkit.functional.embedding_dropout": list(embedding_function()),
    "dropkit.nn.WordDropout": list(word_layer()),
    "dropkit.nn.WordDropout.forward": list(word_call()),
    "dropkit.nn.EmbeddingDropout": list(embedding_layer()),
    "dropkit.nn.EmbeddingDropout.forward": list(embedding_call()),
}
HANDED_ON = {
    "dropkit.nn.EmbeddingDropout": {
        "num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
        "_weight", "_freeze",
    },
}  # fmt: skip
