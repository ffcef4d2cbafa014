"""Placing layers in a model that exists: as children of its modules, called by hooks, and all of it can be undone."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from dropkit.nn import Dropout1d, Dropout2d, Dropout3d, LockedDropout
from dropkit.sites.calls.functions import find_call
from dropkit.sites.placing.flow import Knob, Port

__all__ = ["BetweenLayers", "Change", "PlacedLayer", "Placement", "RateChange", "is_placed"]


class Change(Protocol):
    """Something that is done to a model, and undone."""

    def apply(self) -> None:
        """Do it."""

    def undo(self) -> None:
        """Undo it."""


class RateChange:
    """Another rate in an attribute of a module."""

    def __init__(self, knob: Knob, p: float) -> None:
        self.knob, self.p = knob, p

    def apply(self) -> None:
        """Set the rate."""
        self._before = getattr(self.knob.module, self.knob.name)
        self.knob.turn(self.p)

    def undo(self) -> None:
        """Set the rate that was there."""
        setattr(self.knob.module, self.knob.name, self._before)


class PlacedLayer:
    """A hook that gives one tensor of its module's forward to a child of that module.

    It knows the child by name, so copies and pickles of the module have hooks of their own, which call children of
    their own.

    Args:
        child: Name of the child.
        index: Position of the tensor among the arguments, or in what is returned; None where it has none.
        name: Name of the argument, or of the value in a dict that is returned.
    """

    def __init__(self, child: str, index: int | None, name: str | None) -> None:
        self.child, self.index, self.name = child, index, name

    def _drop(self, module: Module, given: Any) -> Any:
        layer = module._modules[self.child]
        return given if given is None or layer is None else _through(layer, given)

    def before(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Drop from an argument."""
        if self.index is not None and self.index < len(args):
            return (*args[: self.index], self._drop(module, args[self.index]), *args[self.index + 1 :]), kwargs
        if self.name in kwargs:
            return args, {**kwargs, self.name: self._drop(module, kwargs[self.name])}
        return None

    def after(self, module: Module, args: tuple[Any, ...], result: Any) -> Any:
        """Drop from what is returned."""
        if isinstance(result, dict) and self.name is not None:
            result[self.name] = self._drop(module, result[self.name])
            return result
        if self.index is None or not isinstance(result, tuple | list):
            return self._drop(module, result)
        values = list(result)
        values[self.index] = self._drop(module, values[self.index])
        return type(result)(*values) if hasattr(result, "_fields") else type(result)(values)


def _through(layer: Module, given: Any) -> Any:
    if isinstance(given, PackedSequence):
        # In the order in which it is packed, and so without its indices.
        batch_first = getattr(layer, "batch_first", True)
        padded, lengths = pad_packed_sequence(PackedSequence(given.data, given.batch_sizes), batch_first)
        packed = pack_padded_sequence(layer(padded), lengths, batch_first)
        return PackedSequence(packed.data, *given[1:])
    if given.dim() == _single(layer):
        batch = 0 if getattr(layer, "batch_first", True) else 1
        return layer(given.unsqueeze(batch)).squeeze(batch)
    return layer(given)


def _single(layer: Module) -> int:
    """Return the number of axes of one example, where a layer takes it only as a batch of one; else 0."""
    if isinstance(layer, (LockedDropout, Dropout1d)):
        return 2
    return 3 if isinstance(layer, Dropout2d) else 4 if isinstance(layer, Dropout3d) else 0


class Placement:
    """A layer as a child of a module, and the hook that calls it.

    Args:
        port: Which tensor it drops from.
        layer: The layer.
        child: Name of the child.
    """

    def __init__(self, port: Port, layer: Module, child: str) -> None:
        self.port, self.layer, self.child = port, layer, child

    def apply(self) -> None:
        """Add the child and the hook."""
        module, hook = self.port.module, PlacedLayer(self.child, self.port.index, self.port.name)
        module.add_module(self.child, self.layer.train(module.training))
        self._handle = (
            module.register_forward_pre_hook(hook.before, with_kwargs=True)
            if self.port.is_input
            else module.register_forward_hook(hook.after)
        )

    def undo(self) -> None:
        """Remove both."""
        self._handle.remove()
        self.port.module._modules.pop(self.child, None)


