"""Wrong arguments of recurrent networks and of zoneout."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, inputs, masks, of_one, source, tensors

X = torch.ones(2, 3)


def states() -> Iterator[Wrong]:
    yield from (wrong._replace(name="new", where="zoneout") for wrong in inputs())
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    remedy = "Call to_padded_tensor(0) first."
    yield Wrong("new", nested, ArgumentTypeError, "a dense tensor", remedy, (nested.layout,), where="zoneout")
    for wrong in by_type("old", (None, 1.0, [1.0]), "a torch.Tensor"):
        yield wrong._replace(where="zoneout")
    half = X.half()
    rule = "of the new state's type torch.float32"
    yield Wrong("old", half, ArgumentTypeError, rule, shown=(half.dtype,), where="zoneout")
    for shape in ((3,), (2, 1), (3, 2)):
        yield Wrong("old", torch.ones(shape), ArgumentError, "of shape (2, 3)", shown=(shape,), where="zoneout")
    meta = torch.ones(2, 3, device="meta")
    yield Wrong("old", meta, ArgumentError, "on the new state's device cpu", shown=(meta.device,), where="zoneout")
    for wrong in (*masks(), *by_type("return_mask", FLAGS, "True or False")):
        yield wrong._replace(where="zoneout")


def function() -> Iterator[Wrong]:
    yield from states()
    yield from source(of="new")


def layer_call() -> Iterator[Wrong]:
    yield from states()
    for wrong in of_one(by_constraint("key", KEY)):
        yield wrong._replace(where="zoneout")
    yield from (wrong._replace(where="zoneout") for wrong in tensors(of="new") if wrong.name != "p")


def layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.zoneout": {"new": X, "old": torch.zeros(2, 3)},
    "dropkit.nn.Zoneout": {},
    "dropkit.nn.Zoneout.forward": {"self": dropkit.nn.Zoneout(), "new": X, "old": torch.zeros(2, 3)},
}
CASES = {
    "dropkit.functional.zoneout": list(function()),
    "dropkit.nn.Zoneout": list(layer()),
    "dropkit.nn.Zoneout.forward": list(layer_call()),
}
