"""The mask definition in plain PyTorch operations: any device, nothing compiled, the same bits as `dropkit.random`.

Tensors of keys and streams have one axis for every leading axis that is a slice with an address of its own (none in
ordinary use, one for packed models and Monte Carlo passes, one more for every `vmap`), of that axis's length or 1.
Thresholds lie over the leading axes of the whole mask: slices first, then the axes of `place`.
"""

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from dropkit.random.fields import SECOND_UNIFORM
from dropkit.random.keys import FOLD
from dropkit.random.layout import Layout, check_addressable
from dropkit.random.philox import rounds, split

__all__ = [
    "affine_dropout",
    "around_one",
    "computing_type",
    "dropout",
    "fold",
    "gaussian_dropout",
    "integers",
    "keep_mask",
    "move",
    "moved_to",
    "multiply",
    "normal",
    "normal_from",
    "over_leading",
    "select",
    "survivor_scale",
    "uniform",
]

# Philox calls at a time: on a CPU few enough for the cache of one core, elsewhere enough to outlast a launch.
_CPU_TILE, _DEVICE_TILE = 2**14, 2**22


class _Field:
    """The halves of one field of noise, at the places of a layout, for every slice."""

    def __init__(self, key: Tensor, stream: Tensor, place: Layout, device: torch.device) -> None:
        slices = torch.broadcast_shapes(key.shape, stream.shape)
        check_addressable("dropout", "input", place.shape)  # here, where lengths are numbers even in compiled code
        self.shape = (*slices, *place.shape)
        self.device = device
        self.key = [self._per_slice(word, slices) for word in split(key)]
        self.stream = self._per_slice(stream, slices)
        self.slices = math.prod(slices)
        self.columns = place.shape[-1] if place.shape else 1
        self.first_column = place.first_column
        self.rows = torch.full((1,), place.first_row, dtype=torch.int64, device=device)
        for length, stride in zip(place.shape[:-1], place.row_strides, strict=True):
            along = torch.arange(length, dtype=torch.int64, device=device) * stride
            self.rows = (self.rows.unsqueeze(1) + along).reshape(-1)

    def _per_slice(self, value: Tensor, slices: torch.Size) -> int | Tensor:
        if value.numel() == 1 and value.device.type == "cpu":
            return int(value)  # plain integers spare a launch an operation
        return moved_to(value, self.device).expand(slices).reshape(-1)

    def halves(self, plane: int) -> Tensor:
        """Return the high (plane 0) or low (plane 1) halves at all places, as int32."""
        first = self.first_column >> 3
        count = (self.first_column + self.columns + 7 >> 3) - first
        halves = torch.empty((self.slices, len(self.rows), count, 8), dtype=torch.int16, device=self.device)
        most = _CPU_TILE if self.device.type == "cpu" else _DEVICE_TILE
        wide = min(max(count, 1), most)
        tall = min(max(most // wide, 1), max(len(self.rows), 1))
        deep = max(most // (wide * tall), 1)
        blocks = torch.arange(first, first + count, device=self.device) | plane << 31
        for column in range(0, count, wide):
            for row in range(0, len(self.rows), tall):
                low, high = split(self.rows[row : row + tall, None])
                for start in range(0, self.slices, deep):
                    stream, *key = (
                        word[start : start + deep, None, None] if isinstance(word, Tensor) else word
                        for word in (self.stream, *self.key)
                    )
                    words = rounds((blocks[column : column + wide], low, high, stream), key)
                    tile = torch.stack(words, -1).to(torch.int32).view(torch.int16)
                    if sys.byteorder == "big":
                        tile = tile.unflatten(-1, (4, 2)).flip(-1).flatten(-2)
                    halves[start : start + deep, row : row + tall, column : column + wide] = tile
        skipped = self.first_column - 8 * first
        kept = halves.flatten(-2)[:, :, skipped : skipped + self.columns]
        return (kept.to(torch.int32) & 0xFFFF).reshape(self.shape)

    def low_halves_at(self, position: Tensor) -> Tensor:
        """Return the low halves at a few places, given as flat positions in the field."""
        column = self.first_column + position % self.columns
        row = self.rows[position // self.columns % len(self.rows)]
        at = position // (self.columns * len(self.rows))
        stream, *key = (word[at] if isinstance(word, Tensor) else word for word in (self.stream, *self.key))
        words = torch.stack(rounds((column >> 3 | 1 << 31, *split(row), stream), key))
        lane = column & 7
        return words.gather(0, (lane >> 1).unsqueeze(0)).squeeze(0) >> 16 * (lane & 1) & 0xFFFF

    def integers(self) -> Tensor:
        """Return the uniform 32-bit integers at all places, as int64."""
        return self.halves(0).to(torch.int64) << 16 | self.halves(1)


def keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return the mask of kept units, True = kept: slices first, then the axes of the place."""
    field = _Field(key, stream, place, device)
    threshold = over_leading(threshold, len(field.shape), device)
    if device.type != "cpu":  # to look for ties there would wait for the device
        return field.integers() >= threshold
    halves, high, low = field.halves(0), (threshold >> 16).to(torch.int32), threshold & 0xFFFF
    keep = halves >= high
    if low.any():  # only a half that equals the threshold's, one in 65,536, needs its low half
        tied = torch.nonzero((halves == high).reshape(-1)).squeeze(1)
        if len(tied):
            places = torch.unravel_index(tied, keep.shape) if keep.dim() else ()
            strides = halves.expand(keep.shape).stride()  # 0 where several thresholds share a draw
            position = sum((at * stride for at, stride in zip(places, strides, strict=True)), torch.zeros_like(tied))
            keep.view(-1)[tied] = field.low_halves_at(position) >= low.expand(keep.shape).reshape(-1)[tied]
    return keep


def dropout(
    input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, scaled: bool = True
) -> Tensor:
    """Return the input where it is kept, times the scale of the realised rate if `scaled`, and +0 elsewhere."""
    keep = keep_mask(key, stream, threshold, place, input.device)
    return select(input, keep, survivor_scale(threshold) if scaled else None)


def survivor_scale(threshold: Tensor) -> Tensor:
    """Return 1 / (1 - T / 2**32) in float64; of no meaning, but finite, where nothing survives."""
    return 2.0**32 / (2**32 - threshold).clamp(min=1).to(torch.float64)


def select(input: Tensor, keep: Tensor, scale: Tensor | None, *, in_place: bool = True) -> Tensor:
    """Scale what is kept, in float32 or wider and rounded once; what is dropped, NaN too, becomes +0.

    Args:
        input: Tensor of any floating or complex type.
        keep: Bool tensor that broadcasts to the input's shape, True = kept.
        scale: Factors over the leading axes of the input; None leaves survivors alone.
        in_place: Whether the scaled copy may be filled in place, which keeps the input's memory format; not where
            `keep` may be batched by `vmap` and the copy not.
    """
    # As real numbers, for a complex product would make NaN of infinities.
    real = torch.view_as_real(input.resolve_conj()) if input.is_complex() else input
    drop = keep.logical_not()
    values, drop = real, drop.unsqueeze(-1) if input.is_complex() else drop
    if scale is None:
        values = values.clone()
    else:
        wide = computing_type(input)
        values = values.to(wide) * over_leading(scale.to(wide), values.dim(), input.device)
    # Autograd's stand-in for zeros has no memory to fill; compiled code never meets it.
    is_own = in_place and (torch.compiler.is_compiling() or not values._is_zerotensor())
    values = values.masked_fill_(drop, 0.0) if is_own else values.masked_fill(drop, 0.0)
    values = values.to(real.dtype)
    if not input.is_complex():
        return values
    if not in_place:
        return torch.view_as_complex(values)
    output = torch.empty_like(input)  # not a view of real numbers, which autograd would not let be overwritten
    torch.view_as_real(output).copy_(values)
    return output


def affine_dropout(
    input: Tensor,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
    scale: Tensor,
    shift: Tensor,
    dropped: Tensor,
    place: Layout,
) -> Tensor:
    """Return ``scale * input + shift`` where the input is kept, and `dropped` elsewhere."""
    return move(input, keep_mask(key, stream, threshold, place, input.device), scale, shift, dropped)


def move(
    input: Tensor, keep: Tensor, scale: Tensor, shift: Tensor, dropped: Tensor, *, in_place: bool = True
) -> Tensor:
    """Map what is kept, in float32 or wider and rounded once; what is dropped, NaN too, becomes a constant.

    Args:
        input: Tensor of a real floating type.
        keep: Bool tensor that broadcasts to the input's shape, True = kept.
        scale: Factors over the leading axes of the input.
        shift: What is then added, over the same axes.
        dropped: Constants, over the same axes.
        in_place: Whether a copy may be filled in place, as for `select`.
    """
    wide = computing_type(input)
    a, b, c = (over_leading(value.to(wide), input.dim(), input.device) for value in (scale, shift, dropped))
    values = torch.where(keep, input.to(wide) * a + b, c).to(input.dtype)
    return torch.empty_like(input).copy_(values) if in_place else values


def gaussian_dropout(input: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, place: Layout) -> Tensor:
    """Return the input times ``1 + deviation * normal``, drawn in float32 or wider."""
    noise = normal(key, stream, place, input.device, computing_type(input))
    return multiply(input, around_one(noise, deviation))


def around_one(normals: Tensor, deviation: Tensor) -> Tensor:
    """Return noise of mean 1 and of a standard deviation over its leading axes, from standard normals."""
    return 1.0 + over_leading(deviation.to(normals.dtype), normals.dim(), normals.device) * normals


def multiply(input: Tensor, noise: Tensor, *, in_place: bool = True) -> Tensor:
    """Multiply by real noise, in its type, and round once.

    Args:
        input: Tensor of any floating or complex type.
        noise: Real tensor of a type as wide as the input's or wider, that broadcasts to the input's shape.
        in_place: Whether a copy may be filled in place, as for `select`.
    """
    if input.is_complex():  # as real numbers, for a complex product would make NaN of infinities
        real = torch.view_as_real(input.resolve_conj())
        values = (real.to(noise.dtype) * noise.unsqueeze(-1)).to(real.dtype)
        if not in_place:
            return torch.view_as_complex(values)
        output = torch.empty_like(input)
        torch.view_as_real(output).copy_(values)
        return output
    values = (input.to(noise.dtype) * noise).to(input.dtype)
    return torch.empty_like(input).copy_(values) if in_place else values


def computing_type(input: Tensor) -> torch.dtype:
    """Return the type in which a tensor is computed."""
    return torch.float64 if input.dtype in (torch.float64, torch.complex128) else torch.float32


def over_leading(value: Tensor, axes: int, device: torch.device) -> Tensor:
    """Give values over the leading axes of a tensor as many axes as it has, on its device.

    One number on a CPU is written there, not copied: to copy it would wait for a GPU, and fail in its graphs.
    """
    shape = value.shape + (1,) * (axes - value.dim())
    is_number = not value.dim() and value.is_cpu and not torch._C._are_functorch_transforms_active()
    if is_number and device.type != "cpu":
        return torch.empty(shape, dtype=value.dtype, device=device).fill_(value)
    return moved_to(value.reshape(shape), device)


def moved_to(value: Tensor, device: torch.device) -> Tensor:
    """Return values on a device; those of a CPU are copied to a GPU without waiting for it.

    Such a copy has left the CPU's memory when it returns, which other devices do not promise.
    """
    return value.to(device, non_blocking=value.is_cpu and device.type == "cuda")


def integers(key: Tensor, stream: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return the uniform 32-bit integers of a field, as int64."""
    return _Field(key, stream, place, device).integers()


def uniform(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return uniforms strictly between 0 and 1, exact in float32 and float64; half types are rounded."""
    u = integers(key, stream, place, device)
    if dtype == torch.float64:
        return (u.to(torch.float64) + 0.5) * 2.0**-32
    return (((u >> 9).to(torch.float32) + 0.5) * 2.0**-23).to(dtype)


def normal(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return standard normals, by the cosine branch of Box and Muller (1958)."""
    return normal_from(lambda key, wide: uniform(key, stream, place, device, wide), key, dtype)


def normal_from(draw: Callable[[Tensor, torch.dtype], Tensor], key: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the standard normals of a field.

    Args:
        draw: What returns the uniforms of a key, in a type.
        key: Int64 tensor of keys.
        dtype: Of the normals.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    radius = torch.sqrt(-2.0 * torch.log(draw(key, wide)))
    angle = 2.0 * math.pi * draw(fold(key, SECOND_UNIFORM, 0), wide)
    return (radius * torch.cos(angle)).to(dtype)


def fold(a: Tensor, b: int | Tensor, c: int) -> Tensor:
    """Mix int64 keys with two integers into new keys, as `dropkit.random.fold` does."""
    words = rounds((b, *split(c), FOLD), split(a))
    return words[0] | words[1] << 32
