"""Workers of a mesh: where this one is among them, and whether they have what was said."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
import torch.distributed as dist
from torch import Tensor

from dropkit._checks import argument_error
from dropkit.errors import UnsupportedError
from dropkit.random import site
from dropkit.sites.workers import Workers

__all__ = ["check_parts", "check_patterns", "declared_axes", "others", "position"]


def others(workers: Workers) -> tuple[str, ...]:
    """The dimensions whose workers have the same examples."""
    return tuple(name for name in workers.mesh.mesh_dim_names or () if name not in workers.examples)


def position(workers: Workers, names: Iterable[str]) -> tuple[int, int]:
    """Return this worker's number among those along some dimensions, and how many they are."""
    names_of_mesh, coordinate = workers.mesh.mesh_dim_names or (), workers.mesh.get_coordinate() or ()
    number, count = 0, 1
    for name in names:
        size = workers.mesh.size(names_of_mesh.index(name))
        number, count = number * size + coordinate[names_of_mesh.index(name)], count * size
    return number, count


def declared_axes(workers: Workers, name: str, path: str) -> Mapping[str, int | None]:
    """Return the axes that workers have parts of at a site, as far as they are declared for it."""
    found = (
        axes for pattern, axes in workers.shards.items() if fnmatchcase(name, pattern) or fnmatchcase(path, pattern)
    )
    return next(found, {})


def check_patterns(workers: Workers, names: Iterable[str]) -> None:
    """Raise unless every pattern could be that of a site of a model whose modules have these names."""
    known = list(names)
    for pattern in workers.shards:
        module = pattern.partition("#")[0].partition("~")[0]
        if not any(fnmatchcase(name, module) for name in known):
            rule = "such that each of its patterns matches a module or a site in it"
            remedy = "`dropkit.sites.find` prints the names of sites."
            raise argument_error("Workers", "shards", rule, pattern, remedy)


def check_parts(workers: Workers, name: str, tensor: Tensor, declared: Mapping[str, int | None]) -> bool:
    """Compare a plain tensor with those of the workers that have the same examples, all of which have to call this.

    Returns:
        Whether it is settled: a tensor of one value tells nothing.

    Raises:
        UnsupportedError: On all of these workers, if tensors differ where they should be the same, or if parts are
            the same or do not fit together.
    """
    own = _sketch(name, tensor)
    for along in others(workers):
        parts = [torch.empty_like(own) for _ in range(position(workers, (along,))[1])]
        if len(parts) > 1:
            dist.all_gather(parts, own, group=workers.mesh.get_group(along))
            _check_sketches(name, along, declared.get(along), torch.stack(parts), tuple(tensor.shape))
    values = own[-_VALUES:]
    return bool((values != values[0]).any())


_AXES, _VALUES = 8, 64  # of a tensor, to compare: as many values of two parts are not equal by chance


def _sketch(name: str, tensor: Tensor) -> Tensor:
    """Return the number of a site, the lengths of a tensor, and a few of its values."""
    with torch.no_grad():
        values = tensor.detach().reshape(-1)
        values = torch.view_as_real(values).reshape(-1) if values.is_complex() else values
        chosen = torch.linspace(0, max(len(values) - 1, 0), _VALUES, device=values.device).long()
        some = values[chosen].double() if len(values) else values.new_zeros(_VALUES, dtype=torch.float64)
        lengths = [*tensor.shape, *(-1 for _ in range(_AXES))][:_AXES]
        return torch.cat([some.new_tensor([site(name), *lengths]), some])


def _check_sketches(name: str, along: str, axis: int | None, sketches: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless tensors of some workers, of which this one's has a shape, are the same, or parts along an axis."""
    what, sites = f"{name or 'the model'}, where this one has shape {shape},", sketches[:, 0]
    lengths, values = sketches[:, 1 : 1 + _AXES], sketches[:, 1 + _AXES :]
    if bool((sites != sites[0]).any()):
        raise UnsupportedError(
            f"address: workers along {along!r} do not run the same sites: this one runs {what} others another one. "
            "All of them have to, the first time, for then what they have is compared."
        )
    largest = float(values.nan_to_num(0.0, 0.0, 0.0).abs().max())
    is_same = torch.allclose(values, values[:1].expand_as(values), rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
    if bool((lengths != lengths[0]).any()):
        shapes = [tuple(int(length) for length in row if length >= 0) for row in lengths.tolist()]
        remedy = "Parts have to be of the same length, or a DTensor; all else has to be alike."
        raise UnsupportedError(f"address: workers along {along!r} have tensors of shapes {shapes} at {name}. {remedy}")
    if axis is None and not is_same:
        raise UnsupportedError(
            f"address: workers along {along!r} have different plain tensors at {what} so each needs a mask of its own. "
            f"Are they of different examples, say Workers(mesh, examples={along!r}). Are they parts of one tensor, say "
            f"along which axis, Workers(..., shards={{{name!r}: {{{along!r}: axis}}}}), in attention that of its "
            "weights, (batch, heads, queries, keys); or let it be a DTensor (use_local_output=False)."
        )
    if axis is not None and is_same and bool((values != values[:, :1]).any()):
        raise UnsupportedError(
            f"address: `shards` says that workers along {along!r} have parts of a tensor at {what} and all have the "
            "same. Leave the site out of it: it is for those where they have not."
        )
