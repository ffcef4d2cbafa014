"""Many workers: what each worker of a device mesh has of every batch and of every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dropkit._checks import Integer, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.random import site

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
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

    Whether it is the same is looked at once for every site, by comparing a few values; random numbers of which a model
    makes a mask by hand have nothing to compare, and are taken for the same.

    Args:
        mesh: The mesh of all workers, with names for its dimensions.
        examples: The dimension whose workers have different examples, or several, the one that splits a batch first
            before the others. Default: none.
        dim: The axis of tensors along which examples lie. Default: 0.
        shards: For plain tensors, by patterns of the names of sites or of their modules: the axis along which the
            workers of a dimension have equal parts, such as ``{"layers.*.attention#0": {"tensor": 1}}``. Axes are those
            of the tensor that is dropped from; of attention, those of its weights, (batch, heads, queries, keys). For
            a dimension of `examples` it is the axis along which the workers' parts follow one another there, of any
            length, None where there are no examples. The first pattern that matches holds. Default: none.

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
    shards: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)

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

    def _checked_shards(self) -> Mapping[str, Mapping[str, int | None]]:
        rule = "a mapping of patterns to mappings of the mesh's names to axes"
        if not isinstance(self.shards, Mapping):
            raise argument_type_error("Workers", "shards", rule, self.shards)
        for pattern, axes in self.shards.items():
            if not isinstance(pattern, str) or not isinstance(axes, Mapping):
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

    @property
    def others(self) -> tuple[str, ...]:
        """The dimensions whose workers have the same examples."""
        return tuple(name for name in self.mesh.mesh_dim_names or () if name not in self.examples)

    def place(self, names: "Iterable[str]") -> tuple[int, int]:
        """Return this worker's number among those along some dimensions, and how many they are."""
        names_of_mesh, coordinate = self.mesh.mesh_dim_names or (), self.mesh.get_coordinate() or ()
        number, count = 0, 1
        for name in names:
            size = self.mesh.size(names_of_mesh.index(name))
            number, count = number * size + coordinate[names_of_mesh.index(name)], count * size
        return number, count

    def axes(self, name: str, path: str) -> Mapping[str, int | None]:
        """Return the axes that workers have parts of at a site, as far as they are declared for it."""
        found = (
            axes for pattern, axes in self.shards.items() if fnmatchcase(name, pattern) or fnmatchcase(path, pattern)
        )
        return next(found, {})

    def check_patterns(self, names: "Iterable[str]") -> None:
        """Raise unless every pattern could be that of a site of a model whose modules have these names."""
        known = list(names)
        for pattern in self.shards:
            module = pattern.partition("#")[0].partition("~")[0]
            if not any(fnmatchcase(name, module) for name in known):
                rule = "such that each of its patterns matches a module or a site in it"
                remedy = "`dropkit.sites.find` prints the names of sites."
                raise argument_error("Workers", "shards", rule, pattern, remedy)

    def check_parts(self, name: str, tensor: "Tensor", declared: Mapping[str, int | None]) -> bool:
        """Compare a plain tensor with those of the workers that have the same examples, all of which have to call this.

        Returns:
            Whether it is settled: a tensor of one value tells nothing.

        Raises:
            UnsupportedError: On all of these workers, if tensors differ where they should be the same, or if parts are
                the same or do not fit together.
        """
        import torch
        import torch.distributed as dist

        own = _sketch(name, tensor)
        for along in self.others:
            parts = [torch.empty_like(own) for _ in range(self.place((along,))[1])]
            if len(parts) > 1:
                dist.all_gather(parts, own, group=self.mesh.get_group(along))
                _check_sketches(name, along, declared.get(along), torch.stack(parts), tuple(tensor.shape))
        values = own[-_VALUES:]
        return bool((values != values[0]).any())


_AXES, _VALUES = 8, 64  # of a tensor, to compare: as many values of two parts are not equal by chance


def _sketch(name: str, tensor: "Tensor") -> "Tensor":
    """Return the number of a site, the lengths of a tensor, and a few of its values."""
    import torch

    with torch.no_grad():
        values = tensor.detach().reshape(-1)
        values = torch.view_as_real(values).reshape(-1) if values.is_complex() else values
        chosen = torch.linspace(0, max(len(values) - 1, 0), _VALUES, device=values.device).long()
        some = values[chosen].double() if len(values) else values.new_zeros(_VALUES, dtype=torch.float64)
        lengths = [*tensor.shape, *(-1 for _ in range(_AXES))][:_AXES]
        return torch.cat([some.new_tensor([site(name), *lengths]), some])


def _check_sketches(name: str, along: str, axis: int | None, sketches: "Tensor", shape: tuple[int, ...]) -> None:
    """Raise unless tensors of some workers, of which this one's has a shape, are the same, or parts along an axis."""
    import torch

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
