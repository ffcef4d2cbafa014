"""Whether passes that ran together, or over other orders of examples, are single passes but for rounding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit.uncertainty.engine.inputs import Output
from dropkit.uncertainty.engine.tape import MismatchError
from dropkit.uncertainty.results.axes import NO_AXIS, Axis

__all__ = ["difference", "reordered_axes"]


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
        if not _are_close(found, expected):
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
        right = [axis for axis in tried if _are_close([other], [_reordered(own, axis, order)])]
        if not right:
            return None
        found.append(right[0] if len(right) == 1 else None)  # equal values do not tell
    return tuple(found) if any(axis is not None and axis != NO_AXIS for axis in found) else None


def _reordered(tensor: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    if axis == NO_AXIS:
        return tensor
    rows = tensor.unflatten(axis, (len(order), -1))
    return rows.index_select(axis, torch.tensor(order, device=tensor.device)).flatten(axis, axis + 1)


def _are_close(found: list[Any], expected: list[Tensor]) -> bool:
    """Tell whether values are those of single passes but for rounding, which sums in another order change."""
    for value, single in zip(found, expected, strict=True):
        if not isinstance(value, Tensor) or value.shape != single.shape or value.dtype != single.dtype:
            return False
    one = expected[0]
    if one.is_nested or not one.numel():
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return all(map(torch.equal, found, expected))
    wide = torch.stack(found), torch.stack(expected)
    finite = wide[1].isfinite()
    if not torch.equal(finite, wide[0].isfinite()):
        return False
    value, single = (each.where(finite, 0.0) for each in wide)
    scale, error = single.abs().max(), (value - single).abs().max()
    eps = torch.finfo(one.dtype).eps
    # Less than what passes differ by, or another pass would do as well, and yet more than rounding.
    between = 0.05 * (single - single[:1]).abs().max() if len(expected) > 1 else scale
    return bool(error <= torch.maximum(256 * eps * scale, torch.minimum(eps**0.5 * scale, between)))
