"""Wrong arguments of recurrent networks and of zoneout."""

from collections.abc import Iterator
from typing import Any

import torch

import dropkit
from dropkit._checks import KEY, PROBABILITY, STREAM, Choice, Integer
from dropkit.errors import ArgumentError, ArgumentTypeError
from tests.helpers.wrong import FLAGS, Wrong, by_constraint, by_type, factory, inputs, masks, of_one, source, tensors

X = torch.ones(2, 3)
SEQUENCES = torch.ones(2, 2, 3)


def states() -> Iterator[Wrong]:
    yield from (wrong._replace(name="new", where="zoneout") for wrong in inputs())
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    remedy = "Call to_padded_tensor(0) first."
    yield Wrong("new", nested, ArgumentTypeError, "a dense tensor", remedy, (nested.layout,), where="zoneout")
    for wrong in by_type("old", (None, 1.0, [1.0]), "a torch.Tensor"):
        yield wrong._replace(where="zoneout")
    half = X.half()
    rule = "of the new state's type torch.float32"
    yield Wrong("old", half, ArgumentTypeError, rule, shown=(half.dtype,), where="zoneout")
    for shape in ((3,), (2, 1), (3, 2)):
        yield Wrong("old", torch.ones(shape), ArgumentError, "of shape (2, 3)", shown=(shape,), where="zoneout")
    meta = torch.ones(2, 3, device="meta")
    yield Wrong("old", meta, ArgumentError, "on the new state's device cpu", shown=(meta.device,), where="zoneout")
    for wrong in (*masks(), *by_type("return_mask", FLAGS, "True or False")):
        yield wrong._replace(where="zoneout")


def function() -> Iterator[Wrong]:
    yield from states()
    yield from source(of="new")


def layer_call() -> Iterator[Wrong]:
    yield from states()
    for wrong in of_one(by_constraint("key", KEY)):
        yield wrong._replace(where="zoneout")
    yield from (wrong._replace(where="zoneout") for wrong in tensors(of="new") if wrong.name != "p")


def layer() -> Iterator[Wrong]:
    yield from by_constraint("p", PROBABILITY)
    yield from by_type("generator", (3, "cpu"), "a torch.Generator")


def network(kind: str) -> Iterator[Wrong]:
    size = Integer(1, 2**31 - 1, "[1, 2**31)")
    for name in ("input_size", "hidden_size", "num_layers"):
        yield from by_constraint(name, size)
    if kind == "LSTM":
        yield from by_constraint("proj_size", Integer(0, 3, "[0, 4)", "It is less than hidden_size."))
    else:
        remedy = "PyTorch's GRU has no projections, only its LSTM."
        yield from by_constraint("proj_size", Integer(0, 0, "0", remedy))
    for name in ("bias", "batch_first", "bidirectional", "tied"):
        yield from by_type(name, FLAGS, "True or False")
    yield from factory(is_real=True)
    zoneouts = ("zoneout_c", "zoneout_h") if kind == "LSTM" else ("zoneout",)
    for name in ("dropout", "input_p", "recurrent_p", "output_p", "update_p", *zoneouts):
        yield from by_constraint(name, PROBABILITY)
    yield from by_constraint("update_mask", Choice(("step", "sequence")))


def network_call(kind: str) -> Iterator[Wrong]:
    yield from (wrong._replace(where=kind) for wrong in _network_call(kind))


