"""The noise of one call: masks, uniforms and normals at the addresses of one key, for all that is not plain dropout."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dropkit.functional.address import Names, check_source, drawn_address, is_readable, signed
from dropkit.kernels import fields
from dropkit.random import field
from dropkit.random.layout import Layout, layout

__all__ = ["Noise", "find_noise", "noise_at"]

_NAMES = Names()


class Noise(NamedTuple):
    """Where the noise of one call is drawn; each field of it is independent of the others.

    Args:
        where: The function on whose behalf it is drawn, for messages.
        key: Int64 tensor: the call's key, or one for each slice of axis 0.
        stream: Int64 tensor with the same axes.
        device: Where the noise shall be.
    """

    where: str
    key: Tensor
    stream: Tensor
    device: torch.device

    def field(self, number: int) -> "Noise":
        """Return the noise of another field of the call, as `dropkit.random.field` counts them; 0 is this one."""
        return self._replace(key=fields.keys(self.key, number)) if number else self

    def keys(self, count: int) -> "list[int | Tensor]":
        """Return the keys of the first fields, for functions that take one: as integers where they can be read."""
        if self.key.dim() == 0 and is_readable(self.key):
            key = int(self.key) % 2**64
            return [field(key, number) for number in range(count)]
        return [self.field(number).key for number in range(count)]

    def place(
        self,
        shape: Sequence[int],
        shared: int | Sequence[int] = (),
        full_shape: Sequence[int] | None = None,
    ) -> Layout:
        """Return the places of a mask or field, with rows as the int64 numbers that operators take."""
        place = layout(self.where, shape, shared, full_shape=full_shape, slices=self.key.dim())
        return place._replace(row_strides=tuple(map(signed, place.row_strides)))

    def keep_mask(
        self,
        shape: Sequence[int],
        threshold: Tensor,
        shared: int | Sequence[int] = (),
        full_shape: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw a mask, True = kept, of length 1 on the axes that share a draw.

        Args:
            shape: Shape of what is masked, slices of axis 0 with it.
            threshold: Int64 tensor of the rate's threshold, or of one a slice.
            shared: Axes along which one draw is shared; negatives count from the end.
            full_shape: Shape of the whole tensor that this is the beginning of. Default: the same.
        """
        return fields.keep_mask(self.key, self.stream, threshold, self.place(shape, shared, full_shape), self.device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, shared: int | Sequence[int] = ()) -> Tensor:
        """Draw uniforms strictly between 0 and 1, of length 1 on the axes that share a draw."""
        return fields.uniform(self.key, self.stream, self.place(shape, shared), self.device, dtype)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, shared: int | Sequence[int] = ()) -> Tensor:
        """Draw standard normals, of length 1 on the axes that share a draw."""
        return fields.normal(self.key, self.stream, self.place(shape, shared), self.device, dtype)


def find_noise(
    where: str,
    input: Tensor,
    p: float | Tensor,
    key: int | Tensor | None,
    generator: torch.Generator | None,
    stream: int | Tensor = 0,
    names: Names = _NAMES,
) -> tuple[Tensor, Noise]:
    """Return the threshold of a rate and the noise of a call, whose key is drawn if none is given; else raise.

    Args:
        where: The function on whose behalf to check.
        input: The checked input, to whose axis 0 slices belong.
        p: The rate, or one a slice.
        key: The key, or one a slice.
        generator: Where to draw the key.
        stream: Number of the pass.
        names: What these are called in the function.
    """
    threshold, streams, keys = check_source(where, input, p, key, generator, stream, names)
    return threshold, noise_at(where, input, keys, streams, generator, names)


def noise_at(
    where: str,
    input: Tensor,
    keys: Tensor | None,
    streams: Tensor,
    generator: torch.Generator | None,
    names: Names = _NAMES,
) -> Noise:
    """Return the noise of a call, from what `check_source` has found; its key is drawn if there is none."""
    return Noise(where, *drawn_address(where, input, keys, streams, generator, names), input.device)
