"""The flow of data through a model: which call reads what, seen by running it."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils.rnn import PackedSequence

from dropkit.sites.calls.functions import Call
from dropkit.sites.handwritten.applications import Application
from dropkit.sites.handwritten.masks import Masks
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.interceptor import Handler, Interceptor
from dropkit.sites.interception.names import module_names
from dropkit.sites.interception.places import Place
from dropkit.sites.interception.restoring import cloned, restored

__all__ = ["Flow", "Knob", "Port", "Step", "Value", "trace"]

_KINDS = {
    **dict.fromkeys(("linear", "addmm", "bilinear"), "dense"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "convolution"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "convolution"),
    **dict.fromkeys(("embedding", "embedding_bag"), "embedding"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), "cell"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "recurrent"),
    **dict.fromkeys(("scaled_dot_product_attention", "multi_head_attention"), "attention"),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm"), "norm"),
    **dict.fromkeys(("batch_norm", "sync_batch_norm"), "batch_norm"),
    **dict.fromkeys(("add", "iadd", "radd"), "sum"),
    **dict.fromkeys(("softmax",), "softmax"),
}
_PRODUCTS = ("matmul", "rmatmul", "mm", "bmm", "einsum")  # dense layers where one operand is a parameter
LAYERS = ("dense", "convolution", "embedding", "cell", "recurrent", "attention")
_EMPTY = ("new_empty", "new_zeros", "new_ones", "empty_like", "zeros_like", "ones_like", "rand_like", "randn_like")
_CLOSE = 1e-6  # how far a rate that was computed may be from the one it was computed of


@dataclass(frozen=True)
class Port:
    """Where a tensor enters or leaves the forward of a module.

    Args:
        path: Name of the module.
        module: The module.
        is_input: Whether it enters.
        index: Position among the arguments, or in a tuple that is returned; None where the tensor alone is.
        name: Name of the argument, or of the value in a dict that is returned.
    """

    path: str
    module: Module
    is_input: bool
    index: int | None = None
    name: str | None = None


@dataclass(eq=False)
class Value:
    """A tensor at one moment of a forward.

    Args:
        shape: Its shape.
        is_floating: Whether it has floating or complex numbers.
        step: What made it; None for what the model was given.
        readers: What reads it.
        ports: Where it enters and leaves modules, in order.
    """

    shape: tuple[int, ...]
    is_floating: bool
    step: "Step | None" = None
    readers: list["Step"] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)


@dataclass(eq=False)
class Knob:
    """An attribute that holds a rate.

    Args:
        path: Name of its module.
        module: The module.
        name: Name of the attribute.
        p: The rate.
    """

    path: str
    module: Module
    name: str
    p: float

    def turn(self, p: float) -> None:
        """Set the rate."""
        setattr(self.module, self.name, p)


@dataclass(eq=False)
class Step:
    """A call of PyTorch.

    Args:
        kind: What it is for the flow: a layer such as ``"dense"``, ``"norm"``, ``"sum"``, ``"dropout"`` or ``"other"``.
        name: Name of the function.
        path: Name of the innermost module whose forward is running.
        module: The module.
        inputs: What it reads of what has come through the model.
        outputs: What it makes.
        site: Name of the site, of what draws dropout.
        draws: Kind of the site.
        p: Its rate, if it is asked to drop.
        knob: Where that rate is kept; None where it is written in code.
        is_mask: Whether it is a hand-written mask, whose rate is computed from what is seen of it.
    """

    kind: str
    name: str
    path: str
    module: Module
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    site: str = ""
    draws: str = ""
    p: float = 0.0
    knob: Knob | None = None
    is_mask: bool = False

    @property
    def is_layer(self) -> bool:
        """Whether it has weights that mix features, or attends."""
        return self.kind in LAYERS


@dataclass
class Flow:
    """What one forward in training mode did.

    Args:
        steps: Its calls, in order.
        inputs: What the model was given.
        outputs: What it returned.
        runs: How often each module ran.
    """

    steps: list[Step] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)

    def kind(self, *kinds: str) -> list[Step]:
        """Return the steps of some kinds."""
        return [step for step in self.steps if step.kind in kinds]

    def active(self) -> dict[str, float]:
        """Return the rate of every site that drops, at its first call."""
        return {step.site: step.p for step in reversed(self.steps) if step.site and step.p}


def trace(model: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, probing: bool = False) -> Flow:
    """Run a model once in training mode, and return the flow of data through it.

    Args:
        model: The model, without wrappers; it is left as it was.
        args: What its forward takes.
        kwargs: The same, by name.
        probing: Whether to find out where rates are kept: every attribute that may be a rate is given one of its own
            meanwhile, and nothing is dropped.
    """
    knobs = list(_knobs(model))
    recorder = _Recorder(model)
    with (
        restored(model), _probed(knobs if probing else []) as recorder.probes, torch.compiler.set_stance("force_eager"),
        torch.inference_mode(False),
    ):  # fmt: skip
        model.train()
        given, named = cloned((args, dict(kwargs)))
        recorder.flow.inputs = [recorder.value(tensor) for tensor in _tensors((given, named))]
        with recorder.hooked(), attached(model, recorder) as recorder.interceptor:
            result = model(*given, **named)
        recorder.settle()
        recorder.flow.outputs = [recorder.values[id(t)] for t in _tensors(result) if id(t) in recorder.values]
    return recorder.flow


class _Recorder(Handler):
    """Notes every call, and every tensor that enters or leaves a module."""

    interceptor: Interceptor

    def __init__(self, model: Module) -> None:
        self.flow = Flow()
        self.names = module_names(model)
        self.values: dict[int, Value] = {}
        self.probes: Mapping[float, Knob] = {}
        self.masks = Masks(self, apply=self._apply)
        self._application: tuple[Application, Value | None] | None = None  # which the call that runs now is
        self._applied: list[tuple[Step, Application, Value]] = []
        self._kept: list[Any] = []  # so that no other tensor gets the identity of one that is gone

    def value(self, tensor: Tensor, step: Step | None = None) -> Value:
        """Return what stands for a tensor from now on."""
        shape = () if tensor.is_nested else tuple(tensor.shape)
        value = Value(shape, tensor.is_floating_point() or tensor.is_complex(), step)
        self._kept.append(tensor)
        self.values[id(tensor)] = value
        return value

    def dropout(self, place: Place, call: Call) -> Any:
        rate = call.p
        p = float(rate) if isinstance(rate, float | int) or (isinstance(rate, Tensor) and rate.numel() == 1) else 0.0
        knob, p = self._knob(p)
        p = p if call.training else 0.0
        result = call.switched(False).run() if self.probes else call.run()
        if result is call.input and not call.arguments.get("inplace"):
            result = result.view_as(result)  # a tensor of its own, as dropping makes one
        kind = _KINDS.get(call.function.kind, "dropout")
        step = self._step(kind, call.function.kind, tuple(call.arguments.values()), result)
        step.site, step.draws, step.p, step.knob = place.name, call.function.kind, p, knob
        return result

    def other(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        name = getattr(function, "__name__", "")
        before = {id(tensor): tensor._version for tensor in _tensors((args, kwargs))}
        self._application = None
        result = self.masks.call(function, args, kwargs)
        if name in _EMPTY:
            return result
        written = args[0] if name == "__setitem__" else result
        made = [t for t in _tensors(written) if before.get(id(t)) != t._version]
        if made:
            step = self._step(_kind_of(name, args, kwargs), name, (args, kwargs), made)
            if self._application is not None and self._application[1] is not None:
                self._applied.append((step, *self._application))
        return result

    def _apply(self, application: Application) -> Any:
        """Note that the call that runs now applies a hand-written mask, if that is what it turns out to be."""
        self._application = application, self.values.get(id(application.input))
        return application.run()

    def settle(self) -> None:
        """Turn calls that apply masks into steps that drop, now that it is known what became of every mask."""
        for step, application, value in self._applied:
            mask = application.mask
            if not mask.is_dropout or mask.p is None:
                continue
            for other in step.inputs:
                if other is not value:
                    other.readers.remove(step)
            step.kind, step.draws, step.is_mask = "dropout", _kind_of_mask(application), True
            step.inputs, step.site = [value], mask.place.name
            step.knob, step.p = self._knob(mask.p)

    def _knob(self, p: float) -> tuple[Knob | None, float]:
        """Return where a rate is kept, if that is known, and the rate that is there when nothing is probed."""
        if p in self.probes:
            return self.probes[p], self.probes[p].p
        near = min(self.probes, key=lambda probe: abs(probe - p), default=math.inf)
        return (self.probes[near], self.probes[near].p) if abs(near - p) < _CLOSE else (None, p)

    def _step(self, kind: str, name: str, given: Any, made: Any) -> Step:
        frame = self.interceptor.frames[-1]
        known = {id(t): self.values[id(t)] for t in _tensors(given) if id(t) in self.values}
        step = Step(kind, name.strip("_"), frame.name, frame.module, list(known.values()))
        if known:
            step.outputs = [self.value(tensor, step) for tensor in _tensors(made)]
            for value in known.values():
                value.readers.append(step)
        self.flow.steps.append(step)
        return step

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Note what enters and leaves modules, for a while."""
        handles: list[Any] = []
        try:
            for path, module in self.names.items():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                handles.append(module.register_forward_pre_hook(self._entry(path), with_kwargs=True))
                handles.append(module.register_forward_hook(self._exit(path), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entry(self, path: str) -> Callable[..., None]:
        def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.flow.runs[path] = self.flow.runs.get(path, 0) + 1
            names = list(inspect.signature(module.forward).parameters)
            for index, given in enumerate(args):
                self._note(given, Port(path, module, True, index, names[index] if index < len(names) else None))
            for name, given in kwargs.items():
                self._note(given, Port(path, module, True, names.index(name) if name in names else None, name))

        return enter

    def _exit(self, path: str) -> Callable[..., None]:
        def leave(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            unknown = [t for t in _tensors(result) if id(t) not in self.values and t.is_floating_point()]
            if unknown:  # made by what no function mode sees, such as an autograd.Function
                self._step("other", type(module).__name__, (args, kwargs), unknown)
            if isinstance(result, Mapping):
                for name, made in result.items():
                    self._note(made, Port(path, module, False, None, str(name)))
            elif isinstance(result, tuple | list) and not isinstance(result, PackedSequence):
                for index, made in enumerate(result):
                    self._note(made, Port(path, module, False, index))
            else:
                self._note(result, Port(path, module, False))

        return leave

    def _note(self, given: Any, port: Port) -> None:
        tensor = given.data if isinstance(given, PackedSequence) else given
        if isinstance(tensor, Tensor) and id(tensor) in self.values:
            self.values[id(tensor)].ports.append(port)


def _kind_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    plain = name.strip("_")
    if plain in _PRODUCTS and any(isinstance(t, Parameter) for t in _tensors((args, kwargs))):
        return "dense"
    kind = _KINDS.get(plain, "other")
    if kind == "batch_norm":  # without running statistics nothing is stored that evaluation would miss
        running = kwargs.get("running_mean", args[1] if len(args) > 1 else None)
        return "norm" if running is None else kind
    return kind


def _kind_of_mask(application: Application) -> str:
    """Return what a hand-written mask is in a plan, by the axes of its input along which one draw is shared."""
    shared, rank = application.shared, application.input.dim()
    if not shared:
        return "mask"
    own = [axis for axis in range(rank) if axis not in shared]
    return "drop_path" if own == [0] else "channel_mask" if own == [0, 1] else "shared_mask"


def _tensors(values: Any) -> list[Tensor]:
    """Return all tensors in nested containers, dataclasses and packed sequences."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, PackedSequence):
        return [values.data]
    if isinstance(values, Mapping):
        values = list(values.values())
    elif hasattr(values, "__dataclass_fields__") and not isinstance(values, type):
        values = [getattr(values, name) for name in values.__dataclass_fields__]
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def _knobs(model: Module) -> Iterator[Knob]:
    """Yield every attribute of a module that may be the rate of what it draws."""
    for path, module in module_names(model).items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        named = [name for name in vars(module) if "drop" in name and "layer" not in name and name[0] != "_"]
        for name in ["p", *named]:
            p = getattr(module, name, None)
            if isinstance(p, float | int) and not isinstance(p, bool) and 0 <= p <= 1:
                yield Knob(path, module, name, float(p))


@contextmanager
def _probed(knobs: list[Knob]) -> Iterator[Mapping[float, Knob]]:
    """Give each knob a rate of its own for a while, which tells where it is used."""
    before = [getattr(knob.module, knob.name) for knob in knobs]
    probes = {0.25 + (number + 1) * 2.0**-18: knob for number, knob in enumerate(knobs)}
    try:
        for p, knob in probes.items():
            knob.turn(p)
        yield probes
    finally:
        for knob, p in zip(knobs, before, strict=True):
            setattr(knob.module, knob.name, p)
