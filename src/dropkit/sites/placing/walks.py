"""Walks along the flow of data through a model: what comes before a value, and what becomes of it."""

from collections.abc import Callable, Iterator

from dropkit.sites.placing.flow import Flow, Step, Value

__all__ = [
    "chain", "depths_of", "downstream", "is_before_batch_norm", "is_on_output", "mixes", "sources", "steps_after",
    "steps_before", "upstream",
]  # fmt: skip

_SUMS = ("add", "iadd", "radd", "matmul", "rmatmul", "bmm", "einsum")


def upstream(value: Value) -> Iterator[Step]:
    """Yield the steps before a value, as long as each has but one input and has no weights: dropout, too."""
    step = value.step
    while step is not None and step.kind in ("other", "dropout", "softmax") and len(step.inputs) == 1:
        yield step
        step = step.inputs[0].step


def sources(value: Value) -> set[Step]:
    """Return the last layers before a value on all ways that lead to it."""
    return {step for step in steps_before(value, through_layers=False) if step.is_layer}


def steps_before(value: Value, *, through_layers: bool) -> set[Step]:
    """Return the steps before a value, perhaps only up to the last layers."""
    found: set[Step] = set()
    waiting = [value]
    while waiting:
        step = waiting.pop().step
        if step is not None and step not in found:
            found.add(step)
            if through_layers or not step.is_layer:
                waiting += step.inputs
    return found


def steps_after(
    value: Value, is_end: Callable[[Step], bool], *, is_by_numbers: bool = False
) -> tuple[list[Step], set[Value]]:
    """Return the steps and values behind a value, up to such as are an end; perhaps not by lengths and indices."""
    steps: dict[Step, None] = {}  # in order
    values: set[Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        values.add(current)
        for step in current.readers:
            if step not in steps:
                steps[step] = None
                made = [output for output in step.outputs if output.is_floating or not is_by_numbers]
                waiting += [] if is_end(step) else made
    return list(steps), values


def downstream(value: Value) -> list[Step]:
    """Return what drops behind a value, before anything else mixes it."""
    return [step for step in steps_after(value, mixes)[0] if step.kind == "dropout"]


def is_before_batch_norm(value: Value) -> bool:
    """Tell whether a BatchNorm stores statistics of what is made of a value."""
    steps, _ = steps_after(value, lambda step: False)
    return any(step.kind == "batch_norm" for step in steps)


def is_on_output(value: Value, flow: Flow) -> bool:
    """Tell whether a value is what the model returns, up to its shape and pointwise functions."""
    steps, values = steps_after(value, _makes_up)
    return not any(map(_makes_up, steps)) and any(output in values for output in flow.outputs)


def _makes_up(step: Step) -> bool:
    """Tell whether a step adds something to what it reads, weighs it or normalises it."""
    return step.is_layer or step.kind in ("norm", "batch_norm") or (len(step.inputs) > 1 and step.name in _SUMS)


def mixes(step: Step) -> bool:
    """Tell whether a step mixes what it reads with more, or normalises it."""
    return step.is_layer or step.kind in ("sum", "norm", "batch_norm") or len(step.inputs) > 1


def depths_of(flow: Flow) -> dict[Value, int]:
    """Return how many layers there are before each value, on the longest way."""
    depths = dict.fromkeys(flow.inputs, 0)
    for step in flow.steps:
        deepest = max((depths.get(value, 0) for value in step.inputs), default=0)
        depths |= dict.fromkeys(step.outputs, deepest + step.is_layer)
    return depths


def chain(value: Value) -> list[Value]:
    """Return the values before a value, as long as each has but one before it, without weights between."""
    return [step.inputs[0] for step in upstream(value)]
