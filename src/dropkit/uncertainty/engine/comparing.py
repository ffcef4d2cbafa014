"""Whether passes that ran together, or over other orders of examples, are single passes but for rounding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit.uncertainty.engine.inputs import Output
from dropkit.uncertainty.engine.tape import MismatchError
from dropkit.uncertainty.results.axes import NO_AXIS, Axis

__all__ = ["difference", "reordered_axes"]

_PART = 0.05  # of what passes differ by, that values may be off in precise types
_ENOUGH = 3  # values, that tell how large those beside them are


def difference(output: Output, plain: list[Output]) -> str:
    """Return in what passes that ran together differ from single ones; empty if in nothing but rounding."""
    try:
        passes = output.passes(plain[0], len(plain))
    except MismatchError as error:
        return str(error)
    for position, values in enumerate(passes):
        expected = [single.leaves[position] for single in plain]
        if not all(isinstance(each, Tensor) for each in expected):
            continue
        shared = output.leaves[position]
        found = [getattr(shared, "base", shared)] * len(plain) if values is None else list(values)
        if not _are_close(found, expected, expected[::-1], plain[0].precision):
            return f"{plain[0].names[position]} has other values where passes run together"
    return ""


def reordered_axes(
    output: Output, plain: Output, order: Sequence[int], axes: Sequence[Axis] | None
) -> tuple[Axis, ...] | None:
    """Return the axis of examples of each leaf of a pass over examples in another order; None if they are not alike.

    Args:
        output: What that pass has returned.
        plain: What the pass over the examples in their own order has, with the same masks.
        order: The other order.
        axes: The axes, as far as they are known.
    """
    if len(output.leaves) != len(plain.leaves):
        return None
    found: list[Axis] = []
    for place, (other, own) in enumerate(zip(output.leaves, plain.leaves, strict=True)):
        if not isinstance(other, Tensor) or not isinstance(own, Tensor):
            found.append(None)
            continue
        known = axes[place] if axes is not None else None
        fits = [axis for axis in range(own.dim()) if own.shape[axis] and not own.shape[axis] % len(order)]
        tried = [*fits, NO_AXIS] if known is None else [known]
        right = [axis for axis in tried if _are_close([other], [_reordered(own, axis, order)], [own], plain.precision)]
        if not right:
            return None
        found.append(right[0] if len(right) == 1 else None)  # equal values do not tell
    return tuple(found) if any(axis is not None and axis != NO_AXIS for axis in found) else None


def _reordered(tensor: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    if axis == NO_AXIS:
        return tensor
    rows = tensor.unflatten(axis, (len(order), -1))
    return rows.index_select(axis, torch.tensor(order, device=tensor.device)).flatten(axis, axis + 1)


def _are_close(found: Sequence[Any], expected: Sequence[Tensor], others: Sequence[Tensor], precision: float) -> bool:
    """Tell whether values are those that are expected but for rounding, which sums in another order change.

    Args:
        found: The values, one tensor a pass.
        expected: The values that are expected.
        others: What is as likely in their places, such as those of other passes.
        precision: The relative precision that they were computed with, if it is coarser than that of their type.
    """
    for value, single in zip(found, expected, strict=True):
        if not isinstance(value, Tensor) or value.shape != single.shape or value.dtype != single.dtype:
            return False
    one = expected[0]
    if one.is_nested or not one.numel():
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return all(map(torch.equal, found, expected))
    value, single, other = (_wide(torch.stack(list(each))) for each in (found, expected, others))
    finite = single.isfinite()
    is_same = (value == single) | (value.isnan() & single.isnan())
    if not bool(torch.where(finite, value.isfinite(), is_same).all()):
        return False
    error = (value - single).where(finite, 0.0).abs()
    finite &= other.isfinite()
    between = (single - other).where(finite, 0.0).abs()
    eps = max(torch.finfo(one.dtype).eps, precision)
    tolerance = _tolerance(single.where(single.isfinite(), 0.0).abs(), between, eps)
    return bool((error <= tolerance).all())


def _wide(values: Tensor) -> Tensor:
    """Return values in a type in which the squares of any of them are finite."""
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _tolerance(size: Tensor, between: Tensor, eps: float) -> Tensor:
    """Return how far values of passes, along axis 0, may be from what is expected.

    What rounding changes in a value is small beside those around it that masks change, too, as it is summed up from
    what they are; constants do not count, such as the logits of what is masked, however large they are. And it is small
    beside what passes differ by there, or one pass would do as well as another. What no mask changes is right but for
    rounding.

    Args:
        size: The sizes of the values.
        between: How far those of other passes are from them.
        eps: The relative precision of what they are computed with.
    """
    varies = between > 0
    fixed = min(256 * eps, eps**0.5) * _around(size, ~varies)
    if not varies.any():
        return fixed
    apart = _around(between, varies)
    part = min(max(_PART, 256 * eps), 0.5)  # in half precision rounding may come to a tenth of what passes differ by
    changed = torch.minimum(max(64 * eps, eps**0.5) * _around(size, varies), part * apart)
    return torch.where(apart > 0, changed, fixed).maximum(4 * eps * size)


def _around(values: Tensor, counts: Tensor) -> Tensor:
    """Return the root mean square of the values in a value's example, or column, or other slice, whichever is least.

    Args:
        values: The values, with passes along axis 0.
        counts: Which of them count; slices with few that do tell nothing, but those that have none have 0.
    """
    squares, numbers = values.square().where(counts, 0.0), counts.to(values.dtype)
    mean = squares.sum() / numbers.sum().clamp_min(1)
    least = mean.expand_as(values)
    for axis in range(1, values.dim()):
        others = [each for each in range(values.dim()) if each != axis]
        number = numbers.sum(others, keepdim=True)
        of_slice = squares.sum(others, keepdim=True) / number.clamp_min(1)
        least = torch.minimum(least, of_slice.where((number >= _ENOUGH) | (number == 0), mean))
    return least.sqrt()
