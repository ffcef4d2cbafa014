"""Calls and draws for numbered examples: where each function has its examples, and the noise of those."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import dropkit.functional as ours
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.functional.examples import NumberedKey
from dropkit.nn import MultiheadAttention, TransformerEncoderLayer
from dropkit.nn.recurrent_base import RecurrentBase
from dropkit.sites.calls.functions import Call
from dropkit.sites.calls.heads import attend_with_heads
from dropkit.sites.calls.networks import NETWORKS
from dropkit.sites.calls.replacement import replaced, replacement
from dropkit.sites.handwritten.draws import Draw
from dropkit.sites.interception.places import Place
from dropkit.sites.samples import Numbers, set_current

__all__ = ["is_weight", "numbered", "numbered_draw", "numbered_key"]

# Modules that bring the batch to axis 0 themselves.
_BATCH_FIRST = (RecurrentBase, MultiheadAttention, TransformerEncoderLayer)


def numbered(place: Place, call: Call, key: int, numbers: Numbers) -> Any:
    """Run an active call with a key, and the noise of every example at the place of its number."""
    own = replacement(call)
    if own is None:
        return replaced(call, key=key)  # it says why not
    row = own.function
    if any(own.arguments.get(name) is not None for name in (row.key, row.mask, "generator", "noise") if name):
        return own.run()
    _check_alone(place, own, numbers)
    find = _FINDERS[row.function]
    if find in (_of_elements, _of_rows) and not own.input.is_nested and is_weight(own.input, numbers.axis):
        return replaced(call, key=_shared(place, own, key, numbers))
    if numbers.shards and find not in (_of_elements, _of_attention):
        raise UnsupportedError(
            f"address: {place.name or 'the model'} draws the noise of {row.kind}: workers have no parts of it but of "
            "examples."
        )
    if isinstance(place.module, _BATCH_FIRST):
        numbers = replace(numbers, axis=0)
    if row.function in _TRAILING and numbers.axis and not own.input.is_nested:
        return _moved(place, own, key, numbers)
    found = find(place, call, own, key, numbers)
    if row.function is ours.skip_path and isinstance(found.get("key"), NumberedKey):
        return _skipped(own, key, numbers)
    return replaced(call, order=place.order, **found)


def _check_alone(place: Place, own: Call, numbers: Numbers) -> None:
    """Raise if a call says itself something of its examples."""
    if own.arguments.get("full_shape") is not None:
        raise _ambiguous(place, "it says itself where its input lies in a larger tensor", numbers)
    for name, value in (("rate", own.p), ("stream", own.arguments.get("stream"))):
        if isinstance(value, Tensor) and value.dim():
            raise _ambiguous(place, f"it has one {name} for each example", numbers)


def numbered_key(place: Place, examples: Tensor, key: int, numbers: Numbers) -> NumberedKey:
    """Return the key of several masks that a layer draws for examples along axis 0, or for all where there are none."""
    if not examples.dim():
        return NumberedKey(numbers.shared_key(key, f"{place.name}: that of its weights"), (), numbers.streams)
    if not isinstance(place.module, _BATCH_FIRST) and numbers.axis:
        raise _ambiguous(place, f"noise is drawn for axis 0 of a tensor of shape {tuple(examples.shape)}", numbers)
    _check_count(place, examples.size(0), f"axis 0 of a tensor of shape {tuple(examples.shape)}", numbers)
    return numbers.key(key)


def numbered_draw(draw: Draw, key: int, numbers: Numbers) -> Any:
    """Run a random operator with a key, and the draws of every example at the place of its number."""
    shape = draw.shape
    if not shape or draw.fills_weights:
        return draw.at(_shared_draw(draw, key, numbers))  # one draw for all of them, as where a whole layer is left out
    if not -len(shape) <= numbers.axis < len(shape):
        raise _ambiguous(draw.place, f"random numbers of shape {tuple(shape)} have no axis {numbers.axis}", numbers)
    axis = numbers.axis % len(shape)
    if shape[axis] == 1 != len(numbers):  # one draw for all of them, however many
        key = _shared_draw(draw, key, numbers)
        return draw.at(key, **_part(0, 1, shape[1:], numbers.shards)) if not axis else draw.at(key)
    _check_count(draw.place, shape[axis], f"axis {axis} of random numbers of shape {tuple(shape)}", numbers)
    order = [axis, *(other for other in range(len(shape)) if other != axis)]
    rest, shards = [shape[other] for other in order[1:]], numbers.moved(order)
    if not axis and len(numbers) == numbers.runs[0][1]:
        return draw.at(NumberedKey(key, (), numbers.streams), **_part(*numbers.runs[0], rest, shards))
    return draw.put(_drawn_examples(draw, key, axis, rest, replace(numbers, shards=shards)).movedim(0, axis))


def _drawn_examples(draw: Draw, key: int, axis: int, rest: Sequence[int], numbers: Numbers) -> Tensor:
    """Draw for examples along an axis, and bring them to axis 0, as are the other axes that have shards."""
    passes, parts, found = len(numbers.streams), {}, []
    streams: Any = torch.tensor(numbers.streams, device="cpu") if passes > 1 else numbers.streams[0]
    begin = 0
    for run in numbers.runs:
        which = run if draw.has_one_law else (run, begin)
        if which not in parts:  # the same examples have the same draws
            place = _part(*run, rest, numbers.shards)
            if passes > 1:
                place = {"offset": (0, *place["offset"]), "full_shape": (passes, *place["full_shape"])}
            parts[which] = draw.slices(axis, begin, run[1], passes).at(key, streams, **place)
        found.append(parts[which])
        begin += run[1]
    whole = found[0] if len(found) == 1 else torch.cat(found, int(passes > 1))
    return whole if passes == 1 else whole.flatten(0, 1)


def _shared_draw(draw: Draw, key: int, numbers: Numbers) -> int:
    """Return the key of random numbers that all examples of a pass share."""
    return numbers.shared_key(key, f"{draw.place.name}: {draw.operator}")


def _part(first: int, length: int, rest: Sequence[int], shards: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    """Return where a run of examples lies among all that there may be, and its other axes in whole ones."""
    places = [shards.get(axis, (0, whole)) for axis, whole in enumerate(rest, 1)]
    return {
        "offset": (first, *(begin for begin, _ in places)),
        "full_shape": (first + length, *(whole for _, whole in places)),
    }


def _shared(place: Place, own: Call, key: int, numbers: Numbers) -> int:
    """Return the key of a call whose noise all examples of a pass share."""
    return numbers.shared_key(key, f"{place.name or 'the model'}: that of {own.function.kind}")


def _ambiguous(place: Place, why: str, numbers: Numbers) -> ArgumentError:
    who, remedy = "samples", "Say along which axis examples lie: samples(ids, dim=...); or leave `samples` out."
    if numbers.origin:
        who, remedy = (
            "address",
            (
                f"Say along which axis workers have parts of it, or None where it has no examples: Workers(..., shards="
                f"{{{place.name!r}: {{dimension: axis}}}})."
            ),
        )
    return ArgumentError(f"{who}: the examples of {place.name or 'the model'} cannot be told apart: {why}. {remedy}")


def _check_count(place: Place, length: int, what: str, numbers: Numbers) -> None:
    if length != len(numbers):
        known = f"{numbers.origin} has {len(numbers)}" if numbers.origin else f"there are {len(numbers)} numbers"
        raise _ambiguous(place, f"{what} has the length {length}, and {known}", numbers)


def is_weight(input: Tensor, axis: int) -> bool:
    """Tell whether a tensor is a parameter, or a part of one, which has no examples."""
    if isinstance(input, Parameter):
        return True
    is_repeated = -input.dim() <= axis < input.dim() and input.size(axis) > 1 and not input.stride(axis)
    return isinstance(input._base, Parameter) and not is_repeated


def _drawn(call: Call, key: int, shape: Sequence[int], numbers: Numbers, shared: Sequence[int] = ()) -> Tensor:
    """Draw the mask of examples along axis 0, as are the other axes that have shards."""
    device, found, rest = call.input.device, {}, shape[1:]
    passes = len(numbers.streams)
    for run in dict.fromkeys(numbers.runs):  # the same examples have the same masks
        place = _part(*run, rest, numbers.shards)
        like = torch.empty((), device=device).expand(run[1], *rest)
        axes = tuple(shared)
        if passes > 1:
            place = {"offset": (0, *place["offset"]), "full_shape": (passes, *place["full_shape"])}
            like, axes = like.expand(passes, *like.shape), tuple(each + 1 for each in shared)
            place["stream"] = torch.tensor(numbers.streams, device=device)
        else:
            place["stream"] = call.arguments.get("stream", 0)
        own = key if numbers.streams == (0,) or passes > 1 else NumberedKey(key, (), numbers.streams)
        found[run] = ours.dropout(like, call.p, key=own, return_mask=True, broadcast_dims=axes, **place)[1]
    parts = [found[run] for run in numbers.runs]
    return torch.cat(parts) if passes == 1 else torch.cat(parts, 1).flatten(0, 1)


def _of_elements(place: Place, call: Call, own: Call, key: int, numbers: Numbers) -> dict[str, Any]:
    if own.input.is_nested:
        return {"key": _of_nested(place, own, key, numbers)}
    shape, rank, kind = own.input.shape, own.input.dim(), call.function.kind
    if not -rank <= numbers.axis < rank:
        raise _ambiguous(place, f"a tensor of shape {tuple(shape)} has no axis {numbers.axis}", numbers)
    axis, shared = numbers.axis % rank, own.shared
    if kind in ("dropout1d", "dropout2d", "dropout3d") and len(shared) == rank - 1:
        raise _ambiguous(place, f"maps of shape {tuple(shape)} have no axis of examples", numbers)
    if axis in shared:
        if kind == "locked_dropout":
            raise _ambiguous(place, f"axis {axis} is time", numbers)
        if not numbers.shards:
            return {"key": _shared(place, own, key, numbers)}  # one draw for all of them, however many
        begin, _ = numbers.shards.get(0, (0, 0))
        return {"mask": _drawn(own, key, shape, replace(numbers, runs=((begin, shape[0]),)), shared)}
    _check_count(place, shape[axis], f"axis {axis} of a tensor of shape {tuple(shape)}", numbers)
    if not axis and not numbers.shards:
        return {"key": numbers.key(key)}
    order = [axis, *(other for other in range(rank) if other != axis)]
    moved = replace(numbers, shards=numbers.moved(order))
    mask = _drawn(own, key, [shape[other] for other in order], moved, [order.index(other) for other in shared])
    return {"mask": mask.movedim(0, axis)}


def _skipped(own: Call, key: int, numbers: Numbers) -> Any:
    """Run a branch on the examples that keep it, with their numbers."""
    mask = _drawn(own, key, own.input.shape, numbers, own.shared)
    rows = mask.flatten().nonzero().squeeze(1)

    def branch(input: Tensor) -> Any:
        run, is_part = own.arguments["branch"], len(input) == len(rows) < len(numbers)
        if is_part and len(numbers.streams) > 1:  # which keep different examples: all are done, and the others left out
            with set_current(numbers):
                found = run(own.input)
            return found.index_select(0, rows) if isinstance(found, Tensor) and len(found) == len(numbers) else found
        every = list(numbers)
        with set_current(numbers.those([every[i] for i in rows.tolist()]) if is_part else numbers):
            return run(input)

    return replaced(own.changed(branch=branch), mask=mask)


def _of_nested(place: Place, own: Call, key: int, numbers: Numbers) -> NumberedKey:
    if numbers.axis or own.shared:
        raise _ambiguous(place, "its input is nested", numbers)
    _check_count(place, own.input.size(0), "a nested tensor", numbers)
    return numbers.key(key)


def _of_attention(place: Place, _: Call, own: Call, key: int, numbers: Numbers) -> dict[str, Any]:
    query, keys = own.arguments["query"], own.arguments["key"]
    grouped = own.arguments.get("enable_gqa")
    leading = query.shape[:-2]
    if not grouped and keys.shape[:-2] != leading:
        leading = torch.broadcast_shapes(leading, keys.shape[:-2])
    if not leading or (len(leading) == 1 and numbers.axis != 0):
        raise _ambiguous(place, f"queries of shape {tuple(query.shape)} have no axis of examples", numbers)
    shape = (*leading, query.size(-2), keys.size(-2))
    _check_count(place, shape[0], f"axis 0 of attention weights of shape {tuple(shape)}", numbers)
    if numbers.shards:
        return {"mask": _drawn(own, key, shape, numbers)}
    return {"key": numbers.key(key)}


def _of_heads(place: Place, _: Call, own: Call, key: int, numbers: Numbers) -> dict[str, Any]:
    query = own.arguments["query"]
    if query.dim() != 3:
        raise _ambiguous(place, f"queries of shape {tuple(query.shape)} have no axis of examples", numbers)
    _check_count(place, query.size(1), "the batch of queries", numbers)
    return {"key": numbers.key(key)}


def _of_network(place: Place, _: Call, own: Call, key: int, numbers: Numbers) -> dict[str, Any]:
    given, x = own.arguments, own.input
    sizes = given.get("batch_sizes")
    batch = x.size(0 if given["batch_first"] else 1) if sizes is None else int(sizes[0])
    _check_count(place, batch, "the batch of sequences", numbers)
    return {"key": numbers.key(key)}


def _of_words(place: Place, _: Call, own: Call, key: int, numbers: Numbers) -> dict[str, Any]:
    tokens = own.arguments["tokens"]
    if own.arguments["per"] == "batch":
        return {"key": _shared(place, own, key, numbers)}  # words are dropped for all of them, however many
    if tokens.dim() < 2:
        raise _ambiguous(place, f"tokens of shape {tuple(tokens.shape)} have no axis of sequences", numbers)
    _check_count(place, tokens.size(0 if own.arguments["batch_first"] else 1), "the batch of sequences", numbers)
    return {"key": numbers.key(key)}


# Functions that are one for each example along an axis: how many axes at the end of their input cannot be that one.
_TRAILING: Mapping[Callable[..., Any], Callable[[Mapping[str, Any]], int]] = MappingProxyType(
    {
        ours.gaussian_dropout: lambda given: 0,
        ours.concrete_dropout: lambda given: 0,
        ours.variational_dropout: lambda given: 0,
        ours.dropout_add: lambda given: 0,
        ours.dropout_add_layer_norm: lambda given: 1,
        ours.dropout_add_rms_norm: lambda given: 1,
        ours.activation_dropout: lambda given: int(given["bias"] is not None),
        ours.word_dropout: lambda given: int(given["unknown"] is None),
        ours.drop_connect: lambda given: 1,
        ours.drop_connect_inference: lambda given: 1,
        ours.local_reparameterization: lambda given: given["weight"].dim() - 1,
        ours.drop_block1d: lambda given: 2,
        ours.drop_block2d: lambda given: 3,
        ours.drop_block3d: lambda given: 4,
    }
)
_MOVED = ("input", "residual", "logit", "log_alpha")  # their tensors that have that axis


def _of_rows(place: Place, _: Call, own: Call, key: int, numbers: Numbers) -> dict[str, Any]:
    """Say where a function draws that takes the examples along axis 0."""
    if own.input.is_nested:
        return {"key": _of_nested(place, own, key, numbers)}
    axis = _axis(place, own, numbers)
    if axis in own.shared:
        return {"key": _shared(place, own, key, numbers)}  # one draw for all of them, however many
    _check_count(place, own.input.size(axis), f"axis {axis} of a tensor of shape {tuple(own.input.shape)}", numbers)
    return {"key": numbers.key(key)}


def _axis(place: Place, own: Call, numbers: Numbers) -> int:
    """Return the axis of examples of a function's input."""
    rank = own.input.dim()
    free = rank - _TRAILING[own.function.function](own.arguments)
    if not -rank <= numbers.axis < rank or numbers.axis % rank >= free:
        raise _ambiguous(
            place, f"a tensor of shape {tuple(own.input.shape)} has no examples along axis {numbers.axis}", numbers
        )
    return numbers.axis % rank


