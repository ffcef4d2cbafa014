"""Wrong arguments of layers that learn their noise, and of the functions below them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import linear

import dropkit
from dropkit._checks import KEY, POSITIVE, Choice, Integer, Number
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import AXIS, FLAGS, Wrong, by_constraint, by_type, factory, inputs, of_one, source, tensors

X, WEIGHT = torch.ones(2, 3), torch.ones(4, 3)
RATE = Number(
    0.0, 1.0, open_low=True, open_high=True, remedy="It is the rate at the start; 0 and 1 could not be learned."
)
FEATURES = Integer(1, 2**31 - 1, "[1, 2**31)")
LINEAR = {"in_features": 3, "out_features": 4}


def real(name: str = "input", where: str = "") -> Iterator[Wrong]:
    for wrong in inputs():
        yield wrong._replace(name=name, where=where)
    yield Wrong(name, X.cfloat(), ArgumentTypeError, "of a real floating type", shown=(torch.complex64,), where=where)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    remedy = "Pad it to one length, or take its parts one by one."
    rule = "a dense tensor, not a nested one"
    yield Wrong(name, nested, ArgumentTypeError, rule, remedy, shown=(nested.layout,), where=where)


def drawn(of: str = "input") -> Iterator[Wrong]:
    """Where noise comes from: all that dropout takes but a rate."""
    yield from (wrong for wrong in source(of=of) if wrong.name != "p")


def called(where: str, of: str = "input", input_where: str = "") -> Iterator[Wrong]:
    """The call of a layer."""
    yield from real(where=input_where or where)
    for wrong in (*of_one(by_constraint("key", KEY)), *tensors(of=of)):
        if wrong.name != "p":
            yield wrong._replace(where=where)


def alike(name: str) -> Iterator[Wrong]:
    """A learned tensor beside an input of shape (2, 3)."""
    yield from real(name)
    rule = "of a shape that broadcasts to the input's (2, 3)"
    for shape in ((2,), (3, 2), (1, 2, 3), (4, 3)):
        yield Wrong(name, torch.zeros(shape), ArgumentError, rule, shown=(shape,))
    meta = torch.zeros(3, device="meta")
    yield Wrong(name, meta, ArgumentError, "on the input's device cpu", shown=(meta.device,))


def divergence() -> Iterator[Wrong]:
    yield from real("log_alpha")
    yield from by_constraint("approximation", Choice(("sigmoid", "polynomial")))


def variational() -> Iterator[Wrong]:
    yield from real()
    yield from alike("log_alpha")
    yield from drawn()


def reparameterization() -> Iterator[Wrong]:
    yield from by_type("operation", (None, 3, "linear"), "a callable")
    for name in ("input", "weight", "variance", "bias"):
        yield from real(name)
    for shape in ((3,), (3, 4), (1, 3)):
        yield Wrong("variance", torch.ones(shape), ArgumentError, "of the weight's shape (4, 3)", shown=(shape,))
    yield from drawn("output")


def concrete() -> Iterator[Wrong]:
    yield from real()
    yield from alike("logit")
    yield from by_constraint("temperature", POSITIVE)
    for wrong in by_constraint("broadcast_dims", AXIS):
        if not isinstance(wrong.value, list):
            yield wrong
    yield Wrong("broadcast_dims", (0, -2), ArgumentError, "distinct axes")
    yield from drawn()


def concrete_layer() -> Iterator[Wrong]:
    yield from by_type("layer", (None, 3, torch.nn.Linear), "a torch.nn.Module")
    yield from by_constraint("p", RATE)
    yield from by_type("wraps", FLAGS, "True or False")
    yield from by_constraint("features", FEATURES)
    remedy = "It is the number of inputs that may be dropped on their own."
    yield Wrong(
        "layer", torch.nn.GRU(3, 3), ArgumentError, "given for a layer of type GRU", remedy, (None,), "features"
    )
    yield from by_type("spatial", FLAGS, "True or False")
    yield from by_constraint("temperature", POSITIVE)
    yield from by_constraint("length_scale", POSITIVE)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def concrete_call() -> Iterator[Wrong]:
    for wrong in called("concrete_dropout", input_where="ConcreteDropout"):
        is_address = wrong.name != "input"  # which the function names without the prefix
        yield wrong._replace(name=f"dropout_{wrong.name}", label=wrong.label or wrong.name) if is_address else wrong


def variational_layer(*per: str) -> Iterator[Wrong]:
    yield from by_constraint("p", RATE)
    rule = "at most 0.5, where alpha is 1"
    yield Wrong("p", 0.75, ArgumentError, rule, "Start at a lower rate, or raise max_alpha.")
    yield from by_constraint("per", Choice(per))
    yield from by_constraint("max_alpha", POSITIVE)
    yield from factory(is_real=True)


def bias() -> Iterator[Wrong]:
    yield from by_type("bias", (0.2, *FLAGS), "True or False")  # a rate that took its place


def sparse_layer() -> Iterator[Wrong]:
    remedy = "It is compared with ln(alpha); 3 prunes weights of p above 0.953."
    yield from by_constraint("threshold", Number(-1e3, 1e3, remedy=remedy))
    yield from by_constraint(
        "log_sigma2", Number(-100.0, 20.0, remedy="It is the logarithm of a variance at the start.")
    )
    yield from factory(is_real=True)


def collected() -> Iterator[Wrong]:
    yield from by_type("model", (None, 3, torch.nn.Linear), "a torch.nn.Module")
    remedy = "It is the number of rows of the training data, not of a batch."
    yield from by_constraint("rows", Integer(1, 2**63 - 1, "[1, 2**63)", remedy))


FUNCTION, LAYER = "dropkit.functional.", "dropkit.nn."
PLAIN = torch.nn.Linear(3, 4)
GOOD: dict[str, dict[str, Any]] = {
    FUNCTION + "log_uniform_kl": {"log_alpha": X},
    FUNCTION + "variational_dropout": {"input": X, "log_alpha": torch.zeros(3)},
    FUNCTION + "local_reparameterization": {"operation": linear, "input": X, "weight": WEIGHT, "variance": WEIGHT},
    FUNCTION + "concrete_dropout": {"input": X, "logit": torch.tensor(0.0)},
    LAYER + "regularization": {"model": PLAIN, "rows": 3},
    LAYER + "pruned": {"model": PLAIN},
    LAYER + "ConcreteDropout": {"layer": PLAIN},
    LAYER + "ConcreteDropout.forward": {"self": dropkit.nn.ConcreteDropout(PLAIN), "input": X},
    LAYER + "VariationalDropout": {"features": 3},
    LAYER + "VariationalDropout.forward": {"self": dropkit.nn.VariationalDropout(3), "input": X},
    LAYER + "VariationalLinear": LINEAR,
    LAYER + "VariationalLinear.forward": {"self": dropkit.nn.VariationalLinear(3, 4), "input": X},
    LAYER + "SparseVariationalLinear": LINEAR,
    LAYER + "SparseVariationalLinear.forward": {"self": dropkit.nn.SparseVariationalLinear(3, 4), "input": X},
    LAYER + "SparseVariationalConv2d": {"in_channels": 3, "out_channels": 4, "kernel_size": 1},
    LAYER + "SparseVariationalConv2d.forward": {
        "self": dropkit.nn.SparseVariationalConv2d(3, 4, 1), "input": torch.ones(2, 3, 1, 1),
    },
}  # fmt: skip
OUTPUT = "local_reparameterization"
CASES = {
    FUNCTION + "log_uniform_kl": list(divergence()),
    FUNCTION + "variational_dropout": list(variational()),
    FUNCTION + "local_reparameterization": list(reparameterization()),
    FUNCTION + "concrete_dropout": list(concrete()),
    LAYER + "regularization": list(collected()),
    LAYER + "pruned": [wrong for wrong in collected() if wrong.name == "model"],
    LAYER + "ConcreteDropout": list(concrete_layer()),
    LAYER + "ConcreteDropout.forward": list(concrete_call()),
    LAYER + "VariationalDropout": [
        *variational_layer("unit", "layer"), *by_constraint("features", FEATURES),
        *by_constraint("dim", Integer(-(2**31), 2**31 - 1, "[-2**31, 2**31)")),
    ],
    LAYER + "VariationalDropout.forward": list(called("variational_dropout", input_where="VariationalDropout")),
    LAYER + "VariationalLinear": [*variational_layer("weight", "unit", "layer"), *bias()],
    LAYER + "VariationalLinear.forward": list(called(OUTPUT, "output")),
    LAYER + "SparseVariationalLinear": [*sparse_layer(), *bias()],
    LAYER + "SparseVariationalLinear.forward": list(called(OUTPUT, "output")),
    LAYER + "SparseVariationalConv2d": [*sparse_layer(), *bias()],
    LAYER + "SparseVariationalConv2d.forward": list(called(OUTPUT, "output")),
}  # fmt: skip
_LINEAR = {"in_features", "out_features"}
HANDED_ON = {
    LAYER + "VariationalLinear": _LINEAR,
    LAYER + "SparseVariationalLinear": _LINEAR,
    LAYER + "SparseVariationalConv2d": {
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode",
    },
}  # fmt: skip
