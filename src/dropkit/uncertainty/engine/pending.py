"""Tensors of many passes that are the same in all of them, so that one is enough until somebody needs the values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Pending", "has_pending", "repeated", "replaced_pending"]


class Pending(Tensor):
    """A tensor with the shape of many passes and the values of one, which the others have too.

    Args:
        base: The values in one pass.
        axis: The axis along which passes lie one after another; None if they share the tensor.
        copies: The number of passes.
    """

    base: Tensor
    axis: int | None
    copies: int
    _real: Tensor | None

    __torch_function__: Any = torch._C._disabled_torch_function_impl  # what it is told apart by are modes

    @staticmethod
    def __new__(cls: "type[Pending]", base: Tensor, axis: int | None = None, copies: int = 1) -> "Pending":
        """Make a tensor without values of its own."""
        shape = list(base.shape)
        strides: Sequence[int] | None = base.stride()
        if axis is not None and copies != 1:
            shape[axis] *= copies
            strides = None
        pending: Pending = Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=base.dtype, device=base.device
        )
        pending.base, pending.axis, pending.copies, pending._real = base, axis, copies, None
        return pending

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # PyTorch's takes what shows the contents
        """Show what it stands for."""
        return f"Pending({self.base!r}, axis={self.axis}, copies={self.copies})"

    def filled(self, is_written: bool = False) -> Tensor:
        """Return the values, a pass after another; what is written into them stays, and does not reach the base."""
        if self._real is None:
            is_shared = self.axis is None or self.copies == 1
            if is_shared and not is_written:
                return self.base
            self._real = self.base.clone() if is_shared else repeated(self.base, self.axis or 0, self.copies)
        return self._real

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch calls it as a class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Give an operator that nobody has seen before the values."""
        args, kwargs = replaced_pending((args, kwargs or {}), lambda pending: pending.filled(is_written=True))
        return func(*args, **kwargs)


def repeated(tensor: Tensor, axis: int, copies: int) -> Tensor:
    """Return as many copies of a tensor, one after another along an axis."""
    shape = tensor.shape
    copied = tensor.unsqueeze(axis).expand(*shape[:axis], copies, *shape[axis:])
    return copied.reshape(*shape[:axis], copies * shape[axis], *shape[axis + 1 :]).contiguous()


def has_pending(value: Any) -> bool:
    """Tell whether there is a pending tensor among a call's arguments."""
    kind = type(value)
    if kind is dict:
        value = value.values()
    elif kind not in _SEQUENCES and not isinstance(value, tuple):
        return kind is Pending
    for each in value:  # noqa: SIM110  # asked of every call, and `any` would take twice as long
        if type(each) is not Tensor and has_pending(each):
            return True
    return False


def replaced_pending(value: Any, replace: Callable[[Pending], Any]) -> Any:
    """Return a call's arguments, or any of them, with something in the place of each pending tensor."""
    kind = type(value)
    if kind is Pending:
        return replace(value)
    if not has_pending(value):
        return value
    if isinstance(value, Mapping):
        return {name: replaced_pending(each, replace) for name, each in value.items()}
    parts = [replaced_pending(each, replace) for each in value]
    return kind(*parts) if hasattr(value, "_fields") else kind(parts)


_SEQUENCES = (tuple, list)
