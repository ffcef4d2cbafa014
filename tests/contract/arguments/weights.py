"""Wrong arguments of DropConnect and of weight drop."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY, STREAM, Choice, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.nn import WeightDrop
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, factory, inputs, of_one, source, tensors

X, WEIGHT, BIAS = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
SAMPLES, WIDTH = Integer(1, 2**31 - 1, "[1, 2**31)"), Integer(0, 2**31 - 1, "[0, 2**31)")
FUNCTION = (3, "relu")


def linear() -> Iterator[Wrong]:
    yield from inputs()
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    rule = "a dense tensor, not a nested one"
    remedy = "Apply it to the values of a jagged tensor, or to its parts one by one."
    yield Wrong("input", nested, ArgumentTypeError, rule, remedy, shown=(nested.layout,))
    for name, good, shape_rule, unfit in (
        ("weight", WEIGHT, "of shape (outputs, inputs)", ((4,), (1, 4, 3))),
        ("bias", BIAS, "of shape (4,)", ((3,), (4, 1), ())),
    ):
        yield from by_type(name, (1.0, [1.0], "x"), "a torch.Tensor")
        half, meta = good.half(), good.to("meta")
        rule, remedy = "of the input's type torch.float32", "Convert one of them."
        yield Wrong(name, half, ArgumentTypeError, rule, remedy, shown=(half.dtype,))
        yield Wrong(name, meta, ArgumentError, "on the input's device cpu", shown=(meta.device,))
        for shape in unfit:
            yield Wrong(name, torch.ones(shape), ArgumentError, shape_rule, shown=(shape,))
    rule = "of shape (..., 3), as the weight of shape (4, 3) takes it"
    for shape in ((2, 4), ()):
        yield Wrong("input", torch.ones(shape), ArgumentError, rule, shown=(shape,))


def masks() -> Iterator[Wrong]:
    for value, shown in ((1, 1), ([True], [True]), (torch.ones(2, 4, 3), torch.float32)):
        yield Wrong("mask", value, ArgumentTypeError, "a bool tensor", "True is kept.", shown=(shown,))
    for shape in ((2, 4, 4), (4, 3), (2, 3, 3), (2, 4, 3, 1)):
        rule = "of shape (2, 4, 3), or with length 1 on axes that share"
        yield Wrong("mask", torch.ones(shape, dtype=torch.bool), ArgumentError, rule, shown=(shape,))
    mask = torch.ones(2, 4, 3, dtype=torch.bool)
    rule, remedy = "left out where `key` is given", "`key` draws a mask: leave one of them out."
    yield Wrong("mask", mask, ArgumentError, rule, remedy, shown=(mask.dtype,), beside={"key": 3})


def function() -> Iterator[Wrong]:
    yield from linear()
    yield from source()
    yield from masks()
    yield from by_type("return_mask", FLAGS, "True or False")


def inference() -> Iterator[Wrong]:
    yield from linear()
    yield from (wrong for wrong in source() if wrong.name != "training")
    yield from by_type("activation", (*FUNCTION, None), "a function of a tensor")
    yield from by_constraint("samples", SAMPLES)
    rule = "a function from a tensor to one of the same shape, here (2, 1000, 4)"
    yield Wrong("activation", lambda _: 3, ArgumentError, rule, shown=(3,), beside={"key": 3})
    yield Wrong("activation", torch.sum, ArgumentError, rule, shown=((),), beside={"key": 3})
    yield Wrong("input", X.cfloat(), ArgumentTypeError, "of a real floating type", shown=(torch.complex64,),
                beside={"weight": WEIGHT.cfloat()})  # fmt: skip


def layer() -> Iterator[Wrong]:
    yield from by_constraint("in_features", WIDTH)
    yield from by_constraint("out_features", WIDTH)
    yield from by_constraint("p", PROBABILITY)
    yield from by_type("bias", FLAGS, "True or False")
    yield from by_type("activation", FUNCTION, "a function of a tensor, or None")
    yield from by_constraint("inference", Choice(("mean", "gaussian")))
    remedy = "Without one, the average over draws would be the plain layer and noise."
    yield Wrong("inference", "gaussian", ArgumentError, "'mean' without `activation`", remedy)
    yield from by_constraint("samples", SAMPLES)
    yield from factory()


def layer_call() -> Iterator[Wrong]:
    wrongs = [*inputs(), *masks(), *of_one(by_constraint("key", KEY)), *by_type("return_mask", FLAGS, "True or False")]
    for wrong in (*wrongs, *(wrong for wrong in tensors() if wrong.name != "p")):
        yield wrong._replace(where="drop_connect")


def weight_drop() -> Iterator[Wrong]:
    yield from by_type("module", (None, 3, torch.nn.Linear, WEIGHT), "a torch.nn.Module in Python")
    yield from by_constraint("p", PROBABILITY)
    rule, remedy = "a name of a parameter, or a sequence of several", "The module has: weight, bias."
    yield from by_type("names", (3, None, [1], {"weight"}), rule)
    for value in ("other", (), ["weight", "weight"], ["weight", ""], ""):
        yield Wrong("names", value, ArgumentError, rule, remedy)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def weight_drop_call() -> Iterator[Wrong]:
    where = {"where": "WeightDrop"}
    yield from (wrong._replace(**where) for wrong in of_one(by_constraint("dropout_key", KEY)))
    yield from (wrong._replace(**where) for wrong in by_type("return_dropout_mask", FLAGS, "True or False"))
    for wrong in of_one(by_constraint("stream", STREAM)):
        yield wrong._replace(name="dropout_stream", label="stream", **where)
    rule = "a mapping of ['weight'] to bool tensors"
    for value, shown in ((WEIGHT > 0, WEIGHT > 0), (3, 3), ({}, []), ({"bias": BIAS > 0}, ["bias"])):
        yield Wrong("dropout_mask", value, ArgumentError, rule, shown=(shown,), **where)
    label, remedy, value = "dropout_mask['weight']", "True is kept.", {"weight": WEIGHT}
    yield Wrong("dropout_mask", value, ArgumentTypeError, "a bool tensor", remedy, (WEIGHT.dtype,), label, **where)
    rule, thin = "of shape (4, 3), or with length 1 on axes that share", {"weight": BIAS > 0}
    yield Wrong("dropout_mask", thin, ArgumentError, rule, shown=((4,),), label=label, **where)
    rule, remedy = "left out where `dropout_key` is given", "`dropout_key` draws a mask: leave one of them out."
    whole, beside = {"weight": WEIGHT > 0}, {"dropout_key": 3}
    yield Wrong("dropout_mask", whole, ArgumentError, rule, remedy, (torch.bool,), label, beside=beside, **where)


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.drop_connect": {"input": X, "weight": WEIGHT},
    "dropkit.functional.drop_connect_inference": {"input": X, "weight": WEIGHT, "activation": torch.relu},
    "dropkit.nn.DropConnect": {"in_features": 3, "out_features": 4},
    "dropkit.nn.WeightDrop": {"module": torch.nn.Linear(3, 4)},
    "dropkit.nn.WeightDrop.forward": {"self": WeightDrop(torch.nn.Linear(3, 4)), "input": X},
    "dropkit.nn.DropConnect.forward": {"self": dropkit.nn.DropConnect(3, 4, bias=False), "input": X},
}
CASES = {
    "dropkit.functional.drop_connect": list(function()),
    "dropkit.functional.drop_connect_inference": list(inference()),
    "dropkit.nn.DropConnect": list(layer()),
    "dropkit.nn.WeightDrop": list(weight_drop()),
    "dropkit.nn.WeightDrop.forward": list(weight_drop_call()),
    "dropkit.nn.DropConnect.forward": list(layer_call()),
}
