"""The short way of a plain call: eager code, one key, a contiguous CPU tensor, compiled kernels.

Small layers are all overhead, and large ones drive the interpreter's own memory out of the caches. So this way has no
operator, no tensors for its address, and a layout only where draws are shared, which is remembered. It gives the same
masks as the long way in `dropkit.functional.dropout`, which serves whatever is not plain.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from dropkit.functional.address import draw_key, signed
from dropkit.functional.affine import apply_affine
from dropkit.functional.autograd import Constants, apply_dropout
from dropkit.kernels.native.division import remembered
from dropkit.kernels.native.operations import (
    affine_plain,
    apply_bits,
    dropout_plain,
    dropout_shared,
    knows,
    serving,
    spreads,
)
from dropkit.random.layout import Layout, check_addressable, layout

__all__ = [
    "drop",
    "drop_shared",
    "is_one_key",
    "is_plain",
    "is_plain_gradient",
    "is_plain_in_any_order",
    "move",
    "one_key",
    "plain_threshold",
    "shared_place",
]

_compiling = torch.compiler.is_compiling
_is_special = torch._C._dispatch_isTensorSubclassLike  # wrapped, sparse or of a subclass, or a dispatch mode is on
_transforming = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_records_gradients = torch.is_grad_enabled
_traced = torch._C._get_tracing_state


def is_plain(input: Tensor) -> bool:
    """Tell whether a tensor can take the short way here and now."""
    return is_plain_in_any_order(input) and input.is_contiguous()


def is_plain_in_any_order(input: Tensor) -> bool:
    """Tell whether a tensor can take it once its elements lie in order."""
    return (
        not _compiling()
        and (type(input) is Tensor or type(input) is Parameter)
        and knows(input)
        and not (_transforming() or _dispatch_modes() or _traced() is not None)
        and forward_ad._current_level < 0
    )


def is_one_key(input: Tensor, p: object, training: bool, generator: object, key: object, stream: object) -> bool:
    """Tell whether the kernels serve a call at once: a plain tensor, one key; what is wrong is left to later checks."""
    known = key is None or (type(key) is int and 0 <= key < 2**64)
    rate = type(p) is float and 0.0 < p <= 1.0
    options = training is True and generator is None and type(stream) is int and stream == 0
    return known and rate and options and is_plain(input)


def one_key(where: str, input: Tensor, p: Any, key: Any) -> tuple[int, int]:
    """Return the key of such a call, drawn if it has none, and the threshold of its rate."""
    drawn = int(draw_key(where, None, input)) % 2**64 if key is None else key
    return drawn, plain_threshold(p)


def plain_threshold(p: float) -> int:
    """Return the threshold of a rate that is a float in ``[0, 1]``."""
    return math.floor(p * 2.0**32 + 0.5)


def is_plain_gradient(grad: Tensor) -> bool:
    """Tell whether the gradient of a result of the short way can take it too, and is not to be differentiated again.

    Autograd has made sure that it has the result's shape, type and device, so `is_plain` would ask too much, which
    takes several microseconds where the backward pass comes upon cold caches.
    """
    return not (
        _records_gradients()
        or _compiling()
        or type(grad) is not Tensor
        or _is_special(grad)
        or not grad.is_contiguous()
        or grad.is_neg()
        or grad._is_zerotensor()
        or forward_ad._current_level >= 0
        or _traced() is not None
    )


def drop(input: Tensor, key: int | None, threshold: int) -> Tensor:
    """Apply dropout to a plain tensor.

    Args:
        input: A tensor of which `is_plain` holds.
        key: The key in ``[0, 2**64)``, or None to draw one.
        threshold: Of the rate, in ``(0, 2**32]``.
    """
    if key is None:
        key = int(draw_key("dropout", None, input))
    if input.requires_grad and _records_gradients():
        return _apply(input, Constants(key, threshold))
    return dropout_plain(input, key, threshold)


# Where the mask is kept for the backward pass, a bit an element: where that is faster than to draw it again, as
# benchmarks/kept_bits.py measures. Below these sizes it spares too little to matter; above, caches hold no such tensor,
# and to keep nothing is worth more. The faster a kernel draws masks, the narrower is the widest type, in bytes, for
# which bits pay; that of NEON is taken from AVX2, whose vectors are wider, and was not measured.
_BITS_SPARE_TIME = range(2**16, 2**20 + 1)
_WIDEST = {b"avx512": 2, b"avx2": 4, b"neon": 4, b"scalar": 8}
_widest_found: list[int] = []  # by `_widest`; the compiler would look behind `functools.cache`, and warn


def _widest() -> int:
    if not _widest_found:
        _widest_found.append(_WIDEST[serving().kernel()])
    return _widest_found[0]


def _keeps_bits(input: Tensor) -> bool:
    return input.numel() in _BITS_SPARE_TIME and input.element_size() <= _widest() and input.shape[-1] % 64 == 0


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, constants: Constants) -> Tensor:
        (key, threshold), has_bits = constants.values, _keeps_bits(input)
        ctx.address = key, threshold, has_bits
        if not has_bits:
            return dropout_plain(input, key, threshold)
        words = torch.empty(input.numel() // 64, dtype=torch.int64)
        ctx.save_for_backward(words)
        return dropout_plain(input, key, threshold, words)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        key, threshold, has_bits = ctx.address
        if not is_plain_gradient(grad):
            return _long_way(grad, key, threshold, layout("dropout", grad.shape)), None
        if has_bits:
            (words,) = ctx.saved_tensors
            return apply_bits(grad, words, threshold), None
        return dropout_plain(grad, key, threshold), None


# Without what `Function.apply` does for transforms and for arguments by name, half the time of a small layer.
_apply = super(torch.autograd.Function, _Plain).apply


def _long_way(grad: Tensor, key: int, threshold: int, place: Layout) -> Tensor:
    """Gate any gradient, differentiably."""
    return apply_dropout(grad, *_tensors(key, threshold), *place, scaled=True)


def _tensors(key: int, threshold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an address as operators take it, at stream 0."""
    return torch.tensor(signed(key), device="cpu"), torch.tensor(0, device="cpu"), torch.tensor(threshold, device="cpu")


