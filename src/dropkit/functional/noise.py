"""The noise of one call: masks, uniforms and normals at the addresses of one key, for all that is not plain dropout."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dropkit._checks import check_axes
from dropkit.errors import UnsupportedError
from dropkit.functional.address import (
    Names,
    check_not_traced,
    check_source,
    draw_key,
    drawn_address,
    is_readable,
    key_tensor,
    pass_of,
    signed,
)
from dropkit.functional.autograd import draw_mask
from dropkit.functional.examples import NumberedKey, Runs, check_examples, numbers_of
from dropkit.kernels import fields
from dropkit.random import field
from dropkit.random.layout import Layout, layout

__all__ = ["Noise", "find_noise", "noise_at", "numbered_noise"]

_NAMES = Names()


class Noise(NamedTuple):
    """Where the noise of one call is drawn; each field of it is independent of the others.

    Args:
        where: The function on whose behalf it is drawn, for messages.
        key: Int64 tensor: the call's key, or one for each slice of axis 0.
        stream: Int64 tensor with the same axes; of several passes one for each.
        device: Where the noise shall be.
        runs: The numbers of the examples along axis 0; empty if they are in order.
        passes: How many passes axis 0 has the examples of, one pass after another; 0 where it has no such parts.
    """

    where: str
    key: Tensor
    stream: Tensor
    device: torch.device
    runs: Runs = ()
    passes: int = 0

    def field(self, number: int) -> "Noise":
        """Return the noise of another field of the call, as `dropkit.random.field` counts them; 0 is this one."""
        return self._replace(key=fields.keys(self.key, number)) if number else self

    def keys(self, count: int) -> "list[int | Tensor]":
        """Return the keys of the first fields, for functions that take one: as integers where they can be read."""
        if (self.passes or self.key.dim() == 0) and is_readable(self.key):
            key, streams = int(self.key) % 2**64, tuple(self.stream.reshape(-1).tolist())
            if self.runs or streams != (0,):
                return [NumberedKey(key, self.runs, streams).field(number) for number in range(count)]
            return [field(key, number) for number in range(count)]
        return [self.field(number).key for number in range(count)]

    def at_once(self, input: Tensor, shared: int | Sequence[int] = ()) -> tuple[Tensor, Layout] | None:
        """Return a tensor as one call of an operator takes it, with the places of its mask; None if it takes several.

        Args:
            input: The tensor, slices of axis 0 with it. Of several passes it is seen as (passes, examples, ...).
            shared: Axes along which one draw is shared; negatives count from the end.
        """
        places = self.places(input.shape, shared)
        runs = dict(zip(self.runs, places, strict=False))
        is_one = len(places) == 1 or (len(runs) == 1 and self.runs[0][1] == 1)  # one draw for all examples of a pass
        return (self._by_pass(input), places[0]) if is_one else None

    def rates(self, threshold: Tensor) -> Tensor:
        """Return the threshold of the rate, or one a slice of axis 0, as it lies over what `at_once` returns."""
        return self._by_pass(threshold) if threshold.dim() else threshold

    def _by_pass(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (self.passes, tensor.size(0) // self.passes)) if self.passes else tensor

    def places(
        self,
        shape: Sequence[int],
        shared: int | Sequence[int] = (),
        full_shape: Sequence[int] | None = None,
    ) -> list[Layout]:
        """Return the places of a mask or field, with rows as the int64 numbers that operators take.

        They are one layout; or, of examples whose numbers do not follow one another, one for each run of them, whose
        parts lie one after another along axis 0; of several passes, those of one.
        """
        slices = 0 if self.passes else self.key.dim()
        place = layout(self.where, shape, shared, full_shape=full_shape, slices=slices)
        place = place._replace(row_strides=tuple(map(signed, place.row_strides)))
        if not self.runs:
            return [place]
        if 0 in check_axes(self.where, "broadcast_dims", shared, len(shape)):
            self._check_one_pass()
            return [place]
        whole = shape if full_shape is None else (shape[0], *full_shape[1:])
        check_examples(self.where, self.runs, whole, max(self.passes, 1))
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
        if threshold.dim() and self.runs:
            rates = self.rates(threshold).split([place.shape[0] for place in places], 1 if self.passes else 0)
            pairs = zip(places, rates, strict=True)
            parts = [draw_mask(self.key, self.stream, rate, place, self.device) for place, rate in pairs]
            return self._joined(parts)
        return self._drawn(places, lambda place: draw_mask(self.key, self.stream, threshold, place, self.device))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, shared: int | Sequence[int] = ()) -> Tensor:
        """Draw uniforms strictly between 0 and 1, of length 1 on the axes that share a draw."""
        places = self.places(shape, shared)
        return self._drawn(places, lambda place: fields.uniform(self.key, self.stream, place, self.device, dtype))

    def normal(self, shape: Sequence[int], dtype: torch.dtype, shared: int | Sequence[int] = ()) -> Tensor:
        """Draw standard normals, of length 1 on the axes that share a draw."""
        places = self.places(shape, shared)
        return self._drawn(places, lambda place: fields.normal(self.key, self.stream, place, self.device, dtype))

    def _drawn(self, places: list[Layout], draw: Callable[[Layout], Tensor]) -> Tensor:
        """Draw for every run of examples, of which the same ones have the same."""
        parts = {place: draw(place) for place in dict.fromkeys(places)}
        if len(parts) == 1 < len(places):
            [part] = parts.values()
            axis = 1 if self.passes else 0
            repeated = part.unsqueeze(axis).expand(*part.shape[:axis], len(places), *part.shape[axis:])
            return repeated.flatten(0, axis + 1) if self.passes or part.size(0) > 1 else repeated.squeeze(1)
        return self._joined([parts[place] for place in places])

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Put the runs of examples one after another, and so the passes."""
        axis = 1 if self.passes else 0
        whole = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
        return whole.flatten(0, 1) if self.passes else whole

    def one_pass(self, number: int) -> "Noise":
        """Return the noise of one of several passes."""
        return self._replace(key=self.key.reshape(()), stream=self.stream[number], passes=0)

    def _check_one_pass(self) -> None:
        if self.passes:
            raise _shared_by_passes(self.where)


