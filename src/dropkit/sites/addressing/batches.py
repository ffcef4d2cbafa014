"""Batches: which examples a forward of this worker is given."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from dropkit.errors import UnsupportedError
from dropkit.sites.addressing.distributed import is_distributed, offset_of
from dropkit.sites.addressing.mesh import position, ranks
from dropkit.sites.samples import Numbers
from dropkit.sites.workers import Workers

__all__ = ["has_all_examples", "numbers_given"]


def numbers_given(workers: Workers, inputs: Any, named: Mapping[str, Any]) -> Numbers | None:
    """Return the numbers of the examples that a forward is given, as far as its first tensor tells."""
    if not workers.examples:
        return None
    for leaf in _leaves((*inputs, *named.values())):
        if isinstance(leaf, PackedSequence):
            return _numbers(workers, (int(leaf.batch_sizes[0]),), *_part(workers, int(leaf.batch_sizes[0])))
        if not isinstance(leaf, Tensor) or not -leaf.dim() <= workers.dim < leaf.dim():
            continue
        if leaf.is_nested:
            return _numbers(workers, (leaf.size(0),), *_part(workers, leaf.size(0)))
        if is_distributed(leaf):  # of which a worker may have nothing
            return _numbers(workers, leaf.shape, *_distributed_part(workers, leaf))
        length = leaf.size(workers.dim)
        return _numbers(workers, leaf.shape, *_part(workers, length)) if length else None
    return None


def has_all_examples(workers: Workers, whole: Any) -> bool:
    """Tell whether a DTensor is spread over all workers that have different examples, so that it knows all of them.

    Raises:
        UnsupportedError: If it is spread over some of them.
    """
    own, count = _own_dimensions(workers, whole.device_mesh)
    everyone = position(workers, workers.examples)[1]
    if count not in (1, everyone):
        raise UnsupportedError(
            f"address: a DTensor is spread over {count} of the {everyone} workers along {workers.examples}. Spread it "
            "over all of them or over none."
        )
    return bool(own) and count == everyone


def _leaves(value: Any) -> list[Any]:
    """Return the parts of inputs that are no containers, packed sequences among them."""
    found = []
    for leaf in tree_leaves(value, is_leaf=lambda each: isinstance(each, PackedSequence)):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            found += _leaves([getattr(leaf, field.name) for field in fields(leaf)])
        else:
            found.append(leaf)
    return found


def _numbers(workers: Workers, shape: Sequence[int], first: int, length: int) -> Numbers:
    origin = f"axis {workers.dim} of the first input, of shape {tuple(shape)},"
    return Numbers(((first, length),), workers.dim, origin=origin)


def _part(workers: Workers, length: int) -> tuple[int, int]:
    """Return the first number and the length of a worker's part, where all are equally long."""
    return position(workers, workers.examples)[0] * length, length


def _distributed_part(workers: Workers, whole: Any) -> tuple[int, int]:
    """Return the same of a DTensor, which says itself what each worker has of those that it is spread over."""
    from torch.distributed.tensor import Replicate

    mesh, everyone = whole.device_mesh, ranks(workers.mesh, workers.examples)
    own, count = _own_dimensions(workers, mesh)
    block = position(workers, workers.examples)[0] // count  # of workers that it is spread over
    if set(everyone[block * count : (block + 1) * count]) != set(ranks(mesh, own)):
        raise UnsupportedError(
            f"address: the first input is a DTensor over a mesh whose workers do not follow one another along "
            f"{workers.examples}, so that their examples cannot be told. Number them: with dropkit.sites.samples(ids)."
        )
    placements = [each if number in own else Replicate() for number, each in enumerate(whole.placements)]
    lengths, first = offset_of(whole, placements)
    axis = workers.dim % whole.dim()
    return block * whole.size(axis) + first[axis], lengths[axis]


def _own_dimensions(workers: Workers, mesh: Any) -> tuple[list[int], int]:
    """Return the dimensions of a DTensor's mesh whose workers have different examples, and how many those are."""
    everyone = set(ranks(workers.mesh, workers.examples))
    own = [number for number in range(mesh.ndim) if everyone.issuperset(ranks(mesh, [number]))]
    return own, prod(mesh.size(number) for number in own)
