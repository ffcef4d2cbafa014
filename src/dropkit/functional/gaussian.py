"""Gaussian dropout: multiplication by noise of mean 1 and of the variance that dropout has."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY
from dropkit.functional.address import Names, check_source, or_several
from dropkit.functional.autograd import apply_linear, traced
from dropkit.functional.examples import numbers_of
from dropkit.functional.inputs import check_dense, check_input, check_noise, is_identity
from dropkit.functional.noise import noise_at
from dropkit.functional.overrides import overridable
from dropkit.kernels import fields, operators
from dropkit.kernels import gaussian as kernels
from dropkit.kernels.portable import around_one, computing_type, multiply
from dropkit.random.layout import Layout

__all__ = ["RATE", "gaussian_dropout"]

_WHERE = "gaussian_dropout"
RATE = replace(PROBABILITY, open_high=True, remedy="The variance of the noise, p / (1 - p), has no limit at 1.")
_NAMES = Names(rate=or_several(RATE, "rate", torch.float64))


@overridable
def gaussian_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    noise: Tensor | None = None,
    return_noise: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Multiply each element by normal noise of mean 1 and variance ``p / (1 - p)``, in training.

    Mean and variance are those of dropout at the same rate, rounded to a multiple of ``2**-32``, but nothing is
    dropped. The normals are those of `dropkit.random.normal` at the key. They are drawn again for the backward
    pass, for which only the key is kept; all is computed in float32 or wider, and rounded once.

    Args:
        input: Tensor of any shape, of a floating or complex type (a complex number is one unit).
        p: The rate, in ``[0, 1)``; or a float64 tensor, as for `dropout`. Default: 0.5.
        training: Whether to multiply. If False the input itself is returned. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        noise: What to multiply by instead of drawing it, whatever `p` is: a real tensor with the input's number of
            axes, and length 1 on axes that share; differentiable too. Default: drawn.
        return_noise: Whether to return ``(output, noise)``; the noise is all 1 in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format: the input itself in evaluation and for ``p=0``, unless
        noise is given. With `return_noise`, a pair: the noise is of the type that is computed in, or as it was given.

    Raises:
        ArgumentError: If a value is out of range, or as `dropout` does.
        ArgumentTypeError: If the input is no dense tensor of a floating or complex type, or as `dropout` does.
        UnsupportedError: As `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> y, noise = dropkit.functional.gaussian_dropout(x, 0.2, key=7, return_noise=True)
        >>> bool(torch.equal(y, x * noise))
        True

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", section 10, whose p is the probability of keeping.
    """
    check_input(_WHERE, input, training=training, return_noise=return_noise)
    check_dense(_WHERE, input)
    threshold, streams, keys = check_source(_WHERE, input, p, key, generator, stream, _NAMES)
    check_noise(_WHERE, noise, input, {"key": key, "generator": generator, "stream": stream})
    wide = computing_type(input)
    if is_identity(p, training, noise):
        shape = input.shape if noise is None else noise.shape
        return (input, torch.ones(shape, dtype=wide, device=input.device)) if return_noise else input
    if noise is not None:
        output = multiply(input, noise.to(wide), in_place=not traced())
        return (output, noise) if return_noise else output
    source = noise_at(_WHERE, input, keys, streams, generator, numbers=numbers_of(key))
    deviation, found = _deviation(threshold), source.at_once(input)
    drawn = around_one(source.normal(input.shape, wide), deviation) if return_noise or found is None else input
    if found is None:
        output = multiply(input, drawn, in_place=not traced())
    else:
        output = _apply(found[0], source.key, source.stream, source.rates(deviation), *found[1]).reshape(input.shape)
    return (output, drawn) if return_noise else output


def _deviation(threshold: Tensor) -> Tensor:
    """Return the standard deviation of the noise at a realised rate, in float64; finite for rates that round to 1."""
    return torch.sqrt(threshold.to(torch.float64) / (2**32 - threshold).clamp(min=1).to(torch.float64))


def _apply(input: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, *place: Any) -> Tensor:
    """Multiply by noise at an address, differentiably."""
    return apply_linear(_Gaussian, _ForwardModeGaussian, _by_multiplying, input, key, stream, deviation, *place)


def _by_multiplying(input: Tensor, key: Tensor, stream: Tensor, deviation: Tensor, *place: Any) -> Tensor:
    normals = fields.normal(key, stream, Layout(*place), input.device, computing_type(input))
    return multiply(input, around_one(normals, deviation), in_place=False)


class _Gaussian(torch.autograd.Function):
    """Linear in its input, so its derivative is itself, at the same address."""

    @staticmethod
    def forward(
        input: Tensor,
        key: Tensor,
        stream: Tensor,
        deviation: Tensor,
        shape: tuple[int, ...],
        row_strides: tuple[int, ...],
        first_row: int,
        first_column: int,
    ) -> Tensor:
        return kernels.gaussian_dropout(input, key, stream, deviation, shape, row_strides, first_row, first_column)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:4])
        ctx.place = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _apply(grad, *ctx.saved_tensors, *ctx.place), *(None,) * 7


class _ForwardModeGaussian(_Gaussian):
    """The same with a forward-mode derivative and a batching rule."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Gaussian.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:4])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: object) -> Tensor:
        return _apply(tangent, *ctx.saved_tensors, *ctx.place)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _apply(*operators.batch_first(info, in_dims, *arguments)), 0
