"""Wrong arguments of dropout and of what is fused with it."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from dropkit._checks import PROBABILITY, Choice, Number
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import (
    FLAGS,
    Wrong,
    by_constraint,
    by_type,
    called,
    inputs,
    of_one,
    other,
    places,
    source,
    tensors,
)

SCALE_AT = Choice(("train", "eval"))
X = torch.ones(2, 3)


def function() -> Iterator[Wrong]:
    yield from called()
    yield from of_one(by_constraint("p", PROBABILITY))
    yield from (wrong for wrong in tensors() if wrong.name == "p")
    yield from (wrong for wrong in places() if wrong.name == "broadcast_dims")
    yield from by_type("training", FLAGS, "True or False")
    yield from by_type("inplace", FLAGS, "True or False")
    leaf = torch.ones(2, 3, requires_grad=True)
    rule, remedy = "False for a leaf that requires grad, or a view of one", "Call clone() first."
    yield Wrong("inplace", True, ArgumentError, rule, remedy, beside={"input": leaf})
    yield from by_constraint("scale_at", SCALE_AT)
    yield from by_type("generator", (3, "cpu", torch.default_generator.get_state()), "a torch.Generator")
    own = torch.Generator()
    remedy = "Give one source of noise."
    yield Wrong("generator", own, ArgumentError, "None where `key` is given", remedy, beside={"key": 3})
    on_meta = {"input": torch.ones(2, 3, device="meta")}
    yield Wrong("generator", own, ArgumentError, "on the input's device meta", beside=on_meta)


def addition() -> Iterator[Wrong]:
    yield from inputs()
    yield from source()
    yield from other("residual", (2, 3))


def normalisation(*columns: str) -> Iterator[Wrong]:
    yield from inputs()
    complex_, remedy = X.cfloat(), "Pass torch.view_as_real(input)."
    yield Wrong("input", complex_, ArgumentTypeError, "of a real floating type", remedy, shown=(complex_.dtype,))
    yield Wrong("input", X.sum(), ArgumentError, "of one axis or more", shown=((),))
    yield from source()
    yield from other("residual", (2, 3))
    for name in columns:
        yield from other(name, (3,))
    yield from by_constraint("eps", Number(0.0, math.inf, open_high=True))
    yield from by_type("prenorm", FLAGS, "True or False")


def activation() -> Iterator[Wrong]:
    yield from inputs()
    yield from source()
    yield from other("bias", (3,))
    yield from by_constraint("activation", Choice(("relu", "gelu", "gelu_tanh", "silu")))


def attention() -> Iterator[Wrong]:
    for name in ("query", "key", "value"):
        yield from by_type(name, (None, 1.0, [1.0], "x"), "a torch.Tensor")
        yield Wrong(name, torch.ones(3), ArgumentError, "of two axes or more", shown=((3,),))
    for name in ("key", "value"):
        rule = "of the query's type torch.float32"
        yield Wrong(name, X.double(), ArgumentTypeError, rule, shown=(torch.float64,))
    yield from by_type("attn_mask", (3, [True]), "a torch.Tensor")
    yield Wrong("attn_mask", X.int(), ArgumentTypeError, "bool or torch.float32", shown=(torch.int32,))
    yield from by_type("is_causal", FLAGS, "True or False")
    yield from by_type("enable_gqa", FLAGS, "True or False")
    for value in ("x", [1.0], True):
        yield Wrong("scale", value, ArgumentTypeError, "a finite number, or None")
    for value in (math.nan, math.inf):
        yield Wrong("scale", value, ArgumentError, "a finite number, or None")
    for value in (X.int(), X.cfloat()):
        yield Wrong("query", value, ArgumentTypeError, "of a real floating type", shown=(value.dtype,))
    yield from source("dropout_", "query")
    yield from by_type("return_dropout_mask", FLAGS, "True or False")
    yield Wrong("dropout_mask", 1, ArgumentTypeError, "a bool tensor", "True is kept.")
    rule = "of shape (2, 2), or with length 1 on axes that share"
    for shape in ((2,), (2, 3)):
        yield Wrong("dropout_mask", torch.ones(shape, dtype=torch.bool), ArgumentError, rule, shown=(shape,))


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.dropout": {"input": X},
    "dropkit.functional.dropout_add": {"input": X, "residual": X},
    "dropkit.functional.dropout_add_layer_norm": {"input": X, "residual": X},
    "dropkit.functional.dropout_add_rms_norm": {"input": X, "residual": X},
    "dropkit.functional.activation_dropout": {"input": X},
    "dropkit.functional.scaled_dot_product_attention": {"query": X, "key": X, "value": X},
}
CASES = {
    "dropkit.functional.dropout": list(function()),
    "dropkit.functional.dropout_add": list(addition()),
    "dropkit.functional.dropout_add_layer_norm": list(normalisation("weight", "bias")),
    "dropkit.functional.dropout_add_rms_norm": list(normalisation("weight")),
    "dropkit.functional.activation_dropout": list(activation()),
    "dropkit.functional.scaled_dot_product_attention": list(attention()),
}
