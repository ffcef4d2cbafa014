"""Results of several batches as one."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dropkit._checks import Integer, argument_error
from dropkit.uncertainty.results.outputs import flatten
from dropkit.uncertainty.results.quantiles import JoinedQuantiles, Quantiles

__all__ = ["Parts", "joined"]

_AXIS = Integer(-64, 63, "the range of a tensor's axes")
_WHERE = "Result.concatenate"
_TREES = ("mean", "std", "samples")  # in the type of the output; the others are tensors of examples


@dataclass(frozen=True, eq=False)
class Parts:
    """What a result is made of.

    Args:
        task: ``"classification"``, ``"regression"`` or None.
        n: Number of passes.
        values: Statistics by name.
        errors: Their Monte Carlo errors.
        quantiles: Of a regression, if they were gathered.
        class_dim: Of a classification, the axis of classes, not negative.
        facts: What else is known of the passes.
    """

    task: str | None
    n: int
    values: Mapping[str, Any]
    errors: Mapping[str, Any]
    quantiles: Quantiles | None
    class_dim: int | None
    facts: Mapping[str, Any]


def joined(results: Sequence[Parts], dim: object) -> Parts:
    """Return the parts of a result that joins others.

    Raises:
        ArgumentError: If the results do not fit one another.
    """
    dim = _AXIS.check(_WHERE, "dim", dim)
    if not results:
        raise argument_error(_WHERE, "results", "one result or more", results)
    first = results[0]
    for name, found in (
        ("task", [each.task for each in results]),
        ("axis of classes", [each.class_dim for each in results]),
        ("statistics", [sorted(each.values) for each in results]),
    ):
        if any(each != found[0] for each in found):
            raise argument_error(_WHERE, "results", f"results of one {name}", found)
    if "samples" in first.values and len({each.n for each in results}) > 1:
        remedy = "Samples can be joined of as many passes in each batch; use a fixed n, or no samples."
        raise argument_error(_WHERE, "results", "results of as many passes", [each.n for each in results], remedy)
    quantiles = [each.quantiles for each in results if each.quantiles]
    return Parts(
        first.task,
        min(each.n for each in results),
        _statistics([each.values for each in results], dim, first.class_dim),
        _statistics([each.errors for each in results], dim, first.class_dim),
        _quantiles(quantiles, dim, first.values["prediction"].dim()) if quantiles else None,
        first.class_dim,
        _facts([each.facts for each in results]),
    )


def _statistics(each: Sequence[Mapping[str, Any]], dim: int, class_dim: int | None) -> dict[str, Any]:
    found = {}
    for name in each[0]:
        values = [statistics[name] for statistics in each]
        if name in _TREES or class_dim is None:
            found[name] = _tree(name, values, dim)
        else:
            found[name] = torch.cat(values, _axis_of_examples(dim, class_dim, values[0].dim() + 1))
    return found


def _axis_of_examples(dim: int, class_dim: int, rank: int) -> int:
    """Return the axis that examples have in a statistic without classes."""
    axis = Integer(-rank, rank - 1, remedy=f"The logits have {rank} axes.").check(_WHERE, "dim", dim) % rank
    if axis == class_dim:
        raise argument_error(_WHERE, "dim", "another axis than that of classes", dim)
    return axis - (axis > class_dim)


def _tree(name: str, outputs: list[Any], dim: int) -> Any:
    """Join outputs of one type leaf by leaf."""
    flat = [flatten(output) for output in outputs]
    rebuild = flat[0][1]
    if any(PackedSequence in each.kinds for _, each in flat):
        raise argument_error(
            _WHERE, "results", "results without packed sequences, which have no axis of examples", name
        )
    if any(each.paths != rebuild.paths for _, each in flat):
        raise argument_error(
            _WHERE, "results", "results of outputs with the same parts", [each.names for _, each in flat]
        )
    groups = zip(*(leaves for leaves, _ in flat), strict=True)
    before = 1 if name == "samples" else 0
    parts = [_leaf(part, list(leaves), dim, before) for part, leaves in zip(rebuild.names, groups, strict=True)]
    return rebuild(parts)


def _leaf(name: str, leaves: list[Any], dim: int, before: int) -> Any:
    """Join a leaf of several outputs, with axes before its own."""
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    rank = leaves[0].dim() - before
    if not rank:
        return torch.stack(leaves, before)
    axis = Integer(-rank, rank - 1, remedy=f"{name} has {rank} axes.").check(_WHERE, "dim", dim) % rank + before
    shapes = [leaf.shape[:axis] + leaf.shape[axis + 1 :] for leaf in leaves]
    if any(shape != shapes[0] for shape in shapes):
        found = [tuple(leaf.shape) for leaf in leaves]
        raise argument_error(_WHERE, "results", f"results that differ in length along axis {dim} alone", found, name)
    return torch.cat(leaves, axis)


def _quantiles(each: list[Quantiles], dim: int, rank: int) -> JoinedQuantiles:
    return JoinedQuantiles(tuple(each), dim % rank if rank else None)


def _facts(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of all batches: of lists, what is in any; else one value, or a tuple of all that differ."""
    found: dict[str, Any] = {}
    for name in each[0]:
        values: list[Any] = [facts.get(name) for facts in each]
        different = [value for i, value in enumerate(values) if value not in values[:i]]
        if name == "reached" and None not in values:
            found[name] = all(values)
        elif all(isinstance(value, list) for value in values):
            found[name] = copy(values[0])
            for value in different[1:]:
                found[name] += [part for part in value if part not in found[name]]
        else:
            found[name] = different[0] if len(different) == 1 else tuple(different)
    return found
