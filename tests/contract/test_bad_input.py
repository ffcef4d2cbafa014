"""Every argument of every public function and layer, wrong in every way: one sentence, and nothing changed.

The values come from the constraints; what a constraint cannot say is listed. The last test counts that no argument of
a public callable is left out.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY, STREAM, Choice, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError

PUBLIC: dict[str, Callable[..., Any]] = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (dropkit.random, dropkit.functional, dropkit.nn)
    for name in package.__all__
    if callable(getattr(package, name))
} | {"dropkit.nn.Dropout.forward": dropkit.nn.Dropout.forward}

WORD = Integer(0, 2**32 - 1, "[0, 2**32)")
FIELD = Integer(0, 2**32 - 2, "[0, 2**32 - 1)", "Field 2**32 - 1 is taken by the second uniform of a normal.")
LENGTH = Integer(0, 2**64, "[0, 2**64]")
AXIS = Integer(-2, 1, remedy="The tensor has 2 axes.")
SCALE_AT = Choice(("train", "eval"))
FLAGS = (1, 0, None, "yes", 1.0, np.bool_(True))
X = torch.ones(2, 3)

GOOD: dict[str, dict[str, Any]] = {
    "dropkit.random.call_key": {"seed": 1, "name": "a", "step": 2, "call": 0},
    "dropkit.random.field": {"key": 1, "d": 2},
    "dropkit.random.fold": {"a": 1, "b": 2, "c": 3},
    "dropkit.random.philox4x32": {"counter": (0, 1, 2, 3), "key": (4, 5)},
    "dropkit.random.site": {"name": "a"},
    "dropkit.random.threshold": {"p": 0.5},
    "dropkit.random.keep_mask": {"key": 1, "shape": (2, 3), "p": 0.5},
    "dropkit.random.uniform32": {"key": 1, "shape": (2, 3)},
    "dropkit.random.uniform": {"key": 1, "shape": (2, 3)},
    "dropkit.random.normal": {"key": 1, "shape": (2, 3)},
    "dropkit.functional.dropout": {"input": X},
    "dropkit.functional.dropout_add": {"input": X, "residual": X},
    "dropkit.functional.activation_dropout": {"input": X},
    "dropkit.functional.scaled_dot_product_attention": {"query": X, "key": X, "value": X},
    "dropkit.nn.Dropout": {},
    "dropkit.nn.Dropout.forward": {"self": dropkit.nn.Dropout(), "input": X},
}


class Wrong(NamedTuple):
    """One wrong value, beside what else has to be given, and the whole message."""

    name: str
    value: Any
    error: type[Exception]
    rule: str
    remedy: str = ""
    shown: Any = None  # what the message shows, if not the value itself
    label: str = ""  # the argument that the message names, if not the one given
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
            rule = f"a number or a tensor of {dtype}"
            yield Wrong(name, torch.zeros((), dtype=other), ArgumentTypeError, rule, shown=(other,))
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


def called() -> Iterator[Wrong]:
    """What the function and the layer's call have in common."""
    yield from inputs()
    yield from masks()
    yield from of_one(by_constraint("key", KEY))
    yield from (wrong for wrong in tensors() if wrong.name != "p")
    yield from by_type("return_mask", FLAGS, "True or False")
    yield from of_one(wrong for wrong in places() if wrong.name != "broadcast_dims")


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


def addition() -> Iterator[Wrong]:
    yield from inputs()
    yield from source()
    yield from other("residual", (2, 3))


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


def layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_type("inplace", FLAGS, "True or False")
    yield from by_constraint("scale_at", SCALE_AT)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")
    axes = (None, 1.0, "1", True, [True], [0.5], (None,), {1})
    yield from by_type("broadcast_dims", axes, "an integer or a sequence of integers")


def numbers(function: str) -> Iterator[Wrong]:
    yield from by_constraint("key", KEY)
    yield from shapes("shape")
    yield from places()
    if function == "keep_mask":
        yield from by_constraint("p", PROBABILITY)
    if function in {"uniform", "normal"}:
        rule = "float16, float32 or float64"
        for value in (int, "int32", np.complex64, np.longdouble, torch.float32, "nonsense", 3):
            yield Wrong("dtype", value, ArgumentError, rule)


def keys(function: str) -> Iterator[Wrong]:
    constraints: dict[str, dict[str, Any]] = {
        "call_key": {"seed": KEY, "step": KEY, "call": WORD},
        "field": {"key": KEY, "d": FIELD},
        "fold": {"a": KEY, "b": WORD, "c": KEY},
        "threshold": {"p": PROBABILITY},
        "site": {},
    }
    for name, constraint in constraints[function].items():
        yield from by_constraint(name, constraint)
    if function in {"call_key", "site"}:
        for value in (None, 1, b"a", ["a"]):
            yield Wrong("name", value, ArgumentTypeError, "a string")


