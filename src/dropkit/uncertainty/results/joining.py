"""Results of several batches as one."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dropkit._checks import Integer, argument_error
from dropkit.uncertainty.results.axes import Axis, Leaf, joined_leaves
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
        axes: Of `mean` and of `samples`, for every leaf the axis of its examples.
        main: Which leaf of `mean` the task is about, if there is a task.
        examples: Number of examples, if it is known.
    """

    task: str | None
    n: int
    values: Mapping[str, Any]
    errors: Mapping[str, Any]
    quantiles: Quantiles | None
    class_dim: int | None
    facts: Mapping[str, Any]
    axes: Mapping[str, Sequence[Axis]]
    main: int | None = None
    examples: int | None = None


def joined(results: Sequence[Parts], dim: object = None) -> Parts:
    """Return the parts of a result that joins others.

    Args:
        results: The results of batches.
        dim: The axis of examples in every tensor; None for that which is known of each.

    Raises:
        ArgumentError: If the results do not fit one another.
    """
    along = None if dim is None else _AXIS.check(_WHERE, "dim", dim)
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
    if along is None and len(results) == 1:
        return first
    axes = {tree: _axes(tree, results, along) for tree in ("mean", "samples") if tree in first.values}
    main = None if first.main is None else axes["mean"][first.main]
    if main is not None and main == first.class_dim:
        remedy = "Examples lie along the axis that mc's `class_dim` says classes do."
        raise argument_error(_WHERE, "dim", "another axis than that of classes", along, "" if along else remedy)
    quantiles = tuple(each.quantiles for each in results if each.quantiles)
    examples = [each.examples for each in results if each.examples is not None]
    return Parts(
        first.task,
        min(each.n for each in results),
        _statistics([each.values for each in results], axes, main, first.class_dim),
        _statistics([each.errors for each in results], axes, main, first.class_dim),
        JoinedQuantiles(quantiles, main) if quantiles and main is not None else None,
        first.class_dim,
        _facts([each.facts for each in results]),
        axes,
        first.main,
        sum(examples) if len(examples) == len(results) else None,
    )


def _axes(tree: str, results: Sequence[Parts], dim: int | None) -> list[Axis]:
    """Return the axis along which each leaf of a statistic in the type of the output is joined."""
    flat = [flatten(each.values[tree]) for each in results]
    rebuild = flat[0][1]
    if any(PackedSequence in each.kinds for _, each in flat):
        raise argument_error(
            _WHERE, "results", "results without packed sequences, which have no axis of examples", tree
        )
    if any(each.paths != rebuild.paths for _, each in flat):
        raise argument_error(
            _WHERE, "results", "results of outputs with the same parts", [each.names for _, each in flat]
        )
    axes: list[Axis] = []
    for i, name in enumerate(rebuild.names):
        values = [leaves[i] for leaves, _ in flat]
        if not any(isinstance(value, Tensor) for value in values):
            axes.append(None)
            continue
        if not all(isinstance(value, Tensor) for value in values):
            found = [type(value).__name__ for value in values]
            raise argument_error(_WHERE, "results", f"results of which {name} is a tensor in all or in none", found)
        known, examples = [each.axes[tree][i] for each in results], [each.examples for each in results]
        leaf = Leaf(name, values, known, examples, 1 if tree == "samples" else 0)
        axes.append(leaf.axis() if dim is None else leaf.along(dim))
    return axes


def _statistics(
    each: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Axis]], main: Axis, class_dim: int | None
) -> dict[str, Any]:
    """Join statistics by name: those in the type of the output leaf by leaf, and those of the task's tensor."""
    found = {}
    for name in each[0]:
        values = [statistics[name] for statistics in each]
        if name in _TREES:
            found[name] = _tree(values, axes["samples" if name == "samples" else "mean"], 1 if name == "samples" else 0)
        elif main is not None:
            is_after = class_dim is not None and main > class_dim
            found[name] = joined_leaves(values, main - 1 if is_after else main)
    return found


def _tree(outputs: list[Any], axes: Sequence[Axis], before: int) -> Any:
    """Join outputs of one type leaf by leaf."""
    flat = [flatten(output) for output in outputs]
    groups = zip(zip(*(leaves for leaves, _ in flat), strict=True), axes, strict=True)
    return flat[0][1]([leaves[0] if axis is None else joined_leaves(leaves, axis, before) for leaves, axis in groups])


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
