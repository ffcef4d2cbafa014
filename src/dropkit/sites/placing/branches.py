"""Branches of residual networks and transformers, and what looks like one: a correction of a layer's weights."""

from dropkit.sites.placing.flow import Flow, Step, Value
from dropkit.sites.placing.walks import chain, depths_of, sources, steps_before

__all__ = ["correction", "find_branches"]

_LINEAR = ("mul", "rmul", "imul", "truediv", "to", "float", "half", "bfloat16", "type", "contiguous", "view", "reshape")


def find_branches(flow: Flow) -> list[tuple[Step, Value]]:
    """Return every sum of a shortcut and a branch, and the branch: what has more layers behind it."""
    depths, found = depths_of(flow), []
    for step in flow.kind("sum"):
        if len(step.inputs) != 2 or step.inputs[0].shape != step.inputs[1].shape:
            continue
        short, branch = sorted(step.inputs, key=lambda value: depths.get(value, 0))
        is_deeper = depths.get(short, 0) < depths.get(branch, 0)
        is_score = any(after.kind == "softmax" for after in step.outputs[0].readers)
        if is_deeper and not is_score and short.is_floating and _meet(short, branch) and not correction(step):
            found.append((step, branch))
    return found


def correction(joint: Step) -> list[Step]:
    """Return the dense layers whose product a sum adds to the weights of another, as LoRA does; none of other sums."""
    for one, other in (joint.inputs, joint.inputs[::-1]) if len(joint.inputs) == 2 else ():
        [layer, *more] = sources(other) or [None]
        if layer is None or more or layer.kind != "dense":
            continue
        starts, value, layers = {layer.inputs[0], *chain(layer.inputs[0])}, one, []
        while value not in starts and value.step not in (None, layer) and _is_linear(value.step):
            layers += [value.step] if value.step.is_layer else []
            value = value.step.inputs[0]
        if value in starts and len(layers) > 1:
            return layers
    return []


def _is_linear(step: Step) -> bool:
    """Tell whether a step multiplies the one thing that it reads, drops from it, or changes its form."""
    return len(step.inputs) == 1 and (step.kind in ("dense", "dropout") or step.name in _LINEAR)


def _meet(short: Value, branch: Value) -> bool:
    """Tell whether a branch begins where its shortcut does: there, or behind one layer of the shortcut's own."""
    before = steps_before(branch, through_layers=True)
    starts = {short, *chain(short)}
    for source in steps_before(short, through_layers=False):
        if source.is_layer:
            starts |= {start for value in source.inputs for start in (value, *chain(value))}
    return any(reader in before for start in starts for reader in start.readers)
