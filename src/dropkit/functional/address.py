"""Addresses: how a call's `p`, `key`, `generator` and `stream` become the tensors that operators read."""

from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from dropkit._checks import KEY, PROBABILITY, STREAM, Integer, Number, argument_error, argument_type_error, as_float
from dropkit.errors import UnsupportedError
from dropkit.functional.autograd import traced
from dropkit.functional.examples import NumberedKey, numbers_of
from dropkit.functional.overrides import is_overridden
from dropkit.kernels.portable import moved_to
from dropkit.random import threshold

__all__ = [
    "Names",
    "check_not_traced",
    "check_one_draw",
    "check_source",
    "draw_key",
    "drawn_address",
    "find_address",
    "is_readable",
    "key_tensor",
    "or_several",
    "pass_of",
    "plain_rate",
    "signed",
]


_Constraint = TypeVar("_Constraint", Number, Integer)


def or_several(constraint: _Constraint, what: str, dtype: torch.dtype) -> _Constraint:
    """Return a constraint whose message tells how to give one value for each slice of axis 0."""
    remedy = f"One {what} for each slice of axis 0 is a tensor: torch.tensor({{}}, dtype={dtype})."
    return replace(constraint, of_several=remedy)


_RATE = or_several(PROBABILITY, "rate", torch.float64)
_KEY, _STREAM = or_several(KEY, "key", torch.int64), or_several(STREAM, "stream", torch.int64)


class Names(NamedTuple):
    """What the arguments are called in the function on whose behalf they are checked, and which rates it takes."""

    input: str = "input"
    p: str = "p"
    key: str = "key"
    rate: Number = _RATE


_NAMES = Names()


def signed(value: int) -> int:
    """Return the int64 with the bits of an integer in ``[0, 2**64]``."""
    return value if value < 2**63 else value - 2**64


