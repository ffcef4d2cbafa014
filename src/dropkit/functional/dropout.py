"""The one operation: drop units at random, scale the survivors, gate the gradient by the same mask."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from dropkit._checks import Choice
from dropkit.functional import eager, eager_numbered, nested
from dropkit.functional.address import check_source, drawn_address, signed
from dropkit.functional.autograd import apply_dropout, traced
from dropkit.functional.examples import numbers_of
from dropkit.functional.inputs import check_input, check_mask, check_writable, kept_by, leading
from dropkit.functional.noise import Noise, noise_at
from dropkit.functional.overrides import is_overridden
from dropkit.kernels import operators
from dropkit.kernels.portable import select, survivor_scale
from dropkit.random.layout import Layout, layout

__all__ = ["drop", "dropout"]

_SCALE_AT = Choice(("train", "eval"))


def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    broadcast_dims: int | Sequence[int] = (),
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
    offset: Sequence[int] | None = None,
    full_shape: Sequence[int] | None = None,
    scale_at: str = "train",
) -> Any:
    """Zero each element with probability `p` and scale the rest by ``1 / (1 - p)``, in training.

    The mask is a function of the key, the stream and each element's index in the logical tensor: strides, memory
    format, type, device and the number of threads do not change it. For the backward pass the key is kept, or the mask
    at a bit an element where that is faster: of a CPU tensor that a cache holds, and of GPUs in compiled code. The
    scale is that of the realised rate, ``p`` rounded to a multiple of ``2**-32``; it is computed in float32 or wider
    and rounded once.

    Args:
        input: Tensor of any shape, of a floating or complex type (a complex number is one unit); nested tensors are
            dropped out constituent by constituent.
        p: Probability of dropping an element, in ``[0, 1]``; or a float64 tensor of no axis, or of one rate for each
            slice of axis 0. A new number makes `torch.compile` compile again, a new tensor does not. Tensors on an
            accelerator or in compiled code are clamped rather than checked. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True.
        inplace: Whether to overwrite the input. The result is made apart and then copied, so memory is spared after
            the call, not during it. Default: False.
        broadcast_dims: Axes along which one draw is shared; negatives count from the end. Default: none.
        generator: Where to draw the key, on the input's device; eager code only (`torch.compile` leaves the graph for
            it, and raises with ``fullgraph=True``). Default: PyTorch's own generator.
        key: The key, an integer in ``[0, 2**64)`` or an int64 tensor of the same bits: one, or one for each slice of
            axis 0, whose mask is then that of ``shape[1:]`` under its own key. Compiled code wants a tensor: it
            compiles again for every integer. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept, with the input's number of axes and length 1 on
            axes that share. Survivors are scaled by `p` all the same. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, in ``[0, 2**30)``: 0 in training, 1 and up for Monte Carlo passes; or an int64
            tensor, as for `key`, which compiled code wants here too. Default: 0.
        offset: Where the input begins in the whole tensor that it is a shard of, an entry an axis; that of axis 0
            changes nothing where its slices have keys or streams of their own. Compiled code compiles again for every
            other one. Default: 0.
        full_shape: Shape of that whole tensor; needed with `offset`. Default: the input's shape.
        scale_at: ``"train"`` scales survivors in training (inverted dropout); ``"eval"`` is the original form, which
            leaves survivors alone in training and multiplies by the probability of keeping, ``1 - p``, in evaluation.
            Default: ``"train"``.

    Returns:
        A tensor of the input's shape, type and memory format: the input itself in evaluation and for ``p=0``, unless a
        mask is given. What is dropped is exactly +0, whatever it was. With `return_mask`, a pair.

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If the input is no strided or nested tensor of a floating or complex type, or another
            argument has a wrong type.
        UnsupportedError: If a generator is used in a compiled graph or in a checkpointed forward, or under
            `torch.jit.trace`.

    Examples:
        >>> import torch, dropkit
        >>> a = torch.tensor([0.36, 0.13, 0.42, 0.25])
        >>> dropkit.functional.dropout(a, 0.5, mask=torch.tensor([True, False, True, False]))
        tensor([0.7200, 0.0000, 0.8400, 0.0000])
        >>> dropkit.functional.dropout(torch.ones(2, 4), 0.5, key=7)
        tensor([[0., 2., 2., 2.],
                [2., 0., 2., 0.]])

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", sections 4 and 10, whose p is the probability of keeping.
    """
    if (
        training is True
        and inplace is return_mask is False
        and mask is None
        and generator is None
        and offset is None
        and full_shape is None
        and type(p) is float
        and 0.0 < p <= 1.0
        and type(stream) is int
        and stream == 0
        and (key is None or (type(key) is int and 0 <= key < 2**64))
        and type(broadcast_dims) is tuple
        and not broadcast_dims
        and scale_at == "train"
        and not has_torch_function_unary(input)
        and eager.is_plain(input)
    ):
        return eager.drop(input, key, math.floor(p * 2.0**32 + 0.5))
    tensors = (input, p, key, mask, stream)
    if is_overridden(tensors):
        return handle_torch_function(
            dropout, tensors, input, p, training, inplace, broadcast_dims=broadcast_dims, generator=generator, key=key,
            mask=mask, return_mask=return_mask, stream=stream, offset=offset, full_shape=full_shape, scale_at=scale_at,
        )  # fmt: skip
    return drop(
        "dropout", input, p, training, inplace, broadcast_dims=broadcast_dims, generator=generator, key=key, mask=mask,
        return_mask=return_mask, stream=stream, offset=offset, full_shape=full_shape, scale_at=scale_at,
    )  # fmt: skip


def drop(
    where: str,
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool = False,
    *,
    broadcast_dims: int | Sequence[int] = (),
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
    offset: Sequence[int] | None = None,
    full_shape: Sequence[int] | None = None,
    scale_at: str = "train",
) -> Any:
    """Do what `dropout` does, on behalf of a function, whose name stands in messages."""
    if (
        inplace is return_mask is False
        and mask is None
        and offset is None
        and full_shape is None
        and scale_at == "train"
        and type(broadcast_dims) is tuple
        and (dropped := _drop_at_once(where, input, p, training, broadcast_dims, generator, key, stream)) is not None
    ):
        return dropped
    check_input(where, input, training=training, inplace=inplace, return_mask=return_mask)
    scaled = _SCALE_AT.check(where, "scale_at", scale_at) == "train"
    threshold, streams, keys = check_source(where, input, p, key, generator, stream)
    address = {"broadcast_dims": broadcast_dims, "stream": stream, "offset": offset, "full_shape": full_shape}
    check_mask(where, mask, input, {"key": key, "generator": generator}, address)
    never = not isinstance(p, Tensor) and p == 0 and mask is None
    identity = never or (scaled and not training)
    if inplace and not identity:
        check_writable(where, input)
    numbers = numbers_of(key)
    if input.is_nested:
        return nested.apply(
            where, drop, input, p, training, identity=identity, key=keys, mask=mask, stream=streams,
            generator=generator, inplace=inplace, offset=offset, full_shape=full_shape, broadcast_dims=broadcast_dims,
            return_mask=return_mask, scale_at=scale_at, numbers=numbers,
        )  # fmt: skip
    if numbers is not None and numbers.runs and training and not identity and input.dim():
        noise = noise_at(where, input, keys, streams, None, numbers=numbers)
        return _drop_examples(input, threshold, noise, broadcast_dims, scaled, inplace, return_mask)
    slices = max(streams.dim(), 0 if keys is None else keys.dim())
    place = layout(where, input.shape, broadcast_dims, offset, full_shape, slices)

    keep = mask
    if identity:
        output = input
    elif not training:
        output = _times_keep_probability(input, threshold)
    elif mask is not None:
        keep = kept_by(mask, threshold)
        output = select(input, keep, survivor_scale(threshold) if scaled else None, in_place=not traced())
    else:
        found = (*drawn_address(where, input, keys, streams, generator), threshold, *_int64(place))
        output = apply_dropout(input, *found, scaled=scaled)
        keep = operators.keep_mask(*found, input.device) if return_mask else None
    if inplace and not identity:
        output = input.copy_(output)
    if not return_mask:
        return output
    return output, _all_kept(input, threshold, place, slices, keep) if identity or not training else keep


def _drop_at_once(
    where: str, input: Tensor, p: Any, training: bool, shared: tuple[int, ...], generator: Any, key: Any, stream: Any
) -> Tensor | None:
    """Drop out a plain tensor by the kernels; return None if that is left to the long way."""
    if eager.is_one_key(input, p, training, generator, key, stream):
        place = eager.shared_place(where, input, shared)
        return None if place is None else eager.drop_shared(input, *eager.one_key(where, input, p, key), place)
    numbers = eager_numbered.numbered(input, p, training, generator, key, stream)
    return None if numbers is None else eager_numbered.drop(where, input, p, numbers, shared)


def _drop_examples(
    input: Tensor,
    threshold: Tensor,
    noise: Noise,
    shared: int | Sequence[int],
    scaled: bool,
    inplace: bool,
    return_mask: bool,
) -> Any:
    """Drop out numbered examples."""
    found = noise.at_once(input, shared)
    keep: Any = noise.keep_mask(input.shape, threshold, shared) if return_mask or found is None else None
    if found is None:
        output = select(input, keep, survivor_scale(threshold) if scaled else None, in_place=not traced())
    else:
        address = noise.key, noise.stream, noise.rates(threshold), *found[1]
        output = apply_dropout(found[0], *address, scaled=scaled).reshape(input.shape)
    if inplace:
        output = input.copy_(output)
    return (output, keep) if return_mask else output


def _all_kept(input: Tensor, threshold: Tensor, place: Layout, slices: int, mask: Tensor | None) -> Tensor:
    """Return the mask of a pass that drops nothing, in the shape that training gives it."""
    shape = (*input.shape[:slices], *place.shape) if mask is None else mask.shape
    shape = torch.broadcast_shapes(shape, leading(threshold, input).shape)
    return torch.ones(shape, dtype=torch.bool, device=input.device)


def _int64(place: Layout) -> Layout:
    """Return a layout whose rows are the int64 numbers that operators take."""
    return place._replace(row_strides=tuple(map(signed, place.row_strides)), first_row=signed(place.first_row))


def _times_keep_probability(input: Tensor, threshold: Tensor) -> Tensor:
    keep_probability = 1.0 - threshold.to(torch.float64) / 2.0**32
    return select(input, leading(keep_probability > 0, input), keep_probability)
