"""Workers of a mesh: where this one is among them, and what was said of them."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dropkit._checks import argument_error
from dropkit.sites.interception.places import Place
from dropkit.sites.workers import Workers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["check_patterns", "declared_axes", "others", "position", "ranks"]


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


def ranks(mesh: "DeviceMesh", dimensions: Sequence[int | str]) -> list[int]:
    """Return the ranks of the workers of a mesh along some of its dimensions, in their order, this one among them."""
    names, place = mesh.mesh_dim_names or (), mesh.get_coordinate() or ()
    numbers = [names.index(each) if isinstance(each, str) else each for each in dimensions]
    rest = [number for number in range(mesh.ndim) if number not in numbers]
    at: list[int] = mesh.mesh.permute(*rest, *numbers)[tuple(place[number] for number in rest)].flatten().tolist()
    return at


def declared_axes(workers: Workers, place: Place) -> Mapping[str, int | None]:
    """Return the axes that workers have parts of at a call, as far as they are declared for it."""
    for key, axes in workers.shards.items():
        pattern, call = key if isinstance(key, tuple) else (key, place.frame.run)
        if call == place.frame.run and (fnmatchcase(place.name, pattern) or fnmatchcase(place.path, pattern)):
            return axes
    return {}


def check_patterns(workers: Workers, names: Iterable[str]) -> None:
    """Raise unless every pattern could be that of a site of a model whose modules have these names."""
    known = list(names)
    for key in workers.shards:
        pattern = key[0] if isinstance(key, tuple) else key
        module = pattern.partition("#")[0].partition("~")[0]
        if not any(fnmatchcase(name, module) for name in known):
            rule = "such that each of its patterns matches a module or a site in it"
            remedy = "`dropkit.sites.find` prints the names of sites."
            raise argument_error("Workers", "shards", rule, pattern, remedy)
