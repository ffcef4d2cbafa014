"""Wrong arguments of what drops blocks."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import PROBABILITY, Integer
from dropkit.errors import ArgumentTypeError
from tests.contract.arguments.channels import SHAPES, maps
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, called, shaped, source

SIZE = Integer(1, 2**31 - 1, "[1, 2**31)", "It is the length of a block along each axis of a map.")


def forward(dims: int, where: str = "") -> Iterator[Wrong]:
    for wrong in shaped(SHAPES[dims], called(where)):
        if wrong.name not in {"offset", "full_shape"}:
            yield wrong
    yield from maps(dims, "drop_block")
    nested = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(3, 5)], layout=torch.jagged)
    if dims == 1:
        yield Wrong(
            "input", nested, ArgumentTypeError, "a dense tensor", "Pad it, or take its parts.",
            shown=(torch.jagged,), where="drop_block1d",
        )  # fmt: skip


def options() -> Iterator[Wrong]:
    yield from by_constraint("block_size", SIZE)
    yield from by_type("share_channels", FLAGS, "True or False")


def function(dims: int) -> Iterator[Wrong]:
    yield from forward(dims)
    yield from options()
    yield from (wrong for wrong in source() if wrong.name in {"p", "training", "generator"})


def construction() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from options()
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


GOOD: dict[str, dict[str, Any]] = {}
CASES: dict[str, list[Wrong]] = {}
for dims, shape in SHAPES.items():
    name = f"DropBlock{dims}d"
    layer = getattr(dropkit.nn, name)
    GOOD |= {
        f"dropkit.functional.drop_block{dims}d": {"input": torch.ones(shape)},
        f"dropkit.nn.{name}": {},
        f"dropkit.nn.{name}.forward": {"self": layer(), "input": torch.ones(shape)},
    }
    CASES |= {
        f"dropkit.functional.drop_block{dims}d": list(function(dims)),
        f"dropkit.nn.{name}": list(construction()),
        f"dropkit.nn.{name}.forward": list(forward(dims, f"drop_block{dims}d")),
    }
