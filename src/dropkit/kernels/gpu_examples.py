"""Small examples by which a GPU's kernels are compared with portable operations before they serve.

What an operator launches depends on more than the types of its tensors: on widths, on what is given and what is not.
That is the form of a call, and its example has the same. Under the key two draws are tied with the rate; one of them is
kept and one dropped.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropkit.kernels.native.division import divide
from dropkit.random.layout import Layout, layout

__all__ = ["TYPES", "Address", "Form", "attention_form", "example", "form", "is_near"]

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_KEY, _RATE = 0x3C6E_F374_6191_8DB3, 1_288_490_189  # the threshold of 0.3
_TIED = 6, 1056  # the shape in which those draws are
_ROWS = {"of whole draws": 1056, "of parts": 1060, "narrow": 3}  # columns
_LEADING: dict[str, tuple[int, ...]] = {"one": (), "several": (3,), "of places": (2, 2)}  # axes, by lines

Form = tuple[Any, ...]
_Portable = Callable[[str], Callable[..., Any]]


class Address(NamedTuple):
    """How kernels are told where a mask lies.

    Args:
        in_memory: Which of key, stream and rate they read from a GPU's memory, not given as numbers.
        lines: What they divide it into, as `dropkit.kernels.triton_address` does: ``"one"``; ``"several"``, which begin
            equally far apart; or lines ``"of places"``, of each of which they read where it begins.
    """

    in_memory: tuple[bool, bool, bool] = (False, False, False)
    lines: str = "one"


def form(name: str, arguments: tuple[Any, ...]) -> Form:
    """Return what tells apart the kernels that calls of an operator launch, beside types of their first tensors.

    Args:
        name: The operator.
        arguments: Those of a call, with layouts as its kernels take them.
    """
    *own, address = _FORMS[name](*arguments)
    return (*own, address) if address != Address() else tuple(own)


def example(name: str, device: torch.device, dtype: torch.dtype, like: Form, portable: _Portable) -> tuple[Any, ...]:
    """Return arguments of a small call.

    Args:
        name: The operator.
        device: Where tensors lie.
        dtype: Of the first of them.
        like: The form of the call.
        portable: Returns what does an operator's work by PyTorch's operations; a backward pass needs a forward pass.
    """
    has_address = bool(like) and isinstance(like[-1], Address)
    address, own = (like[-1], like[:-1]) if has_address else (Address(), like)
    return _EXAMPLES[name](_Example(device, dtype, address, portable), *own)


class _Example:
    """What an example is made of: random numbers, the same in every example, and an address of a form."""

    def __init__(self, device: torch.device, dtype: torch.dtype, like: Address, portable: _Portable) -> None:
        self.device, self.dtype, self.portable = device, dtype, portable
        self._like = like
        self._generator = torch.Generator(device="cpu").manual_seed(0)

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return drawn.to(self.device, dtype or self.dtype)

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes before those of one line."""
        return _LEADING[self._like.lines]

    def address(self, leading: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return key, stream and rate: one, or one each on the leading axes."""
        leading = self.leading if leading is None else leading
        has_slices = any(self._like.in_memory[:2])
        found = []
        for value, step, is_read, is_of_slice in zip(
            (_KEY, 7, _RATE), (1, 1, 2**24), self._like.in_memory, (has_slices, has_slices, False), strict=True
        ):
            shape = leading if is_read else (1,) * len(leading) * is_of_slice
            several = value + step * torch.arange(math.prod(shape), device="cpu").reshape(shape)
            found.append(several.to(self.device) if is_read else several)
        return found[0], found[1], found[2]

    def place(self, *line: int) -> Layout:
        """Return where the mask of so long lines lies."""
        shape = *self.leading, *line
        if any(self._like.in_memory[:2]):
            return layout("example", shape, slices=len(self.leading))
        if any(self._like.in_memory):
            return layout("example", shape)
        whole = *self.leading, *(length + 8 * bool(self.leading) for length in line)  # a part, whose rows are apart
        return layout("example", shape, full_shape=whole)


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


def _address(key: Tensor, stream: Tensor, threshold: Tensor | None, place: Layout | None = None) -> Address:
    """Return the form of an address; without a place, of a mask on a whole tensor."""
    values = [value for value in (key, stream, threshold) if value is not None]
    in_memory = [value.is_cuda or value.numel() > 1 for value in values] + [False] * (3 - len(values))
    axes = max(value.dim() for value in values)
    if place is not None:
        division = divide(key, stream, torch.tensor(0, device="cpu") if threshold is None else threshold, place)
        axes = 0 if division.slices is None else len(division.places) + 1
    return Address((in_memory[0], in_memory[1], in_memory[2]), ("one", "several", "of places")[min(axes, 2)])


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
        return is_scaled, rows, _address(key, stream, threshold, place)
    axes = [axis for axis in range(input.dim()) if input.shape[axis] > 1]
    shared = [axis >= skipped and place.shape[axis - skipped] == 1 for axis in axes]
    strides = torch.empty_like(input, device="meta").stride()  # of the result
    order = sorted(range(len(axes)), key=lambda i: -strides[axes[i]])
    # The mask is another operator's; several rates are left to portable operations.
    return is_scaled, "spread", tuple(shared), tuple(order), Address((False, False, threshold.is_cuda))


def _dropout(make: _Example, is_scaled: bool, rows: str, *like: Any) -> tuple[Any, ...]:
    if rows == "spread":
        shared, order = like
        lengths = [*[3] * (len(shared) - 1), 9][: len(shared)]
        in_memory = [lengths[axis] for axis in order]
        x = make.numbers(*in_memory, 2)[..., 0].permute(sorted(range(len(order)), key=order.__getitem__))
        place = layout("example", lengths, tuple(axis for axis, is_shared in enumerate(shared) if is_shared))
    else:
        line = _TIED[0], _ROWS[rows]
        x, place = make.numbers(*make.leading, *line), make.place(*line)
    return x, *make.address(), place, is_scaled


def _mask_form(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, *_: Any) -> Form:
    return *_field_form(key, stream, place)[:1], _address(key, stream, threshold, place)


def _mask(make: _Example, rows: str) -> tuple[Any, ...]:
    return *make.address(), make.place(_TIED[0], _ROWS[rows]), make.device


def _bits_form(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, *_: Any) -> Form:
    return (_address(key, stream, threshold, place),)


def _bits(make: _Example) -> tuple[Any, ...]:
    return *make.address(), make.place(*_TIED), make.device  # whole words: what follows a mask in its last is no matter


def _field_form(key: Tensor, stream: Tensor, place: Layout, *_: Any) -> Form:
    rows = _rows(place.shape[-1] if place.shape else 1, place.first_column)
    return rows, _address(key, stream, None, place)


def _integers(make: _Example, rows: str) -> tuple[Any, ...]:
    return *make.address()[:2], make.place(3, _ROWS[rows]), make.device


def _uniform(make: _Example, rows: str) -> tuple[Any, ...]:
    return *_integers(make, rows), make.dtype


def _dropout_add_form(input: Tensor, _: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Form:
    return _rows(input.shape[-1] if input.dim() else 1), _address(key, stream, threshold)


def _dropout_add(make: _Example, rows: str) -> tuple[Any, ...]:
    shape = *make.leading, 3, _ROWS[rows]
    return make.numbers(*shape), make.numbers(*shape), *make.address()


def _activation_form(
    input: Tensor, bias: Tensor | None, activation: str, key: Tensor, stream: Tensor, threshold: Tensor
) -> Form:
    rows = _rows(input.shape[-1] if input.dim() else 1)
    return rows, bias is not None, activation, _address(key, stream, threshold)


def _activation_dropout(make: _Example, rows: str, has_bias: bool, activation: str) -> tuple[Any, ...]:
    columns = _ROWS[rows]
    bias = make.numbers(columns) if has_bias else None
    return make.numbers(*make.leading, 3, columns), bias, activation, *make.address()


def _activation_dropout_backward(make: _Example, *like: Any) -> tuple[Any, ...]:
    x, bias, activation, *address = _activation_dropout(make, *like)
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
    _: float,
    dtype: torch.dtype,
    key: Tensor,
    stream: Tensor,
    threshold: Tensor,
) -> Form:
    types = residual.dtype, *_types(weight, bias), dtype
    return int(input.shape[-1]), *types, is_centred, _address(key, stream, threshold)


def _types(*tensors: Tensor | None) -> list[torch.dtype | None]:
    return [None if tensor is None else tensor.dtype for tensor in tensors]


def _norm(
    make: _Example,
    columns: int,
    of_residual: torch.dtype,
    of_weight: torch.dtype | None,
    of_bias: torch.dtype | None,
    dtype: torch.dtype,
    is_centred: bool,
) -> tuple[Any, ...]:
    shape = *make.leading, 3, columns
    weight, bias = (make.numbers(columns, dtype=each) if each else None for each in (of_weight, of_bias))
    x, residual = make.numbers(*shape), make.numbers(*shape, dtype=of_residual)
    return x, residual, weight, bias, is_centred, 1e-5, dtype, *make.address()


def _norm_backward_form(_: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor | None, *rest: Any) -> Form:
    _, _, is_centred, needed, dtype, *address = rest
    types = *_types(grad_total, total, weight), dtype
    return int(total.shape[-1]), *types, is_centred, tuple(needed), _address(*address)


def _norm_backward(
    make: _Example,
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
    widths = _width(query.shape[-1]), _width(value.shape[-1])
    return *widths, None if attn_mask is None else attn_mask.dtype, is_causal, is_packed, has_bits


def _width(columns: int) -> int:
    """Return the width of the tile that columns are in."""
    return next(width for width in (16, 32, 64, 128, 256) if columns <= width)


def _attention_form(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, bits: Tensor | None, *rest: Any
) -> Form:
    *mask, is_causal, _, _, query_ends, _, _ = rest
    own = attention_form(query, value, attn_mask, is_causal, query_ends is not None, bits is not None)
    return *own, _attention_address(*mask)


def _attention_address(key: Tensor, stream: Tensor, threshold: Tensor, begins: Tensor | None) -> Address:
    found = _address(key, stream, threshold)
    return found._replace(lines="one" if begins is None else "of places")


def _attention(
    make: _Example,
    width: int,
    values: int,
    of_mask: torch.dtype | None,
    is_causal: bool,
    is_packed: bool,
    has_bits: bool,
) -> tuple[Any, ...]:
    query, *rest = _attention_bits(make, is_packed, width, is_causal)
    examples, _, queries, _ = query.shape
    keys = 192 if is_packed else 96
    key, value = make.numbers(examples, 2, keys, width), make.numbers(examples, 2, keys, values)
    attn_mask = None
    if of_mask is not None:
        drawn = make.numbers(examples, 4, queries, keys)
        attn_mask = drawn > -1 if of_mask == torch.bool else drawn.to(of_mask)
    bits = make.portable("attention_bits")(query, *rest) if has_bits else None
    return query, key, value, attn_mask, bits, *rest, 1 / math.sqrt(width)


def _attention_backward(make: _Example, *like: Any) -> tuple[Any, ...]:
    inputs = _attention(make, *like)
    output, logs = make.portable("attention")(*inputs)
    return make.numbers(*output.shape), output, logs, *inputs


def _attention_bits_form(_: Tensor, *rest: Any) -> Form:
    return rest[-2] is not None, _attention_address(*rest[:4])


def _attention_bits(make: _Example, is_packed: bool, width: int = 16, is_causal: bool = False) -> tuple[Any, ...]:
    ends = [torch.tensor(each, dtype=torch.int32, device=make.device) for each in ((0, 40, 64), (0, 96, 192))]
    query = make.numbers(1, 4, 64, width) if is_packed else make.numbers(2, 4, 40, width)
    begins = torch.tensor([1000, 3], device=make.device) if make.leading else None
    address = *make.address((2,)), begins
    return query, *address, is_causal, 40, 96, *(ends if is_packed else (None, None))


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
