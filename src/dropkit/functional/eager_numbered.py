"""The short way of numbered examples and of passes: eager code, a contiguous CPU tensor, compiled kernels.

It gives the same masks as the long way in `dropkit.functional.dropout`, which serves whatever is not plain.
"""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import Constants
from dropkit.functional.eager import is_plain, is_plain_gradient, plain_threshold
from dropkit.functional.examples import NumberedKey, Runs
from dropkit.functional.noise import numbered_noise
from dropkit.kernels.native.division import remembered
from dropkit.kernels.native.sliced import Part, Slices, affine_sliced, dropout_sliced, sliced
from dropkit.kernels.portable import select, survivor_scale

__all__ = ["Numbers", "drop", "numbered"]

Numbers = tuple[float, float, float]
"""What is kept is scaled and shifted by, and what is dropped becomes."""

_MOST_RUNS = 64  # of examples that do not follow one another: each is a call of the library


def numbered(
    input: Tensor, p: object, training: bool, generator: object, key: object, stream: object
) -> NumberedKey | None:
    """Return the key of a call that the kernels may serve at once, with the numbers of its examples or its pass."""
    if type(stream) is not int or training is not True or generator is not None or not is_plain(input):
        return None
    if type(key) is int and 0 <= key < 2**64 and 0 < stream < 2**30:
        key = NumberedKey(key, (), (stream,))
    elif type(key) is not NumberedKey or stream:
        return None
    return key if type(p) is float and 0.0 < p <= 1.0 and input.dim() and input.numel() else None


def drop(
    where: str, input: Tensor, p: float, key: NumberedKey, shared: tuple[int, ...], numbers: Numbers | None = None
) -> Tensor | None:
    """Apply dropout, or map what is kept by numbers; None where that is left to the long way.

    Args:
        where: The function on whose behalf it is done.
        input: The tensor.
        p: The rate.
        key: What `numbered` has found.
        shared: Axes along which one draw is shared.
        numbers: What is kept is scaled and shifted by, and what is dropped becomes. Default: it is dropped, and scaled.
    """
    runs = key.runs
    if not all(type(axis) is int for axis in shared) or (len(runs) > _MOST_RUNS and len(set(runs)) > 1):
        return None
    slices = _slices(where, input.shape, shared, runs, key.streams)
    if slices is None:
        return None
    address = key, plain_threshold(p), slices, shared, numbers
    if input.requires_grad and torch.is_grad_enabled():
        return _apply(input, Constants(*address))
    return _applied(input, *address)


@remembered
def _slices(
    where: str, shape: torch.Size, shared: tuple[int, ...], runs: Runs, streams: tuple[int, ...]
) -> Slices | None:
    """Return how the mask of a tensor is drawn."""
    noise = numbered_noise(where, NumberedKey(0, runs, streams), torch.device("cpu"))
    found, passes = noise.at_once(torch.empty((), device="cpu").expand(shape), shared), max(noise.passes, 1)
    before, of_streams = (noise.passes,) if noise.passes else (), noise.stream.reshape(-1)
    if found is not None:
        seen, place = found
        return sliced(tuple(seen.shape), (*before, *place.shape), [Part(place, 0, passes)], of_streams)
    places = noise.places(shape, shared)
    parts = [Part(place, number) for number in range(passes) for place in places]
    rest = places[0].shape[1:]
    return sliced(tuple(shape), (shape[0], *rest), parts, of_streams)


def _applied(
    input: Tensor, key: NumberedKey, threshold: int, slices: Slices, _: tuple[int, ...], numbers: Numbers | None
) -> Tensor:
    if numbers is None:
        return dropout_sliced(input, slices, key, threshold)
    return affine_sliced(input, slices, key, threshold, numbers)


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, constants: Constants) -> Tensor:
        *ctx.address, ctx.numbers = constants.values
        return _applied(input, *constants.values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        numbers = None if ctx.numbers is None else (ctx.numbers[0], 0.0, 0.0)
        find: Any = _applied if is_plain_gradient(grad) else _long_way
        return find(grad, *ctx.address, numbers), None


# Without what `Function.apply` does for transforms and for arguments by name.
_apply = super(torch.autograd.Function, _Sliced).apply


def _long_way(
    grad: Tensor, key: NumberedKey, threshold: int, _: Slices, shared: tuple[int, ...], numbers: Numbers | None
) -> Tensor:
    """Gate any gradient, differentiably."""
    rate = torch.tensor(threshold, device="cpu")
    keep = numbered_noise("dropout", key, grad.device).keep_mask(grad.shape, rate, shared)
    scale = survivor_scale(rate) if numbers is None else torch.tensor(numbers[0], dtype=torch.float64, device="cpu")
    return select(grad, keep, scale, in_place=False)
