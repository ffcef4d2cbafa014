"""Small examples by which a GPU's kernels are compared with portable operations before they serve.

Rows are no power of two long, so that tiles end inside of them, but whole words of bits: what follows a mask in its
last word is no matter. Under the key two of the draws are tied with the rate; one of them is kept and one dropped.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.random.layout import layout

__all__ = ["TYPES", "example", "is_near"]

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_WIDE = 6, 1056
_SMALL = 3, 1032
_KEY, _RATE = 0x3C6E_F374_6191_8DB3, 1_288_490_189  # the threshold of 0.3

_Random = Callable[..., Tensor]


def example(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return arguments of an operator, with layouts as its kernels take them.

    Args:
        name: The operator.
        device: Where tensors lie.
        dtype: Of what it is given.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)

    return _EXAMPLES[name](numbers, device, dtype)


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
    return torch.allclose(one, other, tolerance, tolerance * float(other.abs().mean()))


def _address() -> tuple[Tensor, Tensor, Tensor]:
    key, stream, threshold = (torch.tensor(value, device="cpu") for value in (_KEY, 7, _RATE))
    return key, stream, threshold


def _dropout(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    return numbers(*_WIDE), *_address(), layout("example", _WIDE), True


def _mask(_: _Random, device: torch.device, *__: Any) -> tuple[Any, ...]:
    return *_address(), layout("example", _WIDE), device


def _integers(_: _Random, device: torch.device, *__: Any) -> tuple[Any, ...]:
    return *_address()[:2], layout("example", _SMALL), device


def _uniform(numbers: _Random, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    return *_integers(numbers, device), dtype


def _dropout_add(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    return numbers(*_SMALL), numbers(*_SMALL), *_address()


def _activation_dropout(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    return numbers(*_SMALL), numbers(_SMALL[-1]), "gelu", *_address()


def _activation_dropout_backward(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    return numbers(*_SMALL), *_activation_dropout(numbers)


def _norm(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    x, residual, weight, bias = numbers(*_SMALL), numbers(*_SMALL), numbers(_SMALL[-1]), numbers(_SMALL[-1])
    return x, residual, weight, bias, True, 1e-5, x.dtype, *_address()


def _norm_backward(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    total, weight = numbers(*_SMALL), numbers(_SMALL[-1])
    values = total.to(torch.promote_types(total.dtype, torch.float32))
    variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
    saved = numbers(*_SMALL), total, weight, mean, torch.rsqrt(variance + 1e-5), True
    return numbers(*_SMALL), *saved, [True, True], total.dtype, *_address()


def _of_attention(numbers: _Random) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    tensors = numbers(2, 4, 40, 64), numbers(2, 2, 96, 64), numbers(2, 2, 96, 64)
    return tensors, (*_address(), None, True, 40, 96, None, None)


def _attention(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    tensors, rest = _of_attention(numbers)
    return *tensors, None, None, *rest, 0.125


def _attention_backward(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    from dropkit.kernels.attention_portable import attention  # which imports operators, and they this

    grad, inputs = numbers(2, 4, 40, 64), _attention(numbers)
    return grad, *attention(*inputs), *inputs


def _attention_bits(numbers: _Random, *_: Any) -> tuple[Any, ...]:
    tensors, rest = _of_attention(numbers)
    return tensors[0], *rest[:4], False, *rest[5:]


_EXAMPLES: dict[str, Callable[[_Random, torch.device, torch.dtype], tuple[Any, ...]]] = {
    "dropout": _dropout,
    "keep_mask": _mask,
    "keep_bits": _mask,
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
