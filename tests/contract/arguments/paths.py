"""Wrong arguments of what drops whole branches."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import PROBABILITY, Choice, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, called, inputs, source

MODE = Choice(("row", "batch"))
DEPTH = Integer(1, 2**31 - 1, "[1, 2**31)", "It is the number of blocks.")
X = torch.ones(2, 3)


def forward(where: str) -> Iterator[Wrong]:
    for wrong in called(where):
        if wrong.name not in {"offset", "full_shape"}:
            yield wrong
    yield Wrong("input", torch.tensor(1.0), ArgumentError, "of one axis or more", shown=((),), where=where)


def options(where: str = "") -> Iterator[Wrong]:
    yield from (wrong._replace(where=where) for wrong in by_constraint("mode", MODE))
    yield from (wrong._replace(where=where) for wrong in by_type("scale_by_keep", FLAGS, "True or False"))


def function(where: str) -> Iterator[Wrong]:
    yield from options()
    for wrong in source():
        if wrong.name in {"p", "training", "generator"}:
            yield wrong._replace(where=where)


def skipping() -> Iterator[Wrong]:
    yield from by_type("branch", (None, 3, "relu", X), "a function or a module")
    rule, remedy = "a function that keeps the shape (2, 3)", "Else use drop_path(branch(input))."
    for branch, shape in ((torch.nn.Linear(3, 4), (2, 4)), (torch.sum, ())):
        keep_all = {"mask": torch.ones(2, 1, dtype=torch.bool)}
        yield Wrong("branch", branch, ArgumentError, rule, remedy, shown=(shape,), beside=keep_all)
    pair = X, X
    rule = "a function that returns a torch.Tensor"
    yield Wrong("branch", lambda x: pair, ArgumentTypeError, rule, shown=(pair,), beside=keep_all)
    for wrong in forward("skip_path"):
        if wrong.name == "input" and isinstance(wrong.value, torch.Tensor) and wrong.value.dim() == 0:
            yield wrong
        elif wrong.name == "mask":  # of which a whole one has too many axes
            yield wrong._replace(rule=wrong.rule.replace("(2, 3)", "(2, 1)"))
        elif wrong.name not in {"input", "return_mask"}:
            yield wrong
    rule = "of shape (2, 1), or with length 1 on axes that share"
    yield Wrong("mask", X > 0, ArgumentError, rule, shown=((2, 3),))
    yield from inputs()
    yield from by_type("return_mask", FLAGS, "True or False")
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    remedy = "Use drop_path(branch(input))."
    yield Wrong("input", nested, ArgumentTypeError, "a dense tensor", remedy, shown=(torch.jagged,))


def rates() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_constraint("depth", DEPTH)
    yield from by_constraint("first", Choice(("zero", "paper")))


def construction() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from options()
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.drop_path": {"input": X},
    "dropkit.functional.skip_path": {"branch": torch.square, "input": X},
    "dropkit.functional.linear_rates": {"p": 0.5, "depth": 3},
    "dropkit.nn.DropPath": {},
    "dropkit.nn.DropPath.forward": {"self": dropkit.nn.DropPath(), "input": X},
}
CASES = {
    "dropkit.functional.drop_path": [*forward("drop_path"), *function("drop_path")],
    "dropkit.functional.skip_path": [*skipping(), *function("skip_path")],
    "dropkit.functional.linear_rates": list(rates()),
    "dropkit.nn.DropPath": list(construction()),
    "dropkit.nn.DropPath.forward": list(forward("drop_path")),
}
for call in ("dropkit.nn.DropPath", "dropkit.nn.DropPath.forward"):
    alias = call.replace("DropPath", "StochasticDepth")
    GOOD[alias] = GOOD[call]
    CASES[alias] = [wrong._replace(where=wrong.where or "DropPath") for wrong in CASES[call]]