def _moved(place: Place, own: Call, key: int, numbers: Numbers) -> Any:
    """Run a function with the examples along axis 0, and bring them back to their axis."""
    axis, rank = _axis(place, own, numbers), own.input.dim()
    order = [axis, *(other for other in range(rank) if other != axis)]
    moved: dict[str, Any] = {
        name: tensor.reshape((1,) * (rank - tensor.dim()) + tensor.shape).movedim(axis, 0)
        for name in _MOVED
        if isinstance(tensor := own.arguments.get(name), Tensor)
    }
    if "broadcast_dims" in own.arguments:
        moved["broadcast_dims"] = tuple(order.index(other) for other in own.shared)
    own = own.changed(**moved)
    found = own.changed(**_of_rows(place, own, own, key, replace(numbers, axis=0))).run()
    if isinstance(found, tuple):  # with its mask or its noise
        return tuple(each.movedim(0, axis) for each in found)
    return found.movedim(0, axis)


_ELEMENTS = (
    ours.dropout, ours.dropout1d, ours.dropout2d, ours.dropout3d, ours.locked_dropout, ours.alpha_dropout,
    ours.feature_alpha_dropout, ours.drop_path, ours.skip_path, ours.zoneout,
)  # fmt: skip
_FINDERS: Mapping[Callable[..., Any], Callable[..., dict[str, Any]]] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTS, _of_elements),
        **dict.fromkeys(_TRAILING, _of_rows),
        ours.embedding_dropout: _of_words,
        ours.scaled_dot_product_attention: _of_attention,
        attend_with_heads: _of_heads,
        **dict.fromkeys(NETWORKS.values(), _of_network),
    }
)