def check_source(
    where: str,
    input: Tensor,
    p: float | Tensor,
    key: int | Tensor | None,
    generator: torch.Generator | None,
    stream: int | Tensor,
    names: Names = _NAMES,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return thresholds, streams and keys, if any are given, of what `dropkit.functional.dropout` takes; else raise.

    Args:
        where: The function on whose behalf to check.
        input: The checked input.
        p: The rate.
        key: The key.
        generator: Where to draw the key.
        stream: Number of the pass.
        names: What these are called in it.
    """
    thresholds, streams = _threshold_tensor(where, p, input, names), _stream_tensor(where, stream, input, names)
    streams = pass_of(where, streams, numbers_of(key))
    keys = None if key is None else _key_tensor(where, key, input, names)
    if generator is not None:
        _check_generator(where, generator, key, input, names)
    return thresholds, streams, keys


def pass_of(where: str, stream: Tensor, numbers: NumberedKey | None) -> Tensor:
    """Return the stream of a call whose key may number a pass; of several, which lie along axis 0, it is no matter.

    Raises:
        ArgumentError: If the call says itself which pass it belongs to.
    """
    if numbers is None or numbers.streams == (0,):
        return stream
    if stream.dim() or (is_readable(stream) and int(stream)):
        remedy = "It belongs to the pass of its key, and cannot have a number of its own."
        raise argument_error(where, "stream", "0 in passes that are numbered", stream, remedy)
    return _constant(numbers.streams[0])


def find_address(
    where: str,
    input: Tensor,
    p: float | Tensor,
    key: int | Tensor | None,
    generator: torch.Generator | None,
    stream: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what operators read for a whole tensor: keys, drawn if none is given, streams and thresholds."""
    thresholds, streams, keys = check_source(where, input, p, key, generator, stream)
    return *drawn_address(where, input, keys, streams, generator), thresholds


def drawn_address(
    where: str,
    input: Tensor,
    keys: Tensor | None,
    streams: Tensor,
    generator: torch.Generator | None,
    names: Names = _NAMES,
) -> tuple[Tensor, Tensor]:
    """Return keys, drawn if `check_source` has found none, and streams, with as many axes as one another."""
    check_not_traced(where)
    keys = key_tensor(draw_key(where, generator, input, names)) if keys is None else keys
    slices = max(keys.dim(), streams.dim())
    return keys.reshape((-1,) * slices), streams.reshape((-1,) * slices)


def check_one_draw(where: str, key: int | Tensor | None, stream: int | Tensor, when: str) -> None:
    """Raise where slices of axis 0 share a draw, and there is yet a key or a stream for each of them."""
    for name, value in (("key", key), ("stream", stream)):
        if isinstance(value, Tensor) and value.dim():
            remedy = "Slices of axis 0 share a draw: give one for all."
            raise argument_error(where, name, f"of no axis where {when}", tuple(value.shape), remedy)


def plain_rate(p: Any) -> Any:
    """Return a rate that is a number of any kind as a float; what is wrong stays, to be shown as it is."""
    if type(p) is float or isinstance(p, Tensor):
        return p
    number = as_float(p)
    return number if isinstance(number, float) and PROBABILITY.contains(number) else p


def _threshold_tensor(where: str, p: float | Tensor, input: Tensor, names: Names) -> Tensor:
    """Return the threshold T of a rate, or of one rate a slice of axis 0."""
    name = names.p
    if not isinstance(p, Tensor):
        return _constant(threshold(names.rate.check(where, name, p)), input)
    _check_tensor(where, name, p, torch.float64, input, names.input)
    if p.requires_grad:
        remedy = f"Dropout has no gradient with respect to its rate; pass {name}.detach()."
        raise argument_error(where, f"{name}.requires_grad", "False", True, remedy)
    p = _given(p, input)
    if not is_readable(p):  # without waiting: what is out of range counts as the nearest end, and NaN as 1
        return torch.floor(p.nan_to_num(1.0).clamp(0.0, 1.0) * 2.0**32 + 0.5).to(torch.int64)
    rates = p.numpy(force=True)  # on which a few numbers take a fifth of the time
    if not ((rates >= 0) & ((rates < 1) if names.rate.open_high else (rates <= 1))).all():
        raise argument_error(where, name, names.rate.rule, p, names.rate.remedy)
    return torch.from_numpy(np.asarray(np.floor(rates * 2.0**32 + 0.5), np.int64))


def _key_tensor(where: str, key: int | Tensor, input: Tensor, names: Names) -> Tensor:
    """Return a given key, or one key a slice of axis 0."""
    if isinstance(key, Tensor):
        _check_tensor(where, names.key, key, torch.int64, input, names.input)
        return _given(key, input)
    return _constant(signed(_KEY.check(where, names.key, key)), input)


def key_tensor(key: int | Tensor) -> Tensor:
    """Return a checked key as operators read it."""
    return key if isinstance(key, Tensor) else _constant(signed(key))


def draw_key(
    where: str, generator: torch.Generator | None, input: Tensor, names: Names = _NAMES
) -> Tensor | NumberedKey:
    """Draw a key, over all 64 bits, from a generator on the input's device; a mode may answer with another.

    Axis 0 of the input has the examples. A mode that numbers them answers with a key that does; not where a key is
    drawn for one function alone, for such a mode has given that a key.
    """
    if is_overridden((input,)):
        return handle_torch_function(draw_key, (input,), where, generator, input, names)
    options: dict[str, Any] = {"dtype": torch.int64, "device": input.device}
    if generator is not None:  # the operator that takes one, even None, fails under a compiled `vmap`
        _check_replay(where, names)
        options["generator"] = generator
    # Out of place, for `vmap`: filling a fresh tensor in place would ignore the randomness asked for.
    return torch.randint(-(2**63), 2**63 - 1, (), **options)


def check_not_traced(where: str) -> None:
    """Raise under `torch.jit.trace`."""
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():  # type: ignore[attr-defined]  # missing from its hints
        raise UnsupportedError(f"{where}: torch.jit.trace would record one mask for ever. Use torch.export.")


def _check_replay(where: str, names: Names) -> None:
    """Raise where a generator's draw would have to be repeated, for it has moved on since."""
    # A recomputed forward runs inside the backward pass.
    recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
    if torch.compiler.is_compiling() or recomputing:
        place = "a checkpointed forward" if recomputing else "compiled code"
        remedy = f"pass `{names.key}`"
        raise UnsupportedError(f"{where}: `generator` cannot be used in {place}, which cannot replay it: {remedy}.")


def _stream_tensor(where: str, stream: int | Tensor, input: Tensor, names: Names) -> Tensor:
    """Return the stream, or one stream a slice of axis 0."""
    if not isinstance(stream, Tensor):
        return _constant(_STREAM.check(where, "stream", stream), input)
    _check_tensor(where, "stream", stream, torch.int64, input, names.input)
    if is_readable(stream) and not bool(((stream >= STREAM.low) & (stream <= STREAM.high)).all()):
        raise argument_error(where, "stream", STREAM.rule, stream)
    return _given(stream, input)


def _given(value: Tensor, input: Tensor) -> Tensor:
    """Return a given tensor as operators read it, for a call with a given input."""
    if input.is_cuda and torch.compiler.is_compiling():
        # From a CPU an operator in a CUDA graph would read it once; copies to a GPU stay outside of one.
        return moved_to(value, input.device)
    return value


def _constant(value: int, input: Tensor | None = None) -> Tensor:
    """Return a number as operators read it, for a call with a given input."""
    if input is not None and input.is_cuda and torch.compiler.is_compiling():
        # A tensor on a CPU would keep compiled code out of CUDA graphs.
        return torch.full((), value, dtype=torch.int64, device=input.device)
    return torch.tensor(value, device="cpu")  # whatever the default device: kernels read it without waiting


def _check_generator(where: str, generator: torch.Generator, key: object, input: Tensor, names: Names) -> None:
    """Raise unless the generator is the one source of noise, on the input's device."""
    if not isinstance(generator, torch.Generator):
        raise argument_type_error(where, "generator", "a torch.Generator", generator)
    if key is not None:
        rule = f"None where `{names.key}` is given"
        raise argument_error(where, "generator", rule, generator, "Give one source of noise.")
    if generator.device.type != input.device.type:
        raise argument_error(where, "generator", f"on the {names.input}'s device {input.device}", generator)


def _check_tensor(where: str, name: str, value: Tensor, dtype: torch.dtype, input: Tensor, of: str) -> None:
    # Messages tell of types and shapes, not of values, which compiled code cannot show.
    if value.dtype != dtype:
        same_bits = value.dtype == torch.uint64 and dtype == torch.int64
        is_alike = value.dtype.is_floating_point == dtype.is_floating_point
        remedy = f"Convert it: {name}.to({dtype})." if is_alike else ""
        remedy = f"The same bits: {name}.view(torch.int64)." if same_bits else remedy
        raise argument_type_error(where, name, f"a number or a tensor of {dtype}", value.dtype, remedy)
    shape = tuple(value.shape)
    if shape and (len(shape) > 1 or input.dim() == 0 or shape[0] != input.size(0)):  # a nested tensor has no shape
        wanted, slices = (f" or ({input.size(0)},)", f"{input.size(0)} slices") if input.dim() else ("", "no axis")
        counts = f"It has {shape[0]} values, the {of} has {slices}."
        remedy = counts if len(shape) == 1 else "Give one value, or one for each slice of axis 0."
        raise argument_error(where, name, f"of shape (){wanted}", shape, remedy)
    if value.device != input.device and (shape or value.device.type != "cpu"):
        raise argument_error(where, name, f"on the {of}'s device {input.device}", value.device)


def is_readable(value: Tensor) -> bool:
    """Tell whether values can be read here and now: no device to wait for, no tracing, no transform."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu"
    return plain and not traced()
