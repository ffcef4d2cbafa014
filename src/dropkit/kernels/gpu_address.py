"""How kernels for GPUs are told where a mask lies, which is part of a call's form: in a call, and in its example."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropkit.kernels.native.division import divide
from dropkit.random.layout import Layout, layout

__all__ = [
    "IN_MEMORY",
    "KEY",
    "NUMBER",
    "RATE",
    "SEVERAL",
    "Address",
    "Example",
    "Form",
    "Portable",
    "address_of",
    "count_of",
]

NUMBER, IN_MEMORY, SEVERAL = "a number", "in memory", "several in memory"
KEY, RATE = 0x3C6E_F374_6191_8DB3, 1_288_490_189  # of examples; the threshold of 0.3
Form = tuple[Any, ...]
Portable = Callable[[str], Callable[..., Any]]
_LEADING: dict[str, tuple[int, ...]] = {"one": (), "several": (3,), "of places": (2, 2)}  # axes, by lines


class Address(NamedTuple):
    """How kernels are told where a mask lies.

    Args:
        key: Whether the key is given as a number, read from a GPU's memory, or one of several that are.
        stream: The same of the stream.
        rate: The same of the rate.
        lines: What the kernels divide the mask into, as `dropkit.kernels.triton_address` does: ``"one"``;
            ``"several"``, which begin equally far apart; or lines ``"of places"``, of each of which they read where it
            begins.
    """

    key: str = NUMBER
    stream: str = NUMBER
    rate: str = NUMBER
    lines: str = "one"

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes of an example before those of one line."""
        return _LEADING[self.lines]

    @property
    def has_slices(self) -> bool:
        """Whether keys or streams are of slices."""
        return SEVERAL in (self.key, self.stream)


def count_of(value: Tensor) -> str:
    """Return how kernels are given keys, streams or thresholds."""
    return SEVERAL if value.numel() > 1 else IN_MEMORY if value.is_cuda else NUMBER


def address_of(key: Tensor, stream: Tensor, threshold: Tensor | None, place: Layout) -> Address:
    """Return the form of an address."""
    threshold = torch.tensor(0, device="cpu") if threshold is None else threshold
    division = divide(key, stream, threshold, place)
    axes = () if division.slices is None else (*division.places, division.slices)
    lines = "one" if math.prod(axes) <= 1 else "several" if len(axes) == 1 else "of places"
    return Address(count_of(key), count_of(stream), count_of(threshold), lines)


def _of_example(like: Address, leading: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return key, stream and rate of a form: one, or one each on leading axes."""
    key, stream, rate = (
        _values(first, step, leading if count == SEVERAL else ones).to("cpu" if count == NUMBER else device)
        for first, step, count, ones in (
            (KEY, 1, like.key, (1,) * len(leading) * like.has_slices),
            (7, 1, like.stream, (1,) * len(leading) * like.has_slices),
            (RATE, 2**24, like.rate, (1,) * len(leading)),
        )
    )
    return key, stream, rate


def _values(first: int, step: int, shape: tuple[int, ...]) -> Tensor:
    return first + step * torch.arange(math.prod(shape), device="cpu").reshape(shape)


def _place_of(like: Address, *line: int) -> Layout:
    """Return where the mask of an example lies, of so long lines."""
    leading = like.leading
    shape = *leading, *line
    if like.has_slices:
        return layout("example", shape, slices=len(leading))
    if like.rate == SEVERAL:
        return layout("example", shape)
    whole = *leading, *(length + 8 * bool(leading) for length in line)  # a part, whose rows are apart
    return layout("example", shape, full_shape=whole)


class Example:
    """What an example is made of: random numbers, the same in every example, and an address of a form."""

    def __init__(self, device: torch.device, dtype: torch.dtype, like: Address, portable: Portable) -> None:
        self.device, self.dtype, self.portable = device, dtype, portable
        self._like = like
        self._generator = torch.Generator(device="cpu").manual_seed(0)

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor of normals."""
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return drawn.to(self.device, dtype or self.dtype)

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes before those of one line."""
        return self._like.leading

    def address(self, leading: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return key, stream and rate: one, or one each on the leading axes."""
        return _of_example(self._like, self.leading if leading is None else leading, self.device)

    def place(self, *line: int) -> Layout:
        """Return where the mask of so long lines lies."""
        return _place_of(self._like, *line)
