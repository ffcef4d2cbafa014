"""Many workers: what each worker of a device mesh has of every batch and of every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dropkit._checks import Integer, argument_error, argument_type_error

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Workers"]

_AXIS = Integer(-64, 63, "the range of a tensor's axes")


@dataclass(frozen=True)
class Workers:
    """What the workers of a mesh have each, so that together they draw the masks of a single process.

    Given to `address`, it is all that has to be said, once. Workers along the dimensions `examples` have different
    examples, as with ``DistributedDataParallel`` and ``fully_shard``: of one batch, the workers' parts in their order,
    all equally many. (Where they are not, or in another order, number them: ``with dropkit.sites.samples(ids)``.)
    Workers along all other dimensions have the same examples: a ``DTensor`` says itself which part of it each of them
    has; a plain tensor is taken for the same on all of them, unless `shards` says that they have parts of it.

    Which of both it is is looked at once for every call of a site in a forward, by comparing a few values, and an error
    tells all of them; so all have to make that call. Random numbers of which a model makes a mask by hand have nothing
    to compare, and are taken for the same. Nor are examples compared: a tensor that happens to be as long along `dim`
    as there are examples is taken for one of examples, unless it is a parameter or `shards` says otherwise.

    Args:
        mesh: The mesh of all workers of the model, with names for its dimensions; of two dimensions not one alone.
        examples: The dimension whose workers have different examples, or several, the one that splits a batch first
            before the others. Default: none.
        dim: The axis of tensors along which examples lie. Default: 0.
        shards: For plain tensors, by patterns of the names of sites or of their modules: the axis along which the
            workers of a dimension have equal parts, such as ``{"layers.*.attention#0": {"tensor": 1}}``. Axes are those
            of the tensor that is dropped from; of attention, those of its weights, (batch, heads, queries, keys). For
            a dimension of `examples` it is the axis along which the workers' parts follow one another there, of any
            length, None where there are no examples. Where some calls of a site in a forward have parts and others have
            not, ``(pattern, number)`` is for one of them, counted from 0. The first that matches holds. Default: none.

    Raises:
        ArgumentError: If the mesh has no names, this process has no place in it, a name is not among them, or an axis
            is out of range.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        Masks of a single process, from eight workers, each two of which have halves of every hidden layer:

        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> def train(model):  # in each of the eight
        ...     mesh = init_device_mesh("cuda", (4, 2), mesh_dim_names=("data", "tensor"))
        ...     workers = Workers(mesh, examples="data", shards={"mlp.hidden": {"tensor": -1}})
        ...     return dropkit.sites.address(model, seed=7, workers=workers)
    """

    mesh: "DeviceMesh"
    examples: str | tuple[str, ...] = ()
    dim: int = 0
    shards: Mapping[str | tuple[str, int], Mapping[str, int | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from torch.distributed.device_mesh import DeviceMesh

        if not isinstance(self.mesh, DeviceMesh):
            raise argument_type_error("Workers", "mesh", "a torch.distributed.device_mesh.DeviceMesh", self.mesh)
        if self.mesh.mesh_dim_names is None:
            remedy = "Give it mesh_dim_names."
            raise argument_error("Workers", "mesh", "a mesh whose dimensions have names", self.mesh, remedy)
        if self.mesh.get_coordinate() is None:
            raise argument_error("Workers", "mesh", "a mesh in which this process has a place", self.mesh)
        examples = (self.examples,) if isinstance(self.examples, str) else self.examples
        if not isinstance(examples, tuple | list) or not all(isinstance(name, str) for name in examples):
            raise argument_type_error("Workers", "examples", "a name of the mesh, or several", self.examples)
        for name in examples:
            self._check_name("examples", name)
        if len(set(examples)) < len(examples):
            raise argument_error("Workers", "examples", "names of which each is there once", self.examples)
        object.__setattr__(self, "examples", tuple(examples))
        object.__setattr__(self, "dim", _AXIS.check("Workers", "dim", self.dim))
        object.__setattr__(self, "shards", self._checked_shards())

    def _checked_shards(self) -> Mapping[str | tuple[str, int], Mapping[str, int | None]]:
        rule = "a mapping of patterns, or (pattern, number of the call), to mappings of the mesh's names to axes"
        if not isinstance(self.shards, Mapping):
            raise argument_type_error("Workers", "shards", rule, self.shards)
        for pattern, axes in self.shards.items():
            if not _is_pattern(pattern) or not isinstance(axes, Mapping):
                raise argument_type_error("Workers", "shards", rule, self.shards)
            for name, axis in axes.items():
                where = f"shards[{pattern!r}]"
                self._check_name(where, name)
                if axis is not None or name not in self.examples:
                    _AXIS.check("Workers", f"{where}[{name!r}]", axis)
        return {pattern: dict(axes) for pattern, axes in self.shards.items()}

    def _check_name(self, argument: str, name: object) -> None:
        known = self.mesh.mesh_dim_names or ()
        if name not in known:
            raise argument_error("Workers", argument, f"among the mesh's names {', '.join(known)}", name)


def _is_pattern(key: object) -> bool:
    pattern, call = key if isinstance(key, tuple) and len(key) == 2 else (key, 0)
    return isinstance(pattern, str) and type(call) is int and call >= 0