def shared_place(where: str, input: Tensor, shared: tuple[int, ...]) -> Layout | None:
    """Return the places of a mask whose draws are shared along axes, or None where that is left to the long way.

    Args:
        where: The function on whose behalf axes are checked.
        input: A tensor of which `is_plain` holds.
        shared: The axes.
    """
    if not all(type(axis) is int for axis in shared):
        return None
    place = _place(where, input.shape, shared)
    return place if spreads(input, place.shape) else None


@remembered
def _place(where: str, shape: torch.Size, shared: tuple[int, ...]) -> Layout:
    place = layout(where, shape, shared)
    check_addressable(where, "input", place.shape)
    return place


def drop_shared(input: Tensor, key: int, threshold: int, place: Layout) -> Tensor:
    """Apply dropout to a plain tensor where draws are shared.

    Args:
        input: A tensor of which `is_plain` holds.
        key: The key in ``[0, 2**64)``.
        threshold: Of the rate, in ``(0, 2**32]``.
        place: What `shared_place` has found.
    """
    if input.requires_grad and _records_gradients():
        return _apply_shared(input, Constants(key, threshold, place))
    return dropout_shared(input, key, threshold, place.shape)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, constants: Constants) -> Tensor:
        ctx.address = key, threshold, place = constants.values
        return dropout_shared(input, key, threshold, place.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        key, threshold, place = ctx.address
        if not is_plain_gradient(grad):
            return _long_way(grad, key, threshold, place), None
        return dropout_shared(grad, key, threshold, place.shape), None


_apply_shared = super(torch.autograd.Function, _Shared).apply


def move(input: Tensor, key: int, threshold: int, place: Layout, numbers: tuple[float, float, float]) -> Tensor:
    """Map what is kept of a plain tensor, and put a constant in the place of the rest.

    Args:
        input: A tensor of which `is_plain` holds.
        key: The key in ``[0, 2**64)``.
        threshold: Of the rate, in ``(0, 2**32]``.
        place: What `shared_place` has found.
        numbers: What is kept is scaled and shifted by, and what is dropped becomes.
    """
    if input.requires_grad and _records_gradients():
        return _apply_moved(input, Constants(key, threshold, place, numbers))
    return affine_plain(input, key, threshold, place.shape, numbers)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, constants: Constants) -> Tensor:
        key, threshold, place, numbers = constants.values
        ctx.address, ctx.scale = (key, threshold, place), numbers[0]
        return affine_plain(input, key, threshold, place.shape, numbers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        key, threshold, place = ctx.address
        if is_plain_gradient(grad):
            return affine_plain(grad, key, threshold, place.shape, (ctx.scale, 0.0, 0.0)), None
        zero, scale = (torch.tensor(value, dtype=torch.float64, device="cpu") for value in (0.0, ctx.scale))
        return apply_affine(grad, *_tensors(key, threshold), scale, zero, zero, *place), None


_apply_moved = super(torch.autograd.Function, _Moved).apply
