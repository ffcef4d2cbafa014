"""The noise of one call: masks, uniforms and normals at the addresses of one key, for all that is not plain dropout."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dropkit._checks import check_axes
from dropkit.functional.address import (
    Names,
    check_not_traced,
    check_source,
    draw_key,
    drawn_address,
    is_readable,
    key_tensor,
    signed,
)
from dropkit.functional.examples import NumberedKey, Runs, check_examples, runs_of
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
        runs: The numbers of the examples along axis 0; empty if they are in order.
    """

    where: str
    key: Tensor
    stream: Tensor
    device: torch.device
    runs: Runs = ()

    def field(self, number: int) -> "Noise":
        """Return the noise of another field of the call, as `dropkit.random.field` counts them; 0 is this one."""
        return self._replace(key=fields.keys(self.key, number)) if number else self

    def keys(self, count: int) -> "list[int | Tensor]":
        """Return the keys of the first fields, for functions that take one: as integers where they can be read."""
        if self.key.dim() == 0 and is_readable(self.key):
            key = int(self.key) % 2**64
            if self.runs:
                return [NumberedKey(key, self.runs).field(number) for number in range(count)]
            return [field(key, number) for number in range(count)]
        return [self.field(number).key for number in range(count)]

    def places(
        self,
        shape: Sequence[int],
        shared: int | Sequence[int] = (),
        full_shape: Sequence[int] | None = None,
    ) -> list[Layout]:
        """Return the places of a mask or field, with rows as the int64 numbers that operators take.

        They are one layout; or, of examples whose numbers do not follow one another, one for each run of them, whose
        parts lie one after another along axis 0.
        """
        place = layout(self.where, shape, shared, full_shape=full_shape, slices=self.key.dim())
        place = place._replace(row_strides=tuple(map(signed, place.row_strides)))
        if not self.runs or 0 in check_axes(self.where, "broadcast_dims", shared, len(shape)):
            return [place]
        check_examples(self.where, self.runs, shape if full_shape is None else (shape[0], *full_shape[1:]))
        rest = place.shape[1:]
        if not rest:  # whose elements are columns of one row
            return [place._replace(shape=(length,), first_column=first) for first, length in self.runs]
        rows = place.row_strides[0]
        return [
            place._replace(shape=(length, *rest), first_row=signed(first * rows % 2**64)) for first, length in self.runs
        ]

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
        places = self.places(shape, shared, full_shape)
        is_of_slices = len(places) > 1 and threshold.dim()
        rates = threshold.split([place.shape[0] for place in places]) if is_of_slices else [threshold] * len(places)
        pairs = zip(places, rates, strict=True)
        return _joined([fields.keep_mask(self.key, self.stream, rate, place, self.device) for place, rate in pairs])

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, shared: int | Sequence[int] = ()) -> Tensor:
        """Draw uniforms strictly between 0 and 1, of length 1 on the axes that share a draw."""
        places = self.places(shape, shared)
        return _joined([fields.uniform(self.key, self.stream, place, self.device, dtype) for place in places])

    def normal(self, shape: Sequence[int], dtype: torch.dtype, shared: int | Sequence[int] = ()) -> Tensor:
        """Draw standard normals, of length 1 on the axes that share a draw."""
        places = self.places(shape, shared)
        return _joined([fields.normal(self.key, self.stream, place, self.device, dtype) for place in places])


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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
    return threshold, noise_at(where, input, keys, streams, generator, names, runs_of(key))


def noise_at(
    where: str,
    input: Tensor,
    keys: Tensor | None,
    streams: Tensor,
    generator: torch.Generator | None,
    names: Names = _NAMES,
    runs: Runs = (),
) -> Noise:
    """Return the noise of a call, from what `check_source` has found; its key is drawn if there is none.

    Examples are those along axis 0 of the input: where it has none, or a stream for each, no number enters.
    """
    if keys is None:
        check_not_traced(where)
        drawn = draw_key(where, generator, input, names)
        runs, keys = runs_of(drawn), key_tensor(drawn)
    key, stream = drawn_address(where, input, keys, streams, generator, names)
    return Noise(where, key, stream, input.device, runs if input.dim() and not key.dim() else ())
