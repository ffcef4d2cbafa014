"""Workers of a mesh: where this one is among them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dropkit.sites.workers import Workers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["others", "position", "ranks"]


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