def _network_call(kind: str) -> Iterator[Wrong]:
    yield from by_type("input", (None, 1.0, [1.0], (SEQUENCES, None)), "a torch.Tensor or a PackedSequence")
    rule, remedy = "of the weights' type torch.float32", "Convert it, or the network."
    for dtype in (torch.float64, torch.int64):
        yield Wrong("input", SEQUENCES.to(dtype), ArgumentTypeError, rule, remedy, (dtype,))
    sparse = SEQUENCES.to_sparse()
    yield Wrong("input", sparse, ArgumentTypeError, "a dense tensor or a PackedSequence", shown=(sparse.layout,))
    nested = torch.nested.nested_tensor([*SEQUENCES], layout=torch.jagged)
    rule, remedy = (
        "a dense tensor or a PackedSequence",
        "Pack them: pack_sequence(input.unbind(), enforce_sorted=False).",
    )
    yield Wrong("input", nested, ArgumentTypeError, rule, remedy, (nested.layout,))
    for shape in ((3,), (2, 2, 4), (1, 2, 2, 3)):
        yield Wrong("input", torch.ones(shape), ArgumentError, "of 2 or 3 axes, the last of length 3", shown=(shape,))
    empty = torch.ones(0, 2, 3)
    yield Wrong("input", empty, ArgumentError, "of one step or more", shown=(tuple(empty.shape),))
    state = torch.zeros(1, 2, 4)
    label, good = ("hx[1]", (state,)) if kind == "LSTM" else ("hx", ())
    for value, error, rule, shown in (
        ("x", ArgumentTypeError, "a torch.Tensor", "x"),
        (state.double(), ArgumentTypeError, "of the input's type torch.float32", torch.float64),
        (torch.zeros(2, 4), ArgumentError, "of shape (1, 2, 4)", (2, 4)),
        (torch.zeros(1, 3, 4), ArgumentError, "of shape (1, 2, 4)", (1, 3, 4)),
        (state.to("meta"), ArgumentError, "on the input's device cpu", torch.device("meta")),
    ):
        yield Wrong("hx", (*good, value) if good else value, error, rule, shown=(shown,), label=label)
    if kind == "LSTM":
        for pair in ([state], 3):
            yield Wrong("hx", pair, ArgumentTypeError, "a pair of tensors, (h_0, c_0)")
    yield from of_one(by_constraint("key", KEY))
    yield from of_one(by_constraint("stream", STREAM))
    yield from (wrong for wrong in tensors() if wrong.name != "p")
    yield from by_type("return_masks", FLAGS, "True or False")
    yield from network_masks(kind)


def network_masks(kind: str) -> Iterator[Wrong]:
    yield from by_type("masks", (3, [X], X), "a dict of masks by name")
    zones = ["zoneout_c_l0", "zoneout_h_l0"] if kind == "LSTM" else ["zoneout_l0"]
    names = ["input_l0", "recurrent_l0", "update_l0", *zones, "output"]
    good, rule = torch.ones(2, 1, 4, dtype=torch.bool), "a dict with names of this module's masks"
    yield Wrong("masks", {"recurrent_l1": good}, ArgumentError, rule, f"They are {names}.", ("recurrent_l1",))
    for value, shown in ((good.float(), torch.float32), ([True], [True])):
        wrong = {"update_l0": value}
        yield Wrong("masks", wrong, ArgumentTypeError, "a bool tensor", "True is kept.", (shown,), "masks['update_l0']")
    for shape in ((2, 4), (1, 3, 4), (3, 1, 4), (2, 1, 3)):
        wrong = {"update_l0": torch.ones(shape, dtype=torch.bool)}
        rule = "of shape (2, 2, 4), or with length 1 on axes that share"
        yield Wrong("masks", wrong, ArgumentError, rule, shown=(shape,), label="masks['update_l0']")
    meta = good.to("meta")
    rule = "on the input's device cpu"
    yield Wrong("masks", {"output": meta}, ArgumentError, rule, shown=(meta.device,), label="masks['output']")


GOOD: dict[str, dict[str, Any]] = {
    "dropkit.functional.zoneout": {"new": X, "old": torch.zeros(2, 3)},
    "dropkit.nn.LSTM": {"input_size": 3, "hidden_size": 4},
    "dropkit.nn.LSTM.forward": {"self": dropkit.nn.LSTM(3, 4, recurrent_p=0.5), "input": SEQUENCES},
    "dropkit.nn.GRU": {"input_size": 3, "hidden_size": 4},
    "dropkit.nn.GRU.forward": {"self": dropkit.nn.GRU(3, 4, recurrent_p=0.5), "input": SEQUENCES},
    "dropkit.nn.Zoneout": {},
    "dropkit.nn.Zoneout.forward": {"self": dropkit.nn.Zoneout(), "new": X, "old": torch.zeros(2, 3)},
}
CASES = {
    "dropkit.functional.zoneout": list(function()),
    "dropkit.nn.LSTM": list(network("LSTM")),
    "dropkit.nn.LSTM.forward": list(network_call("LSTM")),
    "dropkit.nn.GRU": list(network("GRU")),
    "dropkit.nn.GRU.forward": list(network_call("GRU")),
    "dropkit.nn.Zoneout": list(layer()),
    "dropkit.nn.Zoneout.forward": list(layer_call()),
}
