"""Wrong arguments of Gaussian dropout."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, STREAM, Number
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, inputs, of_one, source, tensors

X = torch.ones(2, 3)
RATE = Number(0.0, 1.0, open_high=True, remedy="The variance of the noise, p / (1 - p), has no limit at 1.")


def around() -> Iterator[Wrong]:
    """What the function and the call of the layer have in common."""
    yield from inputs()
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    rule, remedy = "a dense tensor", "Pass its parts: input.unbind()."
    yield Wrong("input", nested, ArgumentTypeError, rule, remedy, shown=(torch.jagged,))
    yield from by_type("return_noise", FLAGS, "True or False")
    kind = "a tensor of a real floating type"
    for value, shown in ((1.0, 1.0), ([1.0], [1.0]), (X.int(), torch.int32), (X.cfloat(), torch.complex64)):
        yield Wrong("noise", value, ArgumentTypeError, kind, shown=(shown,))
    for shape in ((3,), (3, 2), (2, 3, 1), ()):
        rule = "of shape (2, 3), or with length 1 on axes that share"
        yield Wrong("noise", torch.ones(shape), ArgumentError, rule, shown=(shape,))
    yield Wrong("noise", X.to("meta"), ArgumentError, "on the input's device cpu", shown=(torch.device("meta"),))
    for name in ("key", "stream"):
        rule, remedy = f"left out where `{name}` is given", f"`{name}` draws noise: leave one of them out."
        yield Wrong("noise", X, ArgumentError, rule, remedy, shown=(X.dtype,), beside={name: 3})


def function() -> Iterator[Wrong]:
    yield from around()
    for wrong in source():
        is_rate = wrong.name == "p" and wrong.rule == "a number in [0, 1]"
        remedy = RATE.remedy if is_rate and wrong.remedy.startswith("p is") else wrong.remedy
        yield wrong._replace(rule=RATE.rule, remedy=remedy) if is_rate else wrong
    for p in (1.0, 1, torch.tensor(1.0).double(), torch.tensor([0.5, 1.0]).double()):
        yield Wrong("p", p, ArgumentError, RATE.rule, RATE.remedy)


def layer() -> Iterator[Wrong]:
    yield from by_constraint("p", RATE)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def call() -> Iterator[Wrong]:
    yield from around()
    yield from of_one(by_constraint("key", KEY))
    yield from of_one(by_constraint("stream", STREAM))
    yield from (wrong for wrong in tensors() if wrong.name != "p")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.gaussian_dropout": {"input": X},
    "dropkit.nn.GaussianDropout": {},
    "dropkit.nn.GaussianDropout.forward": {"self": dropkit.nn.GaussianDropout(), "input": X},
}
CASES = {
    "dropkit.functional.gaussian_dropout": list(function()),
    "dropkit.nn.GaussianDropout": list(layer()),
    "dropkit.nn.GaussianDropout.forward": [wrong._replace(where="gaussian_dropout") for wrong in call()],
}
