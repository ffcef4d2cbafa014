"""Dropout of nested tensors: constituent by constituent, each example at the place it has in any batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import argument_error, argument_type_error, check_axes
from dropkit.functional.address import draw_key, key_tensor, pass_of
from dropkit.functional.examples import NumberedKey, check_examples, numbers_of

__all__ = ["apply", "lengths", "nest_alike", "of_slice"]

_RAGGED = 2**32  # what a ragged axis counts as, so that the longest length of a batch does not matter


def apply(
    where: str,
    drop: Callable[..., Any],
    input: Any,
    p: float | Tensor,
    training: bool,
    *,
    identity: bool,
    key: Tensor | None,
    mask: Tensor | None,
    stream: Tensor,
    generator: torch.Generator | None,
    inplace: bool,
    offset: object,
    full_shape: object,
    broadcast_dims: object,
    return_mask: bool,
    scale_at: str,
    numbers: NumberedKey | None,
) -> Any:
    """Apply `drop` on behalf of a function to every constituent of a nested tensor, as an example of the whole batch.

    Raises:
        ArgumentError: If an axis is none of the tensor's, or `inplace`, `offset` or `full_shape` is asked for.
        ArgumentTypeError: If the tensor has holes.
    """
    for name, value in (
        ("inplace", (inplace and not identity) or None),
        ("offset", offset),
        ("full_shape", full_shape),
    ):
        if value is not None:
            raise argument_error(where, name, "left out where the input is nested", value)
    check_axes(where, "broadcast_dims", broadcast_dims, input.dim())
    if input.layout == torch.jagged and input.lengths() is not None:
        remedy = "Call contiguous()."
        raise argument_type_error(where, "input", "a nested tensor without holes", input.layout, remedy)
    if identity and not return_mask:
        return input
    parts = input.unbind()
    if mask is None and key is None and training and not identity:
        drawn = draw_key(where, generator, input)
        key, numbers = key_tensor(drawn), numbers_of(drawn)
        stream = pass_of(where, stream, numbers)
    whole = (len(parts), *lengths(input, parts))
    examples = [(stream, i) for i in range(len(parts))]
    if numbers is not None and numbers.runs:
        check_examples(where, numbers.runs, whole, len(numbers.streams))
        ids = [first + i for first, length in numbers.runs for i in range(length)]
        several = [torch.tensor(each, device="cpu") for each in numbers.streams]
        examples = [(each, i) for each in (several if len(several) > 1 else [stream]) for i in ids]
        whole = (max(ids) + 1, *whole[1:])
    masks = () if mask is None else mask.unbind()
    results = []
    for i, part in enumerate(parts):
        if masks:
            source: dict[str, Any] = {"mask": masks[i].unsqueeze(0)}
        else:
            own, number = examples[i]
            source = {"key": of_slice(key, i), "stream": of_slice(own, i), "broadcast_dims": broadcast_dims}
            source |= {"offset": (number, *(0,) * part.dim()), "full_shape": whole}
        found = drop(where, part.unsqueeze(0), of_slice(p, i), training, return_mask=True, scale_at=scale_at, **source)
        results.append([tensor.squeeze(0) for tensor in found])
    output = input if identity else nest_alike(input, [output for output, _ in results])
    return (output, nest_alike(input, [keep for _, keep in results])) if return_mask else output


def of_slice(value: Any, i: int) -> Any:
    """Return what belongs to one example: its own value, or the one value of all."""
    return value[i : i + 1] if isinstance(value, Tensor) and value.dim() else value


def lengths(input: Any, parts: tuple[Tensor, ...]) -> list[int]:
    """Return the length of every axis but the first, as an address counts it."""
    ragged = input._ragged_idx if input.layout == torch.jagged else 1
    found = [set(lengths) for lengths in zip(*(part.shape for part in parts), strict=True)]
    return [
        _RAGGED if axis == ragged or len(lengths) > 1 else next(iter(lengths))
        for axis, lengths in enumerate(found, start=1)
    ]


def nest_alike(input: Any, parts: list[Tensor]) -> Tensor:
    """Nest results as the input is nested; a mask whose ragged axis shares one draw is of another shape."""
    if input.layout != torch.jagged:
        return torch.nested.as_nested_tensor(parts)
    ragged = input._ragged_idx
    if sum(part.shape[ragged - 1] for part in parts) != input.values().shape[ragged - 1]:
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    # The same offsets, not equal ones: PyTorch takes tensors of other offsets for tensors of another shape.
    return torch.nested.nested_tensor_from_jagged(torch.cat(parts, ragged - 1), input.offsets(), jagged_dim=ragged)
