"""Small examples by which a GPU's kernels are compared with portable operations before they serve.

What an operator launches depends on more than the types of its tensors: on widths, on what is given and what is not.
That is the form of a call, and its example has the same. Under the key two draws are tied with the rate; one of them is
kept and one dropped.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import gpu_attention as attention
from dropkit.kernels.gpu_address import Address, Example, Form, Portable, address_of, count_of
from dropkit.random.layout import Layout, layout

__all__ = ["TYPES", "described", "example", "form", "is_near"]

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TIED = 6, 1056  # the shape in which those draws are
_ROWS = {"of whole draws": 1056, "of parts": 1060, "narrow": 3}  # columns

_LEAST = 0.01  # size of what is wanted: examples' numbers are about 1, and what is 0 but for rounding is far below


def form(name: str, arguments: tuple[Any, ...]) -> Form:
    """Return what tells apart the kernels that calls of an operator launch, beside types of their first tensors.

    Args:
        name: The operator.
        arguments: Those of a call, with layouts as its kernels take them.
    """
    *own, address = _FORMS[name](*arguments)
    return (*own, address) if address != Address() else tuple(own)


def example(name: str, device: torch.device, dtype: torch.dtype, like: Form, portable: Portable) -> tuple[Any, ...]:
    """Return arguments of a small call.

    Args:
        name: The operator.
        device: Where tensors lie.
        dtype: Of the first of them.
        like: The form of the call.
        portable: Returns what does an operator's work by PyTorch's operations; a backward pass needs a forward pass.
    """
    own, address = _parts(like)
    return _EXAMPLES[name](Example(device, dtype, address, portable), *own)


def described(name: str, like: Form) -> str:
    """Return the form of a call in words, those of the function that makes its example."""
    own, address = _parts(like)
    names = [*inspect.signature(_EXAMPLES[name]).parameters][1:]
    said = [_said(*pair) for pair in zip(names, own, strict=False)]
    defaults = Address()._asdict()
    return ", ".join(said + [f"{name} {value}" for name, value in address._asdict().items() if value != defaults[name]])


def _said(name: str, value: Any) -> str:
    kind, _, rest = name.partition("_")
    what = (rest if kind in ("is", "has", "of") else name).replace("_", " ")
    if isinstance(value, tuple):
        value = f"({', '.join(('no', 'yes')[each] if isinstance(each, bool) else str(each) for each in value)})"
    if value is None or value is False:
        return f"{'not' if kind == 'is' else 'no'} {what}"
    return what if value is True else f"{what} {value}".replace("torch.", "")


def _parts(like: Form) -> tuple[Form, Address]:
    has_address = bool(like) and isinstance(like[-1], Address)
    return (like[:-1], like[-1]) if has_address else (like, Address())


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
    size = max(float(other.abs().mean()), _LEAST) if other.numel() else 0.0
    return torch.allclose(one, other, tolerance, tolerance * size)


def _on_whole(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Address:
    """Return the form of the address of a mask on a whole tensor."""
    slices = max(key.dim(), stream.dim())
    if not slices and not threshold.dim():  # one line, as is most common
        return Address(count_of(key), count_of(stream), count_of(threshold))
    return address_of(key, stream, threshold, layout("dropout", input.shape, slices=slices))


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
        return is_scaled, rows, address_of(key, stream, threshold, place)
    axes = [axis for axis in range(input.dim()) if input.shape[axis] > 1]
    shared = [axis >= skipped and place.shape[axis - skipped] == 1 for axis in axes]
    strides = torch.empty_like(input, device="meta").stride()  # of the result
    order = sorted(range(len(axes)), key=lambda i: -strides[axes[i]])
    # The mask is another operator's; several rates are left to portable operations.
    return is_scaled, "spread", tuple(shared), tuple(order), Address(rate=count_of(threshold))


def _dropout(
    make: Example, is_scaled: bool, rows: str, shared: tuple[bool, ...] = (), order: tuple[int, ...] = ()
) -> tuple[Any, ...]:
    if rows == "spread":
        lengths = [*[3] * (len(shared) - 1), 9][: len(shared)]
        in_memory = [lengths[axis] for axis in order]
        x = make.numbers(*in_memory, 2)[..., 0].permute(sorted(range(len(order)), key=order.__getitem__))
        place = layout("example", lengths, tuple(axis for axis, is_shared in enumerate(shared) if is_shared))
    else:
        line = _TIED[0], _ROWS[rows]
        x, place = make.numbers(*make.leading, *line), make.place(*line)
    return x, *make.address(), place, is_scaled


def _mask_form(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, *_: Any) -> Form:
    return *_field_form(key, stream, place)[:1], address_of(key, stream, threshold, place)


def _mask(make: Example, rows: str) -> tuple[Any, ...]:
    return *make.address(), make.place(_TIED[0], _ROWS[rows]), make.device


def _bits_form(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, *_: Any) -> Form:
    return (address_of(key, stream, threshold, place),)


def _bits(make: Example) -> tuple[Any, ...]:
    return *make.address(), make.place(*_TIED), make.device  # whole words: what follows a mask in its last is no matter


def _field_form(key: Tensor, stream: Tensor, place: Layout, *_: Any) -> Form:
    rows = _rows(place.shape[-1] if place.shape else 1, place.first_column)
    return rows, address_of(key, stream, None, place)


def _integers(make: Example, rows: str) -> tuple[Any, ...]:
    return *make.address()[:2], make.place(3, _ROWS[rows]), make.device


def _uniform(make: Example, rows: str) -> tuple[Any, ...]:
    return *_integers(make, rows), make.dtype


def _dropout_add_form(input: Tensor, _: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Form:
    return _rows(input.shape[-1] if input.dim() else 1), _on_whole(input, key, stream, threshold)


def _dropout_add(make: Example, rows: str) -> tuple[Any, ...]:
    shape = *make.leading, 3, _ROWS[rows]
    return make.numbers(*shape), make.numbers(*shape), *make.address()


def _activation_form(
    input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Form:
    rows = _rows(input.shape[-1] if input.dim() else 1)
    return rows, bias is not None, activation, _on_whole(input, key, stream, threshold)


def _activation_dropout(make: Example, rows: str, has_bias: bool, activation: str) -> tuple[Any, ...]:
    columns = _ROWS[rows]
    bias = make.numbers(columns) if has_bias else None
    return make.numbers(*make.leading, 3, columns), bias, activation, *make.address()


def _activation_dropout_backward(make: Example, rows: str, has_bias: bool, activation: str) -> tuple[Any, ...]:
    x, bias, _, *address = _activation_dropout(make, rows, has_bias, activation)
    if activation == "relu":  # of which the result is given
        result = make.portable("activation_dropout")(x, None, activation, *address)
        x = result if bias is None else result - bias  # 0, where an element is dropped, once the bias is added
    return make.numbers(*x.shape), x, bias, activation, *address


def _norm_form(
    input: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    is_centred: bool,
    eps: float,
    dtype: torch.dtype,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
) -> Form:
    types = residual.dtype, *_types(weight, bias), dtype
    return int(input.shape[-1]), *types, is_centred, eps, _on_whole(input, key, stream, threshold)


def _types(*tensors: Tensor | None) -> list[torch.dtype | None]:
    return [None if tensor is None else tensor.dtype for tensor in tensors]


def _norm(
    make: Example,
    columns: int,
    of_residual: torch.dtype,
    of_weight: torch.dtype | None,
    of_bias: torch.dtype | None,
    dtype: torch.dtype,
    is_centred: bool,
    eps: float,
) -> tuple[Any, ...]:
    shape = *make.leading, 3, columns
    weight, bias = (make.numbers(columns, dtype=each) if each else None for each in (of_weight, of_bias))
    x, residual = make.numbers(*shape), make.numbers(*shape, dtype=of_residual)
    return x, residual, weight, bias, is_centred, eps, dtype, *make.address()


def _norm_backward_form(_: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor | None, *rest: Any) -> Form:
    _, _, is_centred, needed, dtype, *address = rest
    types = *_types(grad_total, total, weight), dtype
    return int(total.shape[-1]), *types, is_centred, tuple(needed), _on_whole(total, *address)


def _norm_backward(
    make: Example,
    columns: int,
    of_grad_total: torch.dtype | None,
    of_total: torch.dtype,
    of_weight: torch.dtype | None,
    dtype: torch.dtype,
    is_centred: bool,
    needed: tuple[bool, bool],
) -> tuple[Any, ...]:
    shape = *make.leading, 3, columns
    grad, total = make.numbers(*shape), make.numbers(*shape, dtype=of_total)
    grad_total = make.numbers(*shape, dtype=of_grad_total) if of_grad_total else None
    weight = make.numbers(columns, dtype=of_weight) if of_weight else None
    key = stream = never = torch.tensor(0, device="cpu")
    forward = total, torch.zeros_like(total), None, None, is_centred, 1e-5, dtype, key, stream, never
    *_, mean, scale = make.portable("dropout_add_norm")(*forward)
    return grad, grad_total, total, weight, mean, scale, is_centred, list(needed), dtype, *make.address()


_FORMS: dict[str, Callable[..., Form]] = {
    "dropout": _dropout_form,
    "keep_mask": _mask_form,
    "keep_bits": _bits_form,
    "integers": _field_form,
    "uniform": _field_form,
    "dropout_add": _dropout_add_form,
    "activation_dropout": _activation_form,
    "activation_dropout_backward": lambda _, *inputs: _activation_form(*inputs),
    "dropout_add_norm": _norm_form,
    "dropout_add_norm_backward": _norm_backward_form,
    "attention": attention.form,
    "attention_backward": lambda _grad, _output, _logs, *inputs: attention.form(*inputs),
    "attention_bits": attention.form_of_bits,
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
    "attention": attention.forward,
    "attention_backward": attention.backward,
    "attention_bits": attention.of_bits,
}
