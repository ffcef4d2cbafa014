"""Wrong arguments of the layers that attend."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY, STREAM, Integer, Number
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, of_one, tensors

SIZE = Integer(1, 2**31 - 1, "[1, 2**31)")
EPS = Number(0.0, float("inf"), open_low=True, open_high=True)
X = torch.ones(2, 3, 8)
MASK = "In a bool mask True is left out of attention; numbers are added to the scores."


def sizes(*names: str) -> Iterator[Wrong]:
    for name in names:
        yield from by_constraint(name, SIZE)


def flags(*names: str) -> Iterator[Wrong]:
    for name in names:
        yield from by_type(name, FLAGS, "True or False")


def made() -> Iterator[Wrong]:
    yield from by_type("device", (1.5, [0], True), "a torch.device, its name, or None")
    yield Wrong("device", "nowhere", ArgumentError, "a torch.device, its name, or None")
    yield from by_type("dtype", ("float32", 3, torch.int64), "a floating or complex torch.dtype, or None")
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def attention() -> Iterator[Wrong]:
    yield from sizes("embed_dim", "num_heads", "kdim", "vdim")
    yield Wrong("embed_dim", 9, ArgumentError, "a multiple of num_heads, 2")
    yield from by_constraint("dropout", PROBABILITY)
    yield from flags("bias", "add_bias_kv", "add_zero_attn", "batch_first")
    yield from made()


def layer() -> Iterator[Wrong]:
    yield from sizes("d_model", "nhead", "dim_feedforward")
    yield Wrong("d_model", 9, ArgumentError, "a multiple of nhead, 2")
    for name in ("dropout", "attention_p", "sublayer_p", "feedforward_p"):
        yield from by_constraint(name, PROBABILITY)
    for value in ("silu", "", None, 3):
        yield Wrong("activation", value, ArgumentError, "'relu', 'gelu' or a callable")
    yield from by_constraint("layer_norm_eps", EPS)
    yield from flags("batch_first", "norm_first", "bias")
    yield from made()


def tensor(name: str, ranks: str) -> Iterator[Wrong]:
    yield from by_type(name, (None, 1.0, [1.0], "x"), "a torch.Tensor")
    for value in (X.int(), X.cfloat()):
        yield Wrong(name, value, ArgumentTypeError, "of a real floating type", shown=(value.dtype,))
    sparse = X.to_sparse()
    remedy = "Call to_dense() first."
    yield Wrong(name, sparse, ArgumentTypeError, "a dense or nested tensor", remedy, shown=(sparse.layout,))
    for value in (X[0, 0], X[None]) if name in ("query", "src") else (X[0], X[None]):
        yield Wrong(name, value, ArgumentError, ranks, shown=(tuple(value.shape),))
    yield Wrong(name, X[..., :7], ArgumentError, "of width 8", shown=((2, 3, 7),))


def masks(attn_mask: str, padding: str) -> Iterator[Wrong]:
    for name, shapes, bad in (
        (attn_mask, "(3, 3) or (4, 3, 3)", ((3,), (2, 3), (2, 3, 3), (1, 3, 3))),
        (padding, "(2, 3)", ((3,), (3, 2), (1, 3))),
    ):
        yield from by_type(name, (3, [True], "causal"), "a torch.Tensor, or None")
        whole = torch.ones(2, 3, dtype=torch.int64)
        yield Wrong(name, whole, ArgumentTypeError, "bool or of a real floating type", MASK, shown=(whole.dtype,))
        for shape in bad:
            mask = torch.zeros(shape, dtype=torch.bool)
            yield Wrong(name, mask, ArgumentError, f"of shape {shapes}", shown=(shape,))
    remedy = (
        f"It says that {attn_mask} is causal: pass torch.nn.Transformer.generate_square_subsequent_mask(length) too."
    )
    yield Wrong("is_causal", True, ArgumentError, f"False where {attn_mask} is None", remedy)


def keys(name: str, prefix: str, of: str) -> Iterator[Wrong]:
    yield from of_one(by_constraint(name, KEY))
    yield from (wrong._replace(name=name) for wrong in tensors(prefix, of) if wrong.name == "key")
    yield from of_one(by_constraint("stream", STREAM))
    yield from (wrong for wrong in tensors(prefix, of) if wrong.name == "stream")


def attending() -> Iterator[Wrong]:
    yield from tensor("query", "of two axes, unbatched, or three")
    yield from tensor("key", "of three as the query")
    yield from tensor("value", "of three as the query")
    rule, remedy = "of the query's batch size 2 on axis 0", "batch_first says which axis that is."
    yield Wrong("key", X[:1], ArgumentError, rule, remedy, shown=((1, 3, 8),))
    rule = "of the key's lengths (2, 3) on the axes before the last"
    yield Wrong("value", X[:, :2], ArgumentError, rule, shown=((2, 2, 8),))
    yield from masks("attn_mask", "key_padding_mask")
    yield from flags("need_weights", "average_attn_weights", "is_causal", "return_dropout_mask")
    yield from keys("dropout_key", "dropout_", "query")
    yield Wrong("dropout_mask", 1, ArgumentTypeError, "a bool tensor", "True is kept.")
    rule = "of shape (2, 2, 3, 3), or with length 1 on axes that share"
    for shape in ((2, 3, 3), (2, 2, 3, 4)):
        yield Wrong("dropout_mask", torch.ones(shape, dtype=torch.bool), ArgumentError, rule, shown=(shape,))
    mask, rule = torch.ones(2, 2, 3, 3, dtype=torch.bool), "left out where `dropout_key` is given"
    remedy = "`dropout_key` draws a mask: leave one of them out."
    yield Wrong("dropout_mask", mask, ArgumentError, rule, remedy, (mask.dtype,), beside={"dropout_key": 3})
    rule, beside = "left out where a mask is given", {"dropout_mask": mask}
    yield Wrong("stream", 3, ArgumentError, rule, "A mask has no address.", beside=beside)


def encoding() -> Iterator[Wrong]:
    yield from tensor("src", "of two axes, unbatched, or three")
    yield from masks("src_mask", "src_key_padding_mask")
    yield from flags("is_causal", "return_masks")
    yield from keys("key", "", "src")
    yield from by_type("masks", (3, [X], X), "a dict of masks by name")
    good, rule = torch.ones(2, 3, 8, dtype=torch.bool), "a dict with names of this module's masks"
    names = "They are ['self_attn', 'dropout1', 'dropout', 'dropout2']."
    yield Wrong("masks", {"norm1": good}, ArgumentError, rule, names, ("norm1",))
    for value, shown in ((good.float(), torch.float32), ([True], [True])):
        wrong, label = {"dropout1": value}, "masks['dropout1']"
        yield Wrong("masks", wrong, ArgumentTypeError, "a bool tensor", "True is kept.", (shown,), label)
    for name, whole in (("self_attn", (2, 2, 3, 3)), ("dropout1", (2, 3, 8)), ("dropout", (2, 3, 16))):
        for shape in (whole[1:], (3, *whole[1:]), (*whole[:-1], 2)):
            wrong, rule = {name: torch.ones(shape, dtype=torch.bool)}, f"of shape {whole}, or with length 1 on axes"
            label = f"masks['{name}']"
            yield Wrong("masks", wrong, ArgumentError, f"{rule} that share", shown=(shape,), label=label)
    meta = good.to("meta")
    wrong = {"dropout2": meta}
    rule = "on the input's device cpu"
    yield Wrong("masks", wrong, ArgumentError, rule, shown=(meta.device,), label="masks['dropout2']")


ATTENTION = dropkit.nn.MultiheadAttention(8, 2, 0.1, batch_first=True)
LAYER = dropkit.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
GOOD: dict[str, dict[str, Any]] = {
    "dropkit.nn.MultiheadAttention": {"embed_dim": 8, "num_heads": 2},
    "dropkit.nn.MultiheadAttention.forward": {"self": ATTENTION, "query": X, "key": X, "value": X},
    "dropkit.nn.TransformerEncoderLayer": {"d_model": 8, "nhead": 2},
    "dropkit.nn.TransformerEncoderLayer.forward": {"self": LAYER, "src": X},
}
CASES = {
    "dropkit.nn.MultiheadAttention": list(attention()),
    "dropkit.nn.MultiheadAttention.forward": list(attending()),
    "dropkit.nn.TransformerEncoderLayer": list(layer()),
    "dropkit.nn.TransformerEncoderLayer.forward": list(encoding()),
}
