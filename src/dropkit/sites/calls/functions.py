"""The functions that draw dropout: where each has its rate and its switch, and calls with their arguments by name."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dropkit.functional as ours
from dropkit.sites.calls.heads import attend_with_heads
from dropkit.sites.calls.networks import NETWORKS

__all__ = ["FUNCTIONS", "INFERENCE", "Call", "Function", "find_call"]


@dataclass(frozen=True)
class Function:
    """One function that draws dropout.

    Args:
        kind: What it is called in lists of sites.
        function: The function.
        rate: Its argument that is the probability of dropping; None where the rate is learned.
        switch: Its argument that says whether it drops; None where the rate alone does.
        key: Its argument for the key, which dropkit's own functions alone have.
        mask: Its argument for the mask, or for noise that is not a mask, to use instead of drawing; where there is one.
        returned: Its argument that asks for the mask or the noise; where there is one.
        overloads: Names of the arguments of a built-in function, which has no signature; one tuple an overload.
        names: Names of the arguments of a Python function.
        positional: How many of them it takes by position.
        defaults: Their defaults.
    """

    kind: str
    function: Callable[..., Any]
    rate: str | None = "p"
    switch: str | None = "training"
    key: str | None = None
    mask: str | None = None
    returned: str | None = None
    overloads: tuple[tuple[str, ...], ...] = ()
    names: tuple[str, ...] = ()
    positional: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name; with their defaults, where a Python function has them."""
        if self.overloads:
            # Of a recurrent network on packed sequences the fourth argument is a list, on padded ones a flag.
            is_packed = len(self.overloads) > 1 and not isinstance(args[3], bool)
            return dict(zip(self.overloads[is_packed], args, strict=False)) | dict(kwargs)
        if len(args) > self.positional:
            self.function(*args, **kwargs)  # it says best what is wrong
        given = {**self.defaults, **dict(zip(self.names, args, strict=False)), **kwargs}
        return {name: given[name] for name in self.names if name in given} | dict(kwargs)


