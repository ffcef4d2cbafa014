"""Wrong arguments of every kind, generated from the constraints; what a constraint cannot say is listed."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from dropkit._checks import KEY, PROBABILITY, STREAM, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError

LENGTH = Integer(0, 2**64, "[0, 2**64]")
AXIS = Integer(-2, 1, remedy="The tensor has 2 axes.")
FLAGS = (1, 0, None, "yes", 1.0, np.bool_(True))


class Wrong(NamedTuple):
    """One wrong value, beside what else has to be given, and the whole message."""

    name: str
    value: Any
    error: type[Exception]
    rule: str
    remedy: str = ""
    shown: Any = None  # what the message shows, if not the value itself
    label: str = ""  # the argument that the message names, if not the one given
    where: str = ""  # the function that the message names, if not the one called
    beside: dict[str, Any] = {}  # noqa: RUF012  # never changed


def by_constraint(name: str, constraint: Any, **options: Any) -> Iterator[Wrong]:
    """Every bad value of a constraint, with the class that it calls for."""
    for value in constraint.bad_values():
        whole = isinstance(value, int) and not isinstance(value, bool)
        error = ArgumentTypeError if isinstance(constraint, Integer) and not whole else ArgumentError
        yield Wrong(name, value, error, constraint.rule, getattr(constraint, "remedy", ""), **options)


def of_one(wrongs: Iterator[Wrong]) -> Iterator[Wrong]:
    """Leave lists out, for which `tensors` knows a remedy."""
    return (wrong for wrong in wrongs if not isinstance(wrong.value, list))


def by_type(name: str, values: tuple[Any, ...], rule: str, remedy: str = "") -> Iterator[Wrong]:
    for value in values:
        yield Wrong(name, value, ArgumentTypeError, rule, remedy)


def factory(*, is_real: bool = False) -> Iterator[Wrong]:
    """What no layer with parameters can be made with."""
    kinds, complexes = ("floating", (torch.cfloat,)) if is_real else ("floating or complex", ())
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")
    yield from by_type("dtype", ("float32", 3, torch.int64, torch.bool, *complexes), f"a {kinds} torch.dtype, or None")
    yield from by_type("device", (1.5, True, [0]), "a torch.device, its name, or None")
    yield Wrong("device", "nowhere", ArgumentError, "a torch.device, its name, or None")


def shapes(name: str, **beside: Any) -> Iterator[Wrong]:
    yield from (
        Wrong(name, value, ArgumentTypeError, "a sequence of integers, one an axis", beside=beside)
        for value in (3, "ab", b"ab", 1.5)
    )
    for wrong in by_constraint(f"{name}[1]", LENGTH):
        yield Wrong(
            name, (2, wrong.value), wrong.error, wrong.rule, shown=(wrong.value,), label=wrong.name, beside=beside
        )


def places() -> Iterator[Wrong]:
    yield from by_constraint("stream", STREAM)
    for wrong in by_constraint("broadcast_dims", AXIS):
        inner = isinstance(wrong.value, list)  # a list is a sequence of axes, and its axis is a good one
        if not inner:
            yield wrong
            yield wrong._replace(value=(0, wrong.value), shown=(wrong.value,))
    yield Wrong("broadcast_dims", (0, -2), ArgumentError, "distinct axes")
    for value in (np.array([0, 1]), {0}):
        yield Wrong("broadcast_dims", value, ArgumentTypeError, AXIS.rule, AXIS.remedy)
    yield from shapes("full_shape")
    yield from shapes("offset", full_shape=(2, 3))
    rank = "2 integers, one an axis of the tensor"
    yield Wrong("full_shape", (2,), ArgumentError, rank)
    yield Wrong("offset", (0, 0, 0), ArgumentError, rank, beside={"full_shape": (2, 3)})
    yield Wrong("offset", (0, 0), ArgumentError, "given together with full_shape")
    fit = "at least offset + shape on every axis"
    for whole, offset in (((1, 3), (0, 0)), ((2, 3), (1, 0)), ((9, 9), (0, 7))):
        remedy = f"The tensor of shape (2, 3) at offset {offset} does not fit into it."
        yield Wrong("full_shape", whole, ArgumentError, fit, remedy, beside={"offset": offset})
    yield Wrong("full_shape", (2, 2**34 + 1), ArgumentError, "at most 2**64 rows of 2**34 columns")


def tensors(prefix: str = "", of: str = "input") -> Iterator[Wrong]:
    """Tensors of rates, keys and streams of a wrong type, rank, length or value; and what should be such tensors."""
    named = {"p": f"{prefix}p", "key": f"{prefix}key", "stream": "stream"}
    for name, constraint, what, dtype in (
        ("p", PROBABILITY, "rate", torch.float64),
        ("key", KEY, "key", torch.int64),
        ("stream", STREAM, "stream", torch.int64),
    ):
        remedy = f"One {what} for each slice of axis 0 is a tensor: torch.tensor({named[name]}, dtype={dtype})."
        for value in ([1, 0], (1, 0), np.array([0, 1])):
            error = ArgumentError if name == "p" else ArgumentTypeError
            yield Wrong(name, value, error, constraint.rule, remedy)
    for name, dtype in (("p", torch.float64), ("key", torch.int64), ("stream", torch.int64)):
        for other in (torch.float32, torch.int32, torch.bool, torch.uint8):
            rule, is_alike = f"a number or a tensor of {dtype}", other.is_floating_point == dtype.is_floating_point
            remedy = f"Convert it: {named[name]}.to({dtype})." if is_alike else ""
            yield Wrong(name, torch.zeros((), dtype=other), ArgumentTypeError, rule, remedy, shown=(other,))
        for shape in ((2, 1), (1,), (3,), (0,)):
            counts = f"It has {shape[0]} values, the {of} has 2 slices."
            remedy = counts if len(shape) == 1 else "Give one value, or one for each slice of axis 0."
            value = torch.zeros(shape, dtype=dtype)
            yield Wrong(name, value, ArgumentError, "of shape () or (2,)", remedy, shown=(shape,))
        rule, meta = f"on the {of}'s device cpu", torch.zeros(2, dtype=dtype, device="meta")
        yield Wrong(name, meta, ArgumentError, rule, shown=(meta.device,))
    for name in ("key", "stream"):
        rule, remedy = "a number or a tensor of torch.int64", f"The same bits: {named[name]}.view(torch.int64)."
        unsigned = torch.zeros(2, dtype=torch.uint64)
        yield Wrong(name, unsigned, ArgumentTypeError, rule, remedy, shown=(unsigned.dtype,))
    for p in (-0.1, 1.1, math.nan, math.inf):
        yield Wrong("p", torch.tensor(p, dtype=torch.float64), ArgumentError, PROBABILITY.rule, PROBABILITY.remedy)
        yield Wrong("p", torch.tensor([0.5, p]).double(), ArgumentError, PROBABILITY.rule, PROBABILITY.remedy)
    remedy = f"Dropout has no gradient with respect to its rate; pass {named['p']}.detach()."
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    yield Wrong("p", rate, ArgumentError, "False", remedy, shown=(True,), label=f"{named['p']}.requires_grad")
    for stream in (-1, 2**30, 2**40):
        yield Wrong("stream", torch.tensor(stream), ArgumentError, STREAM.rule)


def inputs() -> Iterator[Wrong]:
    yield from by_type("input", (None, 1.0, [1.0], "x", np.ones(2)), "a torch.Tensor")
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn):
        value = torch.ones(2, 3).to(dtype)
        yield Wrong(
            "input", value, ArgumentTypeError, "of a floating or complex type", "Convert it first.", shown=(dtype,)
        )
    sparse = torch.ones(2, 3).to_sparse()
    yield Wrong(
        "input", sparse, ArgumentTypeError, "a dense or nested tensor", "Call to_dense() first.", shown=(sparse.layout,)
    )


def masks() -> Iterator[Wrong]:
    for value, shown in ((1, 1), ([True], [True]), (torch.ones(2, 3), torch.float32)):
        yield Wrong("mask", value, ArgumentTypeError, "a bool tensor", "True is kept.", shown=(shown,))
    for shape in ((3,), (3, 2), (2, 3, 1), ()):
        rule = "of shape (2, 3), or with length 1 on axes that share"
        yield Wrong("mask", torch.ones(shape, dtype=torch.bool), ArgumentError, rule, shown=(shape,))
    mask = torch.ones(2, 3, dtype=torch.bool)
    rule, remedy = "left out where `key` is given", "`key` draws a mask: leave one of them out."
    yield Wrong("mask", mask, ArgumentError, rule, remedy, shown=(mask.dtype,), beside={"key": 3})


def called(where: str = "") -> Iterator[Wrong]:
    """What the calls of functions and layers around dropout have in common; `where` is who says so, if another."""
    yield from (wrong._replace(where=where) for wrong in _called())


def _called() -> Iterator[Wrong]:
    yield from inputs()
    yield from masks()
    yield from of_one(by_constraint("key", KEY))
    yield from (wrong for wrong in tensors() if wrong.name != "p")
    yield from by_type("return_mask", FLAGS, "True or False")
    yield from of_one(wrong for wrong in places() if wrong.name != "broadcast_dims")


def source(prefix: str = "", of: str = "input") -> Iterator[Wrong]:
    """What every function around dropout asks of its rate, key, stream and generator."""
    named = {"p": f"{prefix}p", "key": f"{prefix}key"}
    yield from of_one(by_constraint(named["p"], PROBABILITY))
    yield from of_one(by_constraint(named["key"], KEY))
    yield from of_one(by_constraint("stream", STREAM))
    yield from (wrong._replace(name=named.get(wrong.name, wrong.name)) for wrong in tensors(prefix, of))
    yield from by_type("training", FLAGS, "True or False")
    yield from by_type("generator", (3, "cpu", torch.default_generator.get_state()), "a torch.Generator")
    rule, remedy = f"None where `{named['key']}` is given", "Give one source of noise."
    yield Wrong("generator", torch.Generator(), ArgumentError, rule, remedy, beside={named["key"]: 3})


def other(name: str, shape: tuple[int, ...], **beside: Any) -> Iterator[Wrong]:
    """A second tensor that does not fit the input."""
    yield from (wrong._replace(beside=beside) for wrong in by_type(name, (1.0, [1.0], "x"), "a torch.Tensor"))
    half = torch.ones(shape, dtype=torch.float16)
    rule = "of the input's type torch.float32"
    yield Wrong(name, half, ArgumentTypeError, rule, shown=(half.dtype,), beside=beside)
    for unfit in ((5,), (2, 3, 1), (3, 2)):
        yield Wrong(name, torch.ones(unfit), ArgumentError, f"of shape {shape}", shown=(unfit,), beside=beside)


def shaped(shape: tuple[int, ...], wrongs: Iterator[Wrong]) -> Iterator[Wrong]:
    """The same for a function whose good input has another shape than (2, 3), but two slices as well."""
    for wrong in wrongs:
        value, rule = wrong.value, wrong.rule
        if wrong.name == "input" and isinstance(value, torch.Tensor):
            value = (
                torch.ones(shape).to(value.dtype) if value.layout == torch.strided else torch.ones(shape).to_sparse()
            )
        if wrong.name == "mask":
            rule = rule.replace("(2, 3)", str(shape))
            lengths = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
            if len(lengths) == len(shape) and all(m in {1, n} for m, n in zip(lengths, shape, strict=True)):
                continue
        yield wrong._replace(value=value, rule=rule)
