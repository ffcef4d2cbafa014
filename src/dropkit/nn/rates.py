"""Rates of layers that have several, each checked when it is assigned and movable by a schedule."""

from typing import Any, ClassVar, Self, overload

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Choice
from dropkit.random import threshold

__all__ = ["Rate", "RatesMixin"]


def _buffer(name: str) -> str:
    return f"_{name}_threshold"


class Rate:
    """A rate as an attribute of a layer: a number, or a threshold in an int64 tensor once a schedule moves it."""

    def __set_name__(self, owner: type["RatesMixin"], name: str) -> None:
        self.name, self.value = name, f"_{name}"
        owner.RATES = (*owner.RATES, name)

    @overload
    def __get__(self, layer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, layer: torch.nn.Module, owner: type) -> float: ...
    def __get__(self, layer: torch.nn.Module | None, owner: type) -> Self | float:
        if layer is None:
            return self
        moved = layer._buffers.get(_buffer(self.name))
        p: float = layer.__dict__[self.value]
        return p if moved is None else int(moved) / 2**32

    def __set__(self, layer: torch.nn.Module, p: Any) -> None:
        checked = PROBABILITY.check(type(layer).__name__, self.name, p)
        moved = layer._buffers.get(_buffer(self.name))
        if moved is not None:
            moved.fill_(threshold(checked))
        layer.__dict__[self.value] = checked


class RatesMixin(torch.nn.Module):
    """A module whose noise has several rates, each a `Rate`, whose names it lists."""

    RATES: ClassVar[tuple[str, ...]] = ()

    @property
    def rates(self) -> dict[str, float | Tensor]:
        """All rates by name, as functions take them: numbers, or float64 tensors where a schedule moves them."""
        moved = {name: self._buffers.get(_buffer(name)) for name in self.RATES}
        return {
            name: self.__dict__[f"_{name}"] if tensor is None else tensor.to(torch.float64) * 2.0**-32
            for name, tensor in moved.items()
        }

    def follow(self, *names: str) -> None:
        """Keep rates in tensors from now on, so that no new value makes `torch.compile` compile again.

        Args:
            *names: The rates' names. Default: those that are not 0.
        """
        for name in self._named(names) or [name for name in self.RATES if getattr(self, name) > 0]:
            if _buffer(name) not in self._buffers:
                moved = torch.tensor(threshold(getattr(self, name)), device="cpu")
                self.register_buffer(_buffer(name), moved, persistent=False)

    def unfollow(self, *names: str) -> None:
        """Keep rates as numbers again.

        Args:
            *names: The rates' names. Default: all.
        """
        for name in self._named(names) or self.RATES:
            moved = self._buffers.pop(_buffer(name), None)
            if moved is not None and int(moved) != threshold(self.__dict__[f"_{name}"]):  # else it is as it was set
                self.__dict__[f"_{name}"] = int(moved) / 2**32
            self._non_persistent_buffers_set.discard(_buffer(name))

    def _named(self, names: tuple[str, ...]) -> list[str]:
        known = Choice(self.RATES)
        return [known.check(type(self).__name__, "names", name) for name in names]
