"""Alpha dropout: dropout that keeps the mean and the variance of self-normalising networks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import Number, argument_error
from dropkit.functional import eager, eager_numbered
from dropkit.functional.address import check_source
from dropkit.functional.affine import apply_affine
from dropkit.functional.autograd import traced
from dropkit.functional.examples import numbers_of
from dropkit.functional.inputs import check_dense, check_input, check_mask, check_writable, is_identity, kept_by
from dropkit.functional.noise import noise_at
from dropkit.functional.overrides import overridable
from dropkit.kernels.native.division import remembered
from dropkit.kernels.portable import move

__all__ = ["MEAN", "SATURATION", "VARIANCE", "alpha_dropout", "feature_alpha_dropout"]

SATURATION = -1.0507009873554805 * 1.6732632423543772  # what SELU tends to below: minus its scale times its alpha
MEAN = Number(-math.inf, math.inf, open_low=True, open_high=True)
VARIANCE = Number(0.0, math.inf, open_low=True, open_high=True)


@overridable
def alpha_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mean: float = 0.0,
    variance: float = 1.0,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Set elements to SELU's negative saturation with probability `p`, then restore the mean and the variance.

    With a' = -1.7581, where SELU saturates, and r the realised rate, ``p`` rounded to a multiple of ``2**-32``, an
    element becomes ``A x + B`` if it is kept and ``A a' + B`` if not, whatever it was; its gradient is A or exactly 0.
    A = (v / (q (r (a' - m)**2 + v)))**(1/2) and B = m - A (q m + r a'), with q = 1 - r, keep the mean m and the
    variance v of inputs that have them: in expectation over masks, not within one mask.

    Args:
        input: Tensor of any shape, of a real floating type.
        p: Probability of dropping an element, as for `dropout`. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True, unlike PyTorch's function.
        inplace: Whether to overwrite the input, as for `dropout`. Default: False.
        mean: The mean to keep, a finite number. Default: 0.
        variance: The variance to keep, a finite number above 0. Default: 1.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept, as for `dropout`. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format: the input itself in evaluation and for ``p=0``, unless a
        mask is given; zeros for ``p=1``, as in PyTorch, which keep the default mean but no variance. With
        `return_mask`, a pair.

    Raises:
        ArgumentError: If a value is out of range, or as `dropout` does.
        ArgumentTypeError: If the input is no dense tensor of a real floating type, or as `dropout` does.
        UnsupportedError: As `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> mask = torch.tensor([True, False, True])
        >>> dropkit.functional.alpha_dropout(torch.tensor([1.0, 2.0, -1.0]), 0.5, mask=mask)
        tensor([ 1.6656, -0.7792, -0.1072])

    References:
        Klambauer, Unterthiner, Mayr and Hochreiter (2017), "Self-normalizing neural networks", section "New dropout
        technique", whose 1 - q is the probability of dropping.
    """
    check_input("alpha_dropout", input, training=training, inplace=inplace, return_mask=return_mask)
    fixed_point = MEAN.check("alpha_dropout", "mean", mean), VARIANCE.check("alpha_dropout", "variance", variance)
    return _alpha(
        "alpha_dropout", input, p, training, inplace, (), fixed_point, generator, key, mask, return_mask, stream
    )


