"""By how much rounding changes what a model gives: measured, by rounding all its operations anew."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["Rounding", "Within", "computing_type", "measured"]

Within = AbstractContextManager[Any]
"""What a model's forward runs within."""

_ROUNDINGS = 64  # of the largest value, to which those of a few layers and their sums add up
_ROUNDINGS_OF_HALVES = 16  # whose sums are those of float32, rounded once
_MARGIN = 4  # by which a difference is larger than any that was measured, to be none of rounding
_REPEATS = 4
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Rounding:
    """What rounding changes of a model's output.

    Args:
        kind: The coarsest type that the model computes in.
        measured: The largest change that was measured of each element.
    """

    kind: torch.dtype
    measured: Tensor

    @property
    def relative(self) -> float:
        """What rounding may change of the outputs of a few layers, relative to their largest value."""
        info = torch.finfo(self.kind)
        return info.eps * (_ROUNDINGS_OF_HALVES if info.bits <= 16 else _ROUNDINGS)

    def of(self, largest: Tensor) -> Tensor:
        """Return what rounding may change of each element, of which the largest value is given."""
        return torch.maximum(self.relative * largest, _MARGIN * self.measured)


def computing_type(model: Module, output: Tensor) -> torch.dtype:
    """Return the coarsest type that a model computes in, as far as parameters, output and autocast tell."""
    kinds = {output.dtype, *(each.dtype for each in model.parameters() if each.is_floating_point())}
    device = output.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        kinds.add(torch.get_autocast_dtype(device))
    return _coarsest(kinds)


def measured(run: Callable[[Within], Tensor], kind: torch.dtype) -> Rounding:
    """Run a model some times, with every operation rounded in another way, and see what changes.

    Args:
        run: Returns outputs of shape (subnetworks, examples, ...), of a model whose forward runs within the context
            that it is given; the same but for rounding whenever it is called.
        kind: The coarsest type that the model is known to compute in; it may use a coarser one within.

    References:
        Parker (1997), "Monte Carlo Arithmetic", section 6.
    """
    plain, mode = run(nullcontext()).double(), _RoundedAtRandom()
    largest = torch.zeros_like(plain[0])
    with suppress(Exception):  # of a model that checks its own values, of which no more is known then
        for _ in range(_REPEATS):
            changed = (run(mode).double() - plain).abs().nan_to_num(0.0, 0.0, 0.0)  # of infinities, nothing
            largest = torch.maximum(largest, changed.amax(0))
    return Rounding(_coarsest({kind, *mode.kinds}), largest)


def _coarsest(kinds: set[torch.dtype]) -> torch.dtype:
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


class _RoundedAtRandom(TorchDispatchMode):
    """Changes what every operation takes and gives at random, by as much as rounding in its type may.

    What an operation takes is changed, too, for sums inside round more than their result tells where they cancel. Small
    whole numbers are left alone: those that are no constants, indices or masks are rare.

    Attributes:
        kinds: The types of what was computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[torch.dtype] = set()
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # else a function mode would see this call as one of the model's
            if func.is_view:
                return func(*args, **kwargs)
            arguments = func._schema.arguments
            written = {each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write}
            names = [each.name for each in arguments]
            if func is not torch.ops.aten._to_copy.default:  # to a finer type, which rounds nothing, or a coarser one
                args = tuple(self._taken(name, value, written) for name, value in zip(names, args, strict=False))
                kwargs = {name: self._taken(name, value, written) for name, value in kwargs.items()}
            found = func(*args, **kwargs)
            return tree_map(self._overwritten if written else self._given, found)

    def _taken(self, name: str, value: Any, written: set[str]) -> Any:
        return value if name in written else tree_map(self._changed, value)

    def _given(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            self.kinds.add(value.dtype)
        return self._changed(value)

    def _overwritten(self, value: Any) -> Any:
        changed = self._given(value)
        return value if changed is value else value.copy_(changed)

    def _changed(self, value: Any) -> Any:
        """Return a tensor changed within its rounding, and anything else as it is."""
        if not isinstance(value, Tensor) or value.dtype not in _TYPES or value.layout is not torch.strided:
            return value
        if value.device not in self._generators:
            self._generators[value.device] = torch.Generator(value.device).manual_seed(0)
        eps, kind = torch.finfo(value.dtype).eps, torch.promote_types(value.dtype, torch.float32)
        u = torch.rand(value.shape, generator=self._generators[value.device], dtype=kind, device=value.device)
        changed = (value * (1 + eps * (2 * u - 1))).to(value.dtype)
        return torch.where((value == value.round()) & (value.abs() < 1 / (8 * eps)), value, changed)