class _BetweenLayers(TorchFunctionMode):
    """Runs PyTorch's recurrent networks layer by layer, with a dropout layer between them."""

    def __init__(self, layer: LockedDropout) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call, and a recurrent network's layer by layer."""
        call = find_call(func, args, kwargs or {})
        if call is None or "num_layers" not in call.arguments:
            return func(*args, **(kwargs or {}))
        given = call.arguments
        x, hx, weights = call.input, given["hx"], given["params"]
        directions, size = 1 + int(given["bidirectional"]), len(weights) // given["num_layers"]
        last = []
        for number in range(given["num_layers"]):
            rows = slice(number * directions, (number + 1) * directions)
            own = hx[rows] if isinstance(hx, Tensor) else tuple(state[rows] for state in hx)
            changes = {
                "hx": own,
                "params": weights[number * size : (number + 1) * size],
                "num_layers": 1,
                "dropout": 0.0,
            }
            x = self._between(x, given) if number else x
            x, *states = call.changed(**{next(iter(given)): x}, **changes).run()
            last.append(states)
        return x, *(torch.cat(states) for states in zip(*last, strict=True))

    def _between(self, x: Tensor, given: Mapping[str, Any]) -> Any:
        if "batch_sizes" not in given:
            return self.layer(x)
        return _through(self.layer, PackedSequence(x, given["batch_sizes"])).data


class LockedMixin(torch.nn.RNNBase):
    """A recurrent network of PyTorch's with a child `between_dropout`, which acts between its layers."""

    between_dropout: LockedDropout

    # As PyTorch's networks, which are not compiled either, unless that is asked for.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch gives it no hints
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the network as PyTorch's runs; one layer after the other while something is dropped between them."""
        if not (self.training or self.between_dropout.is_on):
            return super().forward(input, hx)
        with _BetweenLayers(self.between_dropout):
            return super().forward(input, hx)


class LSTM(LockedMixin, torch.nn.LSTM):
    """A `torch.nn.LSTM` with locked dropout between its layers."""


class GRU(LockedMixin, torch.nn.GRU):
    """A `torch.nn.GRU` with locked dropout between its layers."""


class RNN(LockedMixin, torch.nn.RNN):
    """A `torch.nn.RNN` with locked dropout between its layers."""


_LOCKED: Mapping[type[Module], type[Module]] = MappingProxyType(
    {torch.nn.LSTM: LSTM, torch.nn.GRU: GRU, torch.nn.RNN: RNN}
)


class BetweenLayers:
    """Locked dropout between the layers of a recurrent network, which becomes a subclass of its class.

    Args:
        network: The network, of one of PyTorch's own classes.
        layer: What drops.
    """

    child = "between_dropout"

    def __init__(self, network: Module, layer: LockedDropout) -> None:
        self.network, self.layer = network, layer

    @staticmethod
    def fits(network: Module) -> bool:
        """Tell whether a network can become one."""
        return type(network) in _LOCKED

    def apply(self) -> None:
        """Make the network one of ours."""
        self._before = type(self.network)
        self.network.add_module(self.child, self.layer.train(self.network.training))
        self.network.__class__ = _LOCKED[self._before]

    def undo(self) -> None:
        """Make it one of PyTorch's."""
        self.network.__class__ = self._before
        self.network._modules.pop(self.child, None)


def is_placed(module: Module) -> bool:
    """Tell whether a module has a layer that was placed there."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return isinstance(module, LockedMixin) or any(
        isinstance(getattr(hook, "__self__", None), PlacedLayer) for hook in hooks
    )