def _shared_by_passes(where: str) -> UnsupportedError:
    """Return the error of noise that all examples of a pass share, which cannot lie along their axis."""
    return UnsupportedError(
        f"{where}: all examples of a pass share this noise, so that several passes cannot lie along one axis. Run them "
        "one after another."
    )


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
    return threshold, noise_at(where, input, keys, streams, generator, names, numbers_of(key))


def noise_at(
    where: str,
    input: Tensor,
    keys: Tensor | None,
    streams: Tensor,
    generator: torch.Generator | None,
    names: Names = _NAMES,
    numbers: NumberedKey | None = None,
) -> Noise:
    """Return the noise of a call, from what `check_source` has found; its key is drawn if there is none.

    Examples are those along axis 0 of the input: where it has none, or a stream for each, no number enters.

    Args:
        where: The function on whose behalf to check.
        input: The checked input.
        keys: The key, or one a slice.
        streams: Number of the pass.
        generator: Where to draw the key.
        names: What these are called in the function.
        numbers: The key as it was given, if it says which examples or which pass it draws for.
    """
    if keys is None:
        check_not_traced(where)
        drawn = draw_key(where, generator, input, names)
        numbers, keys = numbers_of(drawn), key_tensor(drawn)
        streams = pass_of(where, streams, numbers)
    key, stream = drawn_address(where, input, keys, streams, generator, names)
    if numbers is None or len(numbers.streams) == 1:
        runs = numbers.runs if numbers is not None and input.dim() and not key.dim() else ()
        return Noise(where, key, stream, input.device, runs)
    if not input.dim():
        raise _shared_by_passes(where)
    return numbered_noise(where, numbers, input.device)


def numbered_noise(where: str, numbers: NumberedKey, device: torch.device) -> Noise:
    """Return the noise of a key, for tensors whose axis 0 has the examples."""
    key, streams = key_tensor(numbers), torch.tensor(numbers.streams, device="cpu")
    if len(streams) == 1:
        return Noise(where, key, streams.squeeze(0), device, numbers.runs)
    return Noise(where, key.reshape(1), streams, device, numbers.runs, len(streams))
