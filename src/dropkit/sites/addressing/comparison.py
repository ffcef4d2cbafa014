"""Comparison of workers that have the same examples: whether, at a call, they have what was said of them."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from dropkit.errors import UnsupportedError
from dropkit.functional.address import signed
from dropkit.random import site
from dropkit.sites.addressing.keys import Keys
from dropkit.sites.addressing.mesh import others, position
from dropkit.sites.interception.places import Place
from dropkit.sites.workers import Workers

__all__ = ["check_parts"]

_STATE = ("seed", "step", "number of the call in the step")  # of which all workers have to have the same
_HEAD, _AXES, _VALUES = 2 + len(_STATE), 8, 64  # of a sketch: as many values of two parts are not equal by chance


def check_parts(workers: Workers, place: Place, keys: Keys, tensor: Tensor, declared: Mapping[str, int | None]) -> bool:
    """Compare a plain tensor with those of the workers that have the same examples, all of which have to call this.

    Returns:
        Whether it is settled, on all of these workers or on none: tensors that all have one value tell nothing.

    Raises:
        UnsupportedError: On all of these workers, if they are not in the same call of the same step, if tensors differ
            where they should be the same, or if parts are the same or do not fit together.
    """
    names = [name for name in others(workers) if position(workers, (name,))[1] > 1]
    if not names:
        return True
    own = _sketch(place, keys, tensor)
    sketches = _gathered(workers, names, own.to(workers.mesh.device_type)).cpu()
    what = f"{place.name or 'the model'}, where this one has shape {_shape(own[_HEAD : _HEAD + _AXES])},"
    _check_heads(what, names, sketches)
    is_settled = True
    for dimension, along in enumerate(names):
        groups = sketches.movedim(dimension, -2)  # whose workers are one after another along the second last axis
        _check_lengths(place, along, groups[..., _HEAD : _HEAD + _AXES])
        values = groups[..., _HEAD + _AXES :]
        is_same = _is_same(values.view(torch.float64), tensor.dtype)
        is_telling = (values != values[..., :1, :1]).flatten(-2).any(-1)
        _check_values(place, what, along, declared.get(along), is_same, is_telling)
        is_settled = is_settled and bool(is_telling.all())
    return is_settled


def _sketch(place: Place, keys: Keys, tensor: Tensor) -> Tensor:
    """Return where a call is, the lengths of a tensor, and a few of its values, of which each number has the bits."""
    with torch.no_grad():
        values = (tensor.values() if tensor.is_nested else tensor).detach().reshape(-1)
        values = torch.view_as_real(values).reshape(-1) if values.is_complex() else values
        chosen = torch.linspace(0, max(len(values) - 1, 0), _VALUES, device=values.device).long()
        some = values[chosen].double() if len(values) else values.new_zeros(_VALUES, dtype=torch.float64)
        some = some + 0.0  # of two zeros one
        lengths = (tensor.size(0), len(values)) if tensor.is_nested else tensor.shape
        head = [site(place.name), place.frame.run, signed(keys.seed), signed(keys.step), place.run]
        numbers = [*head, *[*lengths, *(-1 for _ in range(_AXES))][:_AXES]]
        return torch.cat([torch.tensor(numbers, device=some.device), some.view(torch.int64)])


def _gathered(workers: Workers, names: list[str], own: Tensor) -> Tensor:
    """Return the sketches of all workers that have the same examples, by their places along dimensions of the mesh.

    So that all of them decide alike, and none waits for another that does not compare any more.
    """
    for name in reversed(names):
        parts = [torch.empty_like(own) for _ in range(position(workers, (name,))[1])]
        dist.all_gather(parts, own, group=workers.mesh.get_group(name))
        own = torch.stack(parts)
    return own


def _shape(lengths: Tensor) -> tuple[int, ...]:
    return tuple(length for length in lengths.tolist() if length >= 0)


def _check_heads(what: str, names: list[str], sketches: Tensor) -> None:
    """Raise unless all workers are at the same site, in the same call of it."""
    heads, along = sketches[..., :_HEAD].flatten(0, -2), " and ".join(map(repr, names))
    if bool((heads[:, :2] != heads[0, :2]).any()):
        raise UnsupportedError(
            f"address: workers along {along} do not run the same sites: this one runs {what} others another one. "
            "All of them have to, the first time, for then what they have is compared."
        )
    for name, column in zip(_STATE, heads[:, 2:].T.tolist(), strict=True):
        if len(set(column)) > 1:
            found = ", ".join(str(number % 2**64) for number in column)
            raise UnsupportedError(
                f"address: workers along {along} draw with different masks at {what} for the {name} differs: {found}. "
                "Give all of them one seed, load one state on all, and step all; what one of them alone runs, such as "
                "Monte Carlo dropout, belongs inside dropkit.sites.samples, where calls are counted apart."
            )


def _check_lengths(place: Place, along: str, lengths: Tensor) -> None:
    if bool((lengths != lengths[..., :1, :]).any()):
        differing = (lengths != lengths[..., :1, :]).flatten(-2).any(-1)
        shapes = [_shape(row) for row in lengths[differing][0]]
        remedy = "Parts have to be of the same length, or a DTensor; all else has to be alike."
        raise UnsupportedError(
            f"address: workers along {along!r} have tensors of shapes {shapes} at {place.name}. {remedy}"
        )


def _is_same(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return which groups have one tensor, but for rounding: of the values that are not equal most nearly are.

    What is equal says nothing, whatever its size: parts of masked scores have -1e9 at the same places.
    """
    first = values[..., :1, :]
    is_equal = (values == first) | (values.isnan() & first.isnan())
    tolerance = max(1e-3, 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0)
    is_near = (values - first).abs() <= tolerance * torch.maximum(values.abs(), first.abs())
    unequal, near = (~is_equal).any(-2), (is_equal | is_near).all(-2)
    return 2 * (unequal & near).sum(-1) >= unequal.sum(-1)


def _check_values(place: Place, what: str, along: str, axis: int | None, is_same: Tensor, is_telling: Tensor) -> None:
    """Raise unless tensors of the workers along a dimension are the same, or parts along an axis."""
    call = f"call {call} of " if (call := place.frame.run) else ""
    if axis is None and not bool(is_same.all()):
        key = (place.name, place.frame.run) if call else place.name
        raise UnsupportedError(
            f"address: workers along {along!r} have different plain tensors at {call}{what} so each needs a mask of "
            f"its own. Are they of different examples, say Workers(mesh, examples={along!r}). Are they parts of one "
            f"tensor, say along which axis, Workers(..., shards={{{key!r}: {{{along!r}: axis}}}}), in attention that "
            "of its weights, (batch, heads, queries, keys); or let it be a DTensor (use_local_output=False)."
        )
    if axis is not None and bool((is_same & is_telling).any()):
        raise UnsupportedError(
            f"address: `shards` says that workers along {along!r} have parts of a tensor at {call}{what} and all have "
            "the same. Leave the site out of it: it is for those where they have not. Where some of a site's calls in "
            f"a forward have parts, name those: shards={{({place.name!r}, number of the call): ...}}."
        )