@overridable
def feature_alpha_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mean: float = 0.0,
    variance: float = 1.0,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Do what `alpha_dropout` does, with one draw for each example and channel: for all places of a feature map.

    Axis 0 counts examples and axis 1 channels whatever the rank, as in PyTorch, so give a single example an axis of
    length 1 first.

    Args:
        input: Tensor of two axes or more, of a real floating type.
        p: Probability of dropping a channel, as for `dropout`. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True, unlike PyTorch's function.
        inplace: Whether to overwrite the input, as for `dropout`. Default: False.
        mean: The mean to keep, a finite number. Default: 0.
        variance: The variance to keep, a finite number above 0. Default: 1.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept, as for `dropout`. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        As `alpha_dropout`; the mask has length 1 on all axes after the first two.

    Raises:
        ArgumentError: If the input has fewer than two axes, or as `alpha_dropout` does.
        ArgumentTypeError: As `alpha_dropout` does.
        UnsupportedError: As `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> mask = torch.tensor([[[True], [False]]])
        >>> dropkit.functional.feature_alpha_dropout(torch.ones(1, 2, 3), 0.5, mask=mask)
        tensor([[[ 1.6656,  1.6656,  1.6656],
                 [-0.7792, -0.7792, -0.7792]]])

    References:
        Klambauer, Unterthiner, Mayr and Hochreiter (2017), "Self-normalizing neural networks", section "New dropout
        technique", whose 1 - q is the probability of dropping; Tompson, Goroshin, Jain, LeCun and Bregler (2015),
        "Efficient object localization using convolutional networks", section 3.2, for whole feature maps.
    """
    where = "feature_alpha_dropout"
    check_input(where, input, training=training, inplace=inplace, return_mask=return_mask)
    if input.dim() < 2:
        remedy = "Axis 0 counts examples, axis 1 channels."
        raise argument_error(where, "input", "of two axes or more", tuple(input.shape), remedy)
    fixed_point = MEAN.check(where, "mean", mean), VARIANCE.check(where, "variance", variance)
    shared = range(2, input.dim())
    return _alpha(where, input, p, training, inplace, shared, fixed_point, generator, key, mask, return_mask, stream)


def _alpha(
    where: str,
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    shared: Sequence[int],
    fixed_point: tuple[float, float],
    generator: torch.Generator | None,
    key: int | Tensor | None,
    mask: Tensor | None,
    return_mask: bool,
    stream: int | Tensor,
) -> Any:
    """Apply alpha dropout with a draw shared along axes, to an input of which `check_input` holds."""
    if (
        inplace is return_mask is False
        and mask is None
        and (found := _at_once(where, input, p, training, tuple(shared), fixed_point, generator, key, stream))
        is not None
    ):
        return found
    check_dense(where, input, is_real=True)
    threshold, streams, keys = check_source(where, input, p, key, generator, stream)
    check_mask(where, mask, input, {"key": key, "generator": generator}, {"stream": stream})
    if is_identity(p, training, mask):
        return (input, _all_kept(input, shared, mask)) if return_mask else input
    if inplace:
        check_writable(where, input)
    coefficients = _coefficients(threshold, *fixed_point)
    if mask is not None:
        keep = kept_by(mask, threshold)
        output = move(input, keep, *coefficients, in_place=not traced())
    else:
        noise = noise_at(where, input, keys, streams, generator, numbers=numbers_of(key))
        places = noise.at_once(input, tuple(shared))
        keep = noise.keep_mask(input.shape, threshold, tuple(shared)) if return_mask or places is None else input
        if places is None:
            output = move(input, keep, *coefficients, in_place=not traced())
        else:
            values = map(noise.rates, (threshold, *coefficients))
            output = apply_affine(places[0], noise.key, noise.stream, *values, *places[1]).reshape(input.shape)
    if inplace:
        output = input.copy_(output)
    return (output, keep) if return_mask else output


def _at_once(
    where: str,
    input: Tensor,
    p: Any,
    training: bool,
    shared: tuple[int, ...],
    fixed_point: tuple[float, float],
    generator: Any,
    key: Any,
    stream: Any,
) -> Tensor | None:
    """Do so with a plain tensor by the kernels; return None if that is left to the long way."""
    if eager.is_one_key(input, p, training, generator, key, stream):
        place = eager.shared_place(where, input, shared)
        if place is None:
            return None
        drawn, threshold = eager.one_key(where, input, p, key)
        return eager.move(input, drawn, threshold, place, _numbers(threshold, *fixed_point))
    numbers = eager_numbered.numbered(input, p, training, generator, key, stream)
    if numbers is None:
        return None
    of_rate = _numbers(eager.plain_threshold(p), *fixed_point)
    return eager_numbered.drop(where, input, p, numbers, shared, of_rate)


@remembered
def _numbers(threshold: int, mean: float, variance: float) -> tuple[float, float, float]:
    """Return the coefficients of a rate as numbers."""
    scale, shift, dropped = _coefficients(torch.tensor(threshold, device="cpu"), mean, variance)
    return float(scale), float(shift), float(dropped)


def _coefficients(threshold: Tensor, mean: float, variance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scale and the shift of what is kept, and what is dropped becomes, in float64.

    At a rate of 1, where nothing is kept, that is 0.
    """
    dropping = threshold.to(torch.float64) * 2.0**-32
    keeping = (2**32 - threshold).clamp(min=1).to(torch.float64) * 2.0**-32
    distance = SATURATION - mean  # whose square may be too large for a float, and not be computed at a rate of 0
    scale = torch.sqrt(variance / (keeping * (dropping * distance * distance + variance)))
    shift = mean - scale * (keeping * mean + dropping * SATURATION)
    return scale, shift, torch.where(threshold < 2**32, scale * SATURATION + shift, 0.0)


def _all_kept(input: Tensor, shared: Sequence[int], mask: Tensor | None) -> Tensor:
    """Return the mask of a pass that drops nothing, in the shape that training gives it."""
    shape = [1 if axis in shared else length for axis, length in enumerate(input.shape)]
    return torch.ones(shape if mask is None else mask.shape, dtype=torch.bool, device=input.device)
