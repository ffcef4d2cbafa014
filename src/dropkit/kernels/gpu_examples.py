"""Small examples by which a GPU's kernels are compared with portable operations before they serve.

What an operator launches depends on more than the types of its tensors: on widths, on what is given and what is not.
That is the form of a call, and its example has the same. Under the key two draws are tied with the rate; one of them is
kept and one dropped.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import portable
from dropkit.random.layout import Layout, layout

__all__ = ["TYPES", "Form", "OnDevice", "attention_form", "example", "form", "is_near"]

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_KEY, _RATE = 0x3C6E_F374_6191_8DB3, 1_288_490_189  # the threshold of 0.3
_TIED = 6, 1056  # the shape in which those draws are
_ROWS = {"of whole draws": 1056, "of parts": 1060, "narrow": 3}  # columns

Form = tuple[Any, ...]
_Portable = Callable[[str], Callable[..., Any]]


class OnDevice(tuple[bool, ...]):
    """Which of key, stream and rate are read from a GPU's memory, not given as numbers."""

    __slots__ = ()


def _of_address(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [each for each in arguments if isinstance(each, Tensor) and each.dtype == torch.int64][:3]


def form(name: str, arguments: tuple[Any, ...]) -> Form:
    """Return what tells apart the kernels that calls of an operator launch, beside types.

    Args:
        name: The operator.
        arguments: Those of a call, with layouts as its kernels take them.
    """
    places = OnDevice(each.is_cuda for each in _of_address(arguments))
    return _FORMS[name](*arguments) + ((places,) if any(places) else ())


def example(name: str, device: torch.device, dtype: torch.dtype, like: Form, portable: _Portable) -> tuple[Any, ...]:
    """Return arguments of a small call.

    Args:
        name: The operator.
        device: Where tensors lie.
        dtype: Of what it is given.
        like: The form of the call.
        portable: Returns what does an operator's work by PyTorch's operations; a backward pass needs a forward pass.
    """
    places = like[-1] if like and isinstance(like[-1], OnDevice) else OnDevice()
    base = like[:-1] if places else like
    arguments = _EXAMPLES[name](_Numbers(device, dtype, portable), device, dtype, *base)
    moved = {
        id(each): each.to(device) for each, is_there in zip(_of_address(arguments), places, strict=False) if is_there
    }
    return tuple(moved.get(id(each), each) for each in arguments)


class _Numbers:
    """Random numbers, the same in every example, and what `example` is given to make more of them."""

    def __init__(self, device: torch.device, dtype: torch.dtype, portable: _Portable) -> None:
        self._device, self._dtype, self.portable = device, dtype, portable
        self._generator = torch.Generator(device="cpu").manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return drawn.to(self._device, self._dtype)


def is_near(found: Any, wanted: Any) -> bool:
    """Tell whether tensors are equal, those of a floating-point type about so."""
    pairs = [(found, wanted)] if isinstance(found, Tensor) else list(zip(found, wanted, strict=True))
    return all(_is_near(one, other) for one, other in pairs)


def _is_near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = 0.06 if one.element_size() == 2 else 0.01  # products of float32 may be rounded to fewer bits
    one, other = one.double(), other.double()
    return torch.allclose(one, other, tolerance, tolerance * float(other.abs().mean()) if other.numel() else 0.0)


def _address() -> tuple[Tensor, Tensor, Tensor]:
    key, stream, threshold = (torch.tensor(value, device="cpu") for value in (_KEY, 7, _RATE))
    return key, stream, threshold


def _rows(columns: int, first_column: int = 0) -> str:
    """Return how rows lie to draws of eight columns."""
    if columns % 8 == 0 and first_column % 8 == 0:
        return "of whole draws"
    return "narrow" if columns < 8 else "of parts"


def _dropout_form(
    input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, is_scaled: bool
) -> Form:
    skipped = input.dim() - len(place.shape)
    if input.is_contiguous() and input.shape[skipped:] == place.shape:
        rows = _rows(place.shape[-1], place.first_column) if place.shape else "narrow"
        return is_scaled, rows, key.numel() > 1 or stream.numel() > 1, threshold.numel() > 1
    axes = [axis for axis in range(input.dim()) if input.shape[axis] > 1]
    shared = [axis >= skipped and place.shape[axis - skipped] == 1 for axis in axes]
    strides = torch.empty_like(input, device="meta").stride()  # of the result
    return is_scaled, "spread", tuple(shared), tuple(sorted(range(len(axes)), key=lambda i: -strides[axes[i]]))


def _dropout(
    numbers: _Numbers, device: torch.device, _: torch.dtype, is_scaled: bool, rows: str, *like: Any
) -> tuple[Any, ...]:
    key, stream, threshold = _address()
    if rows == "spread":
        shared, order = like
        lengths = [*[3] * (len(shared) - 1), 9][: len(shared)]
        in_memory = [lengths[axis] for axis in order]
        x = numbers(*in_memory, 2)[..., 0].permute(sorted(range(len(order)), key=order.__getitem__))
        place = layout("example", lengths, tuple(axis for axis, is_shared in enumerate(shared) if is_shared))
        return x, key, stream, threshold, place, is_scaled
    has_keys, has_rates = like
    shape, each = (_TIED[0], _ROWS[rows]), torch.arange(_TIED[0], device="cpu")
    key, stream = ((key + each).to(device), stream.reshape(1).to(device)) if has_keys else (key, stream)
    threshold = (threshold + each * 2**24).to(device) if has_rates else threshold
    return numbers(*shape), key, stream, threshold, layout("example", shape, slices=int(has_keys)), is_scaled


def _mask(_: _Numbers, device: torch.device, __: torch.dtype, rows: str) -> tuple[Any, ...]:
    return *_address(), layout("example", (_TIED[0], _ROWS[rows])), device


def _bits(_: _Numbers, device: torch.device, __: torch.dtype) -> tuple[Any, ...]:
    return *_address(), layout("example", _TIED), device  # whole words: what follows a mask in its last is no matter


def _field_form(key: Tensor, stream: Tensor, place: Layout, *_: Any) -> Form:
    return (_rows(place.shape[-1] if place.shape else 1, place.first_column),)


def _integers(_: _Numbers, device: torch.device, __: torch.dtype, rows: str) -> tuple[Any, ...]:
    return *_address()[:2], layout("example", (3, _ROWS[rows])), device


def _uniform(numbers: _Numbers, device: torch.device, dtype: torch.dtype, rows: str) -> tuple[Any, ...]:
    return *_integers(numbers, device, dtype, rows), dtype


def _dropout_add_form(input: Tensor, *_: Any) -> Form:
    return (_rows(input.shape[-1] if input.dim() else 1),)


def _dropout_add(numbers: _Numbers, _: torch.device, __: torch.dtype, rows: str) -> tuple[Any, ...]:
    shape = 3, _ROWS[rows]
    return numbers(*shape), numbers(*shape), *_address()


def _activation_form(input: Tensor, bias: Tensor | None, activation: str, *_: Any) -> Form:
    return *_dropout_add_form(input), bias is not None, activation


def _activation_dropout(
    numbers: _Numbers, _: torch.device, __: torch.dtype, rows: str, has_bias: bool, activation: str
) -> tuple[Any, ...]:
    columns = _ROWS[rows]
    return numbers(3, columns), numbers(columns) if has_bias else None, activation, *_address()


def _activation_dropout_backward(numbers: _Numbers, device: torch.device, dtype: torch.dtype, *like: Any) -> Any:
    x, bias, activation, *address = _activation_dropout(numbers, device, dtype, *like)
    if activation == "relu":  # of which the result is given
        key, stream, threshold = address
        x = portable.dropout(torch.relu(x), key, stream, threshold, layout("example", x.shape))
    return numbers(*x.shape), x, bias, activation, *address


def _norm_form(
    input: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, is_centred: bool, *_: Any
) -> Form:
    return int(input.shape[-1]), weight is not None, bias is not None, is_centred


def _norm(
    numbers: _Numbers,
    _: torch.device,
    dtype: torch.dtype,
    columns: int,
    has_weight: bool,
    has_bias: bool,
    is_centred: bool,
) -> tuple[Any, ...]:
    weight, bias = (numbers(columns) if is_given else None for is_given in (has_weight, has_bias))
    return numbers(3, columns), numbers(3, columns), weight, bias, is_centred, 1e-5, dtype, *_address()


def _norm_backward_form(
    grad: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor | None, *rest: Any
) -> Form:
    _, _, is_centred, needed, *_ = rest
    return int(total.shape[-1]), grad_total is not None, weight is not None, is_centred, tuple(needed)


def _norm_backward(
    numbers: _Numbers,
    _: torch.device,
    dtype: torch.dtype,
    columns: int,
    has_total: bool,
    has_weight: bool,
    is_centred: bool,
    needed: tuple[bool, bool],
) -> tuple[Any, ...]:
    grad, of_total, total = (numbers(3, columns) for _ in range(3))
    forward = total, torch.zeros_like(total), None, None, is_centred, 1e-5, dtype, *_address()[:2], torch.tensor(0)
    *_, mean, scale = numbers.portable("dropout_add_norm")(*forward)
    saved = total, numbers(columns) if has_weight else None, mean, scale, is_centred
    return grad, of_total if has_total else None, *saved, list(needed), dtype, *_address()


def attention_form(
    query: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, is_packed: bool, has_bits: bool = False
) -> Form:
    """Return the form of a call of attention.

    Args:
        query: Queries, of at most 256 columns.
        value: Values, likewise.
        attn_mask: The mask, or None.
        is_causal: Whether query i attends to keys 0 .. i alone.
        is_packed: Whether examples of various lengths lie one behind the other.
        has_bits: Whether the mask of dropout is read from bits.
    """
    kind = "none" if attn_mask is None else "bool" if attn_mask.dtype == torch.bool else "numbers"
    return _width(query.shape[-1]), _width(value.shape[-1]), kind, is_causal, is_packed, has_bits


def _width(columns: int) -> int:
    """Return the width of the tile that columns are in."""
    return next(width for width in (16, 32, 64, 128, 256) if columns <= width)


def _attention_form(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, bits: Tensor | None, *rest: Any
) -> Form:
    *_, is_causal, _, _, query_ends, _, _ = rest
    return attention_form(query, value, attn_mask, is_causal, query_ends is not None, bits is not None)


def _attention(
    numbers: _Numbers,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    values: int,
    kind: str,
    is_causal: bool,
    is_packed: bool,
    has_bits: bool,
) -> tuple[Any, ...]:
    query, *rest = _attention_bits(numbers, device, dtype, is_packed, width, is_causal)
    examples, _, queries, _ = query.shape
    keys = 192 if is_packed else 96
    key, value = numbers(examples, 2, keys, width), numbers(examples, 2, keys, values)
    attn_mask = None if kind == "none" else numbers(examples, 4, queries, keys)
    attn_mask = attn_mask > -1 if attn_mask is not None and kind == "bool" else attn_mask
    bits = numbers.portable("attention_bits")(query, *rest) if has_bits else None
    return query, key, value, attn_mask, bits, *rest, 1 / math.sqrt(width)


def _attention_backward(numbers: _Numbers, device: torch.device, dtype: torch.dtype, *like: Any) -> tuple[Any, ...]:
    inputs = _attention(numbers, device, dtype, *like)
    output, logs = numbers.portable("attention")(*inputs)
    return numbers(*output.shape), output, logs, *inputs


def _attention_bits_form(query: Tensor, *rest: Any) -> Form:
    return (rest[-2] is not None,)


def _attention_bits(
    numbers: _Numbers,
    device: torch.device,
    _: torch.dtype,
    is_packed: bool,
    width: int = 16,
    is_causal: bool = False,
) -> tuple[Any, ...]:
    ends = [torch.tensor(each, dtype=torch.int32, device=device) for each in ((0, 40, 64), (0, 96, 192))]
    query = numbers(1, 4, 64, width) if is_packed else numbers(2, 4, 40, width)
    return query, *_address(), None, is_causal, 40, 96, *(ends if is_packed else (None, None))


_FORMS: dict[str, Callable[..., Form]] = {
    "dropout": _dropout_form,
    "keep_mask": lambda key, stream, _, place, *__: _field_form(key, stream, place),
    "keep_bits": lambda *_: (),
    "integers": _field_form,
    "uniform": _field_form,
    "dropout_add": _dropout_add_form,
    "activation_dropout": _activation_form,
    "activation_dropout_backward": lambda _, *inputs: _activation_form(*inputs),
    "dropout_add_norm": _norm_form,
    "dropout_add_norm_backward": _norm_backward_form,
    "attention": _attention_form,
    "attention_backward": lambda _grad, _output, _logs, *inputs: _attention_form(*inputs),
    "attention_bits": _attention_bits_form,
}
_EXAMPLES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "dropout": _dropout,
    "keep_mask": _mask,
    "keep_bits": _bits,
    "integers": _integers,
    "uniform": _uniform,
    "dropout_add": _dropout_add,
    "activation_dropout": _activation_dropout,
    "activation_dropout_backward": _activation_dropout_backward,
    "dropout_add_norm": _norm,
    "dropout_add_norm_backward": _norm_backward,
    "attention": _attention,
    "attention_backward": _attention_backward,
    "attention_bits": _attention_bits,
}
