"""Wrong arguments of alpha dropout, of elements and of channels."""

import math
from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY, STREAM, Number
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, inputs, masks, of_one, source, tensors

X = torch.ones(2, 3)
MEAN = Number(-math.inf, math.inf, open_low=True, open_high=True)
VARIANCE = Number(0.0, math.inf, open_low=True, open_high=True)


def around() -> Iterator[Wrong]:
    """What functions and the calls of layers have in common."""
    yield from inputs()
    yield from masks()
    remedy = "Pass torch.view_as_real(input)."
    yield Wrong("input", X.cfloat(), ArgumentTypeError, "of a real floating type", remedy, shown=(torch.complex64,))
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    rule, remedy = "a dense tensor", "Pass its parts: input.unbind()."
    yield Wrong("input", nested, ArgumentTypeError, rule, remedy, shown=(torch.jagged,))
    yield from by_type("return_mask", FLAGS, "True or False")
    mask = torch.ones(2, 3, dtype=torch.bool)
    rule, remedy = "left out where a mask is given", "A mask has no address."
    yield Wrong("stream", 1, ArgumentError, rule, remedy, beside={"mask": mask})


def fixed_point() -> Iterator[Wrong]:
    yield from by_constraint("mean", MEAN)
    yield Wrong("mean", math.inf, ArgumentError, MEAN.rule)
    yield from by_constraint("variance", VARIANCE)
    yield Wrong("variance", math.inf, ArgumentError, VARIANCE.rule)


def function() -> Iterator[Wrong]:
    yield from around()
    yield from source()
    yield from fixed_point()
    yield from by_type("inplace", FLAGS, "True or False")
    leaf = torch.ones(2, 3, requires_grad=True)
    rule, remedy = "False for a leaf that requires grad, or a view of one", "Call clone() first."
    yield Wrong("inplace", True, ArgumentError, rule, remedy, beside={"input": leaf})


def layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from fixed_point()
    yield from by_type("inplace", FLAGS, "True or False")
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def call() -> Iterator[Wrong]:
    yield from around()
    yield from of_one(by_constraint("key", KEY))
    yield from of_one(by_constraint("stream", STREAM))
    yield from (wrong for wrong in tensors() if wrong.name != "p")


def of_channels(wrongs: Iterator[Wrong]) -> Iterator[Wrong]:
    yield from wrongs
    rule, remedy = "of two axes or more", "Axis 0 counts examples, axis 1 channels."
    for shape in ((3,), ()):
        yield Wrong("input", torch.ones(shape), ArgumentError, rule, remedy, shown=(shape,))


def of(where: str, wrongs: Iterator[Wrong]) -> list[Wrong]:
    return [wrong._replace(where=where) for wrong in wrongs]


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.alpha_dropout": {"input": X},
    "dropkit.functional.feature_alpha_dropout": {"input": X},
    "dropkit.nn.AlphaDropout": {},
    "dropkit.nn.AlphaDropout.forward": {"self": dropkit.nn.AlphaDropout(), "input": X},
    "dropkit.nn.FeatureAlphaDropout": {},
    "dropkit.nn.FeatureAlphaDropout.forward": {"self": dropkit.nn.FeatureAlphaDropout(), "input": X},
}
CASES = {
    "dropkit.functional.alpha_dropout": list(function()),
    "dropkit.functional.feature_alpha_dropout": list(of_channels(function())),
    "dropkit.nn.AlphaDropout": list(layer()),
    "dropkit.nn.AlphaDropout.forward": of("alpha_dropout", call()),
    "dropkit.nn.FeatureAlphaDropout": list(layer()),
    "dropkit.nn.FeatureAlphaDropout.forward": of("feature_alpha_dropout", of_channels(call())),
}
