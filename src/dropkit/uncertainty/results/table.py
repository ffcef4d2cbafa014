"""A result as a short table of text."""

from collections.abc import Iterator, Sized
from typing import Any

from torch import Tensor

from dropkit.uncertainty.results.joining import Parts
from dropkit.uncertainty.results.outputs import flatten

__all__ = ["named_tensors", "table"]

_ROWS = 16  # of an output of many tensors
_HEAD = ("statistic", "shape", "average", "Monte Carlo error")


def named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a statistic by name."""
    leaves, rebuild = flatten(value)
    for path, leaf in zip(rebuild.names, leaves, strict=True):
        if isinstance(leaf, Tensor):
            yield name + path.removeprefix("output"), leaf


def table(parts: Parts) -> str:
    """Return a table of statistics: averages over a tensor's numbers, and root mean squares of their errors."""
    values, errors = parts.values, parts.errors
    found = {name: tensor for key in errors for name, tensor in named_tensors(key, errors[key])}
    rows = [
        (name, str(tuple(tensor.shape)), _number(_average(tensor)), _number(_root_mean_square(found.get(name))))
        for key in values
        if key not in ("samples", "prediction")
        for name, tensor in named_tensors(key, values[key])
        if tensor.is_floating_point()
    ]
    shown = [_HEAD, *rows[:_ROWS]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(_HEAD))]
    lines = [
        "  ".join((name.ljust(widths[0]), shape.ljust(widths[1]), average.rjust(widths[2]), error.rjust(widths[3])))
        for name, shape, average, error in shown
    ]
    more = [f"and {len(rows) - _ROWS} more"] if len(rows) > _ROWS else []
    return "\n".join([_title(parts), *lines, *more])


def _title(parts: Parts) -> str:
    told = ["1 pass" if parts.n == 1 else f"{parts.n} passes", *([parts.task] if parts.task else [])]
    for name, fact in parts.facts.items():
        if name == "reached":
            told += [] if fact is None else ["error reached" if fact else "error not reached"]
        elif name == "sites" and isinstance(fact, Sized):
            told.append(f"{len(fact)} site" if len(fact) == 1 else f"{len(fact)} sites")
        elif fact is not None:
            told.append(f"{name} {' and '.join(map(str, fact)) if isinstance(fact, tuple) else fact}")
    return "Result of " + ", ".join(told + (["samples kept"] if "samples" in parts.values else []))


def _average(values: Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None


def _root_mean_square(values: Tensor | None) -> float | None:
    return None if values is None or not values.numel() else float(values.double().square().mean().sqrt())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
