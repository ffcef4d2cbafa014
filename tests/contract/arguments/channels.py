"""Wrong arguments of what drops whole channels, or the same features at all steps of a sequence."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import PROBABILITY
from dropkit.errors import ArgumentError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, called, shaped, source

SHAPES = {1: (2, 3), 2: (2, 3, 1, 2), 3: (2, 3, 1, 2)}
RULES = {1: "(C, L) or (N, C, L)", 2: "(N, C, H, W)", 3: "(C, D, H, W) or (N, C, D, H, W)"}
UNFIT = {1: ((3,), (1, 2, 3, 4)), 2: ((3,), (2, 3), (1, 2, 3, 4, 5)), 3: ((2, 3), (2, 3, 4), (1, 1, 2, 3, 4, 5))}
SEQUENCES = (2, 3, 4)


def maps(dims: int, name: str = "dropout") -> Iterator[Wrong]:
    """Inputs of another number of axes, or of one that could be read in two ways."""
    where, rule = f"{name}{dims}d", f"of shape {RULES[dims]}"
    for shape in UNFIT[dims]:
        yield Wrong("input", torch.ones(shape), ArgumentError, rule, shown=(shape,), where=where)
    if dims == 2:
        remedy = f"Of shape (N, C, L) it is for {name}1d; of shape (C, H, W), call unsqueeze(0) first."
        yield Wrong("input", torch.ones(2, 3, 4), ArgumentError, rule, remedy, shown=((2, 3, 4),), where=where)


def sequences() -> Iterator[Wrong]:
    for shape, rule, remedy in (
        ((3,), "(N, L, C)", ""),
        ((2, 3, 4, 5), "(N, L, C)", ""),
        ((2, 3), "(N, L, C)", "Of one sequence of shape (L, C), call unsqueeze(0) first."),
    ):
        value = torch.ones(shape)
        yield Wrong("input", value, ArgumentError, f"of shape {rule}", remedy, shown=(shape,), where="locked_dropout")


def forward(where: str, shape: tuple[int, ...]) -> Iterator[Wrong]:
    """What the call of a layer shares with that of the function."""
    for wrong in shaped(shape, called(where)):
        if wrong.name not in {"offset", "full_shape"}:
            yield wrong


def function(where: str, shape: tuple[int, ...]) -> Iterator[Wrong]:
    yield from forward(where, shape)
    for wrong in source():
        if wrong.name in {"p", "training", "generator"}:
            yield wrong


def inplace() -> Iterator[Wrong]:
    yield from by_type("inplace", FLAGS, "True or False")


def batch_first() -> Iterator[Wrong]:
    yield from by_type("batch_first", FLAGS, "True or False")


def time_first() -> Iterator[Wrong]:
    rule, remedy = "of shape (L, N, C)", "Of one sequence of shape (L, C), call unsqueeze(1) first."
    yield Wrong("input", torch.ones(2, 3), ArgumentError, rule, remedy, shown=((2, 3),), beside={"batch_first": False})


def construction() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.locked_dropout": {"input": torch.ones(SEQUENCES)},
    "dropkit.nn.LockedDropout": {},
    "dropkit.nn.LockedDropout.forward": {"self": dropkit.nn.LockedDropout(), "input": torch.ones(SEQUENCES)},
}
CASES = {
    "dropkit.functional.locked_dropout": [
        *function("locked_dropout", SEQUENCES),
        *sequences(),
        *batch_first(),
        *time_first(),
    ],
    "dropkit.nn.LockedDropout": [*construction(), *batch_first()],
    "dropkit.nn.LockedDropout.forward": [*forward("locked_dropout", SEQUENCES), *sequences()],
}
for dims, shape in SHAPES.items():
    layer = getattr(dropkit.nn, f"Dropout{dims}d")
    names = f"dropkit.functional.dropout{dims}d", f"dropkit.nn.Dropout{dims}d", f"dropkit.nn.Dropout{dims}d.forward"
    GOOD |= zip(names, ({"input": torch.ones(shape)}, {}, {"self": layer(), "input": torch.ones(shape)}), strict=True)
    CASES[names[0]] = [*function(f"dropout{dims}d", shape), *maps(dims), *inplace()]
    CASES[names[1]] = [*construction(), *inplace()]
    CASES[names[2]] = [*forward(f"dropout{dims}d", shape), *maps(dims)]