@dataclass(frozen=True)
class Call:
    """A call of a function that draws dropout.

    Args:
        function: The row of the function.
        arguments: Its arguments by name.
        positional: How many of them a built-in function takes by position.
    """

    function: Function
    arguments: Mapping[str, Any]
    positional: int = field(default=0, repr=False)

    @property
    def p(self) -> Any:
        """The rate, a number or a tensor; None where it is learned."""
        return None if self.function.rate is None else self.arguments.get(self.function.rate, 0.0)

    @property
    def training(self) -> bool:
        """Whether it is asked to drop."""
        switch = self.function.switch
        if (
            self.function.function is torch.native_dropout and self.arguments.get("train") is None
        ):  # as it is read there
            return True
        return switch is None or bool(self.arguments.get(switch))

    @property
    def is_active(self) -> bool:
        """Whether it drops, or may drop."""
        rate = self.p
        is_between = self.arguments.get("num_layers", 2) > 1  # a network of one layer has nothing to drop
        return self.training and is_between and (not isinstance(rate, float | int) or rate > 0)

    @property
    def input(self) -> Tensor:
        """The tensor that noise is drawn for: the first among the arguments."""
        return next(value for name, value in self.arguments.items() if self._is_input(name, value))

    @property
    def has_input(self) -> bool:
        """Whether there is such a tensor; a call without one has to run as it is, for it says best what is wrong."""
        return any(self._is_input(name, value) for name, value in self.arguments.items())

    def _is_input(self, name: str, value: Any) -> bool:
        return isinstance(value, Tensor) and name != self.function.rate

    @property
    def shared(self) -> tuple[int, ...]:
        """Axes of the input along which one draw is shared."""
        kind, rank = self.function.kind, self.input.dim()
        if self.function.function is F.dropout2d:  # which takes axis 0 for the batch at every rank
            return tuple(range(2, rank))
        if self.function.function is F.dropout3d:  # which takes all that has not five axes for a single example
            return tuple(range(2 if rank == _BATCHED else 1, rank))
        if kind in _MAPS:
            return tuple(range(rank - _MAPS[kind], rank))
        if kind in ("feature_dropout", "feature_alpha_dropout"):
            return tuple(range(2, rank))
        if kind in ("drop_path", "skip_path"):
            return tuple(range(1 if self.arguments["mode"] == "row" else 0, rank))
        if kind == "locked_dropout":
            return (1,) if self.arguments["batch_first"] else (0,)
        axes = self.arguments.get("broadcast_dims", ())
        return tuple(sorted(axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)))

    def changed(self, **arguments: Any) -> "Call":
        """Return the same call with other arguments."""
        return replace(self, arguments={**self.arguments, **arguments})

    def switched(self, on: bool) -> "Call":
        """Return the same call with its switch on or off; one without a switch is turned off by its rate."""
        if self.function.switch is not None:
            return self.changed(**{self.function.switch: on})
        return self if on or self.function.rate is None else self.changed(**{self.function.rate: 0.0})

    def run(self) -> Any:
        """Call the function."""
        args, kwargs = self.parts()
        return self.function.function(*args, **kwargs)

    def parts(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as the function takes them: by position, and by name."""
        names = list(self.arguments)
        args = tuple(self.arguments[name] for name in names[: self.positional])
        return args, {name: self.arguments[name] for name in names[self.positional :]}


_MAPS = {"dropout1d": 1, "dropout2d": 2, "dropout3d": 3}  # number of an element's axes
_BATCHED = 5  # number of axes of a batch of maps of three axes
_FLAGS = ("params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
_RECURRENT = ("input", "hx", *_FLAGS, "batch_first"), ("data", "batch_sizes", "hx", *_FLAGS)
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def _of_python(kind: str, function: Callable[..., Any], rate: str | None = "p", key: str | None = None) -> Function:
    """Return the row of a Python function; its signature is read once, for reading it takes longer than dropping."""
    parameters = inspect.signature(function).parameters.values()
    names = tuple(each.name for each in parameters)
    positional = sum(each.kind is not each.KEYWORD_ONLY for each in parameters)
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return Function(kind, function, rate, key=key, names=names, positional=positional, defaults=defaults)


def _of_pytorch() -> Iterator[Function]:
    for kind in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"):
        yield _of_python(kind, getattr(F, kind))
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        for name in (kind, f"{kind}_"):
            yield Function(kind, getattr(torch, name), switch="train", overloads=(("input", "p", "train"),))
    yield Function("dropout", torch.native_dropout, switch="train", overloads=(("input", "p", "train"),))
    for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        yield Function(kind, getattr(torch, kind), "dropout", "train", overloads=_RECURRENT)
    attention = F.scaled_dot_product_attention
    yield Function("scaled_dot_product_attention", attention, "dropout_p", None, overloads=(_ATTENTION,))
    yield _of_python("multi_head_attention", F.multi_head_attention_forward, "dropout_p")


def _of_dropkit() -> Iterator[Function]:
    for kind in ours.__all__:
        function = getattr(ours, kind)
        if "training" in inspect.signature(function).parameters:
            yield _own(kind, function)
    yield _own("multi_head_attention", attend_with_heads)
    for kind, network in NETWORKS.items():
        yield _own(kind, network)


def _own(kind: str, function: Callable[..., Any]) -> Function:
    """Return the row of a function of dropkit's, whose arguments tell by their names what they are."""
    names = inspect.signature(function).parameters

    def first(*candidates: str) -> str | None:
        return next((name for name in candidates if name in names), None)

    row = _of_python(kind, function, first("p", "dropout_p", "dropout"), first("dropout_key", "key"))
    return replace(
        row,
        switch=first("training", "train"),
        mask=first("dropout_mask", "mask", "noise"),
        returned=first("return_dropout_mask", "return_mask", "return_noise"),
    )


def _of_programs(rows: Mapping[Callable[..., Any], Function]) -> Iterator[tuple[Callable[..., Any], Function]]:
    """Yield the operators by which exported programs and others call PyTorch's functions, with the rows of those."""
    names = ["dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"]
    functions = {name: getattr(torch, name) for name in [*names, "lstm", "gru", "rnn_tanh", "rnn_relu"]}
    functions["scaled_dot_product_attention"] = F.scaled_dot_product_attention
    for name, function in functions.items():
        operator, row = getattr(torch.ops.aten, name), rows[function]
        yield operator, row
        yield from ((getattr(operator, overload), row) for overload in operator.overloads() if overload != "out")


_ROWS = {row.function: row for rows in (_of_pytorch(), _of_dropkit()) for row in rows}
# No read-only view of it, which torch.compile could not look up functions in.
FUNCTIONS: Mapping[Callable[..., Any], Function] = {**_ROWS, **dict(_of_programs(_ROWS))}
"""Every function that draws dropout, PyTorch's and dropkit's, with what is known of it."""


INFERENCE: Mapping[Callable[..., Any], Function] = {
    ours.drop_connect_inference: _own("drop_connect_inference", ours.drop_connect_inference)
}
"""Functions that draw in evaluation, to average over draws: no dropout, which could be switched off or found."""


def find_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rows: Mapping[Callable[..., Any], Function] = FUNCTIONS,
) -> Call | None:
    """Return what a call of any function is as a call that draws dropout, or None if it is none."""
    try:
        row = rows.get(function)
    except TypeError:  # it has no hash
        return None
    if row is None:
        return None
    return Call(row, row.bind(args, kwargs), len(args) if row.overloads else 0)
