"""Wrong arguments of the layer `Dropout`."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import PROBABILITY, Choice
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, called


def layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_type("inplace", FLAGS, "True or False")
    yield from by_constraint("scale_at", Choice(("train", "eval")))
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")
    axes = (None, 1.0, "1", True, [True], [0.5], (None,), {1})
    yield from by_type("broadcast_dims", axes, "an integer or a sequence of integers")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.nn.Dropout": {},
    "dropkit.nn.Dropout.forward": {"self": dropkit.nn.Dropout(), "input": torch.ones(2, 3)},
}
CASES = {"dropkit.nn.Dropout": list(layer()), "dropkit.nn.Dropout.forward": list(called("dropout"))}