def words() -> Iterator[Wrong]:
    for name, length in (("counter", 4), ("key", 2)):
        for value in (None, 3, (1,) * (length + 1), (), [1], np.zeros(length + 1, int)):
            yield Wrong(name, value, ArgumentError, f"{length} words")
        for wrong in by_constraint(f"{name}[1]", WORD):
            rest = (0,) * (length - 2)
            yield wrong._replace(name=name, value=(0, wrong.value, *rest), shown=(wrong.value,), label=wrong.name)
        floats, negative = np.zeros(3), np.array([-1, 0])
        for value, error, rule in (
            (floats, ArgumentTypeError, "an array of integers"),
            (negative, ArgumentError, WORD.rule),
        ):
            whole = (value, *(0,) * (length - 1))
            yield Wrong(name, whole, error, rule, shown=(value,), label=f"{name}[0]")


CASES: dict[str, list[Wrong]] = {
    **{f"dropkit.random.{name}": list(keys(name)) for name in ("call_key", "field", "fold", "site", "threshold")},
    **{f"dropkit.random.{name}": list(numbers(name)) for name in ("keep_mask", "uniform32", "uniform", "normal")},
    "dropkit.random.philox4x32": list(words()),
    "dropkit.functional.dropout": list(function()),
    "dropkit.functional.dropout_add": list(addition()),
    "dropkit.functional.activation_dropout": list(activation()),
    "dropkit.functional.scaled_dot_product_attention": list(attention()),
    "dropkit.nn.Dropout": list(layer()),
    "dropkit.nn.Dropout.forward": list(called()),
}
for call, wrongs in CASES.items():  # None is no mistake where it is the default
    parameters = inspect.signature(PUBLIC[call]).parameters
    CASES[call] = [wrong for wrong in wrongs if wrong.value is not None or parameters[wrong.name].default is not None]


def expected(where: str, wrong: Wrong) -> str:
    value = wrong.value if wrong.shown is None else wrong.shown[0] if isinstance(wrong.shown, tuple) else wrong.shown
    shown = " ".join(repr(value).split())  # a message is one line
    shown = shown if len(shown) <= 200 else shown[:197] + "..."
    text = f"{where}: `{wrong.label or wrong.name}` must be {wrong.rule}, got {shown} ({type(value).__name__})."
    return f"{text} {wrong.remedy}" if wrong.remedy else text


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        pytest.param(call, wrong, id=f"{call}-{wrong.name}-{number}")
        for call, wrongs in CASES.items()
        for number, wrong in enumerate(wrongs)
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_the_rule(call: str, wrong: Wrong) -> None:
    where = call.rpartition(".")[2] if call != "dropkit.nn.Dropout.forward" else "dropout"
    state = torch.get_rng_state()
    with pytest.raises(wrong.error) as caught:
        PUBLIC[call](**GOOD[call] | wrong.beside | {wrong.name: wrong.value})
    assert str(caught.value) == expected(where, wrong)
    assert type(caught.value) is wrong.error
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(X, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "option"), [("dropout", {"training": False}), ("scaled_dot_product_attention", {"dropout_p": 0.1})]
)
def test_with_and_without_dropout_the_same_is_checked(name: str, option: dict[str, Any]) -> None:
    call = f"dropkit.functional.{name}"
    for wrong in CASES[call]:
        if wrong.name in {*option, "inplace"}:
            continue
        with pytest.raises(wrong.error) as caught:
            PUBLIC[call](**GOOD[call] | option | wrong.beside | {wrong.name: wrong.value})
        assert str(caught.value) == expected(name, wrong)


@pytest.mark.parametrize("call", PUBLIC)
def test_what_is_called_good_here_is_taken(call: str) -> None:
    PUBLIC[call](**GOOD[call])


def test_unknown_and_missing_arguments_are_errors_of_type() -> None:
    for call, function in PUBLIC.items():
        with pytest.raises(TypeError):
            function(**GOOD[call], no_such_argument=1)
        required = [n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty]
        for name in required:
            with pytest.raises(TypeError):
                function(**{n: v for n, v in GOOD[call].items() if n != name})


def test_every_argument_of_every_public_callable_is_tried() -> None:
    assert CASES.keys() == GOOD.keys() == PUBLIC.keys()
    missing = [
        f"{call}({name})"
        for call, function in PUBLIC.items()
        for name in set(inspect.signature(function).parameters) - {"self"}
        if name not in {wrong.name for wrong in CASES[call]}
    ]
    assert missing == []


def test_every_layer_is_tried_at_its_call_too() -> None:
    layers = {name for name in PUBLIC if name.startswith("dropkit.nn.") and inspect.isclass(PUBLIC[name])}
    forwards = {name.removesuffix(".forward") for name in PUBLIC if name.endswith(".forward")}
    assert layers == forwards
