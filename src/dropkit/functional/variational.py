"""Gaussian noise whose variance is learned: on activations, on weights, and what its prior asks for it."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import sigmoid, softplus

from dropkit._checks import Choice, argument_error, argument_type_error
from dropkit.functional.address import Names, check_source
from dropkit.functional.inputs import autocast_dtype, check_input
from dropkit.functional.noise import Noise, find_noise
from dropkit.functional.overrides import overridable
from dropkit.kernels.portable import computing_type

__all__ = [
    "bounded",
    "check_real",
    "deviation_of",
    "local_reparameterization",
    "log_uniform_kl",
    "noise_in_training",
    "variational_dropout",
    "widened",
]

_APPROXIMATION = Choice(("sigmoid", "polynomial"))
_CONSTANT = 0.5 * (0.57721566490153286 + math.log(2.0))  # half of Euler's constant and ln 2: KL + 0.5 ln(alpha) at 0
_POLYNOMIAL = (1.16145124, -1.50204118, 0.58629921)
_SIGMOID = (0.63576, 1.87320, 1.48695)
_NAMES, _OUTPUT = Names(), Names(input="output")


def check_real(where: str, name: str, tensor: Any, **flags: object) -> None:
    """Raise unless a tensor is a dense one of real floating numbers, and every flag a bool."""
    check_input(where, tensor, name, **flags)
    if tensor.is_complex():
        raise argument_type_error(where, name, "of a real floating type", tensor.dtype)
    if tensor.is_nested:
        remedy = "Pad it to one length, or take its parts one by one."
        raise argument_type_error(where, name, "a dense tensor, not a nested one", tensor.layout, remedy)


def check_alike(where: str, name: str, tensor: Any, input: Tensor) -> None:
    """Raise unless a learned tensor is real and broadcasts to the input on the input's device."""
    check_real(where, name, tensor)
    lengths = zip(reversed(tensor.shape), reversed(input.shape), strict=False)
    if tensor.dim() > input.dim() or any(one != 1 and one != other for one, other in lengths):
        rule = f"of a shape that broadcasts to the input's {tuple(input.shape)}"
        raise argument_error(where, name, rule, tuple(tensor.shape))
    if tensor.device != input.device:
        raise argument_error(where, name, f"on the input's device {input.device}", tensor.device)


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider."""
    return tensor.to(computing_type(tensor))


def noise_in_training(
    where: str,
    input: Tensor,
    training: bool,
    key: int | Tensor | None,
    generator: torch.Generator | None,
    stream: int | Tensor,
    names: Names = _NAMES,
) -> Noise | None:
    """Return the noise of a call, or None in evaluation; what says where to draw it is checked in both."""
    if training:
        return find_noise(where, input, 0.0, key, generator, stream, names)[1]
    check_source(where, input, 0.0, key, generator, stream, names)
    return None


def deviation_of(variance: Tensor) -> Tensor:
    """Return the square root of a variance; where there is none, 0 without a gradient, for the root's is infinite."""
    certain = variance <= 0  # sums of squares may round to less than 0
    return torch.where(certain, 0.0, torch.where(certain, 1.0, variance).sqrt())


class _Bounded(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, high: float) -> Tensor:
        return value.clamp(max=high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, ctx.high = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return torch.where((value <= ctx.high) | (grad > 0), grad, 0.0), None


class _ForwardModeBounded(_Bounded):
    """The same with a forward-mode derivative, which has no way back: that of `clamp`."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Bounded.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (value,) = ctx.saved_tensors
        return torch.where(value <= ctx.high, tangent, 0.0)


def bounded(value: Tensor, high: float) -> Tensor:
    """Return the smaller of a parameter and a bound, with the gradient of projected gradient descent.

    Beyond the bound a gradient that leads back to it passes, where that of `clamp` would be 0 for ever after an
    optimiser's first step too far.
    """
    function = _Bounded if torch.compiler.is_compiling() else _ForwardModeBounded  # which the compiler refuses
    return function.apply(value, high)


@overridable
def log_uniform_kl(log_alpha: Tensor, approximation: str = "sigmoid") -> Tensor:
    """Give the Kullback-Leibler divergence of noise N(1, alpha) from a log-uniform prior, for each alpha.

    The divergence falls from infinity at alpha = 0 to 0 at alpha = infinity: the prior wants noise. It has no closed
    form. ``"sigmoid"`` is within 0.0095 of it for every ``log_alpha`` in [-8, 8]; ``"polynomial"`` is within 0.041 for
    alpha in [0.0025, 1] and does not hold above, where alpha counts as 1. The authors leave out the constant that
    makes it vanish at infinity; it is here, and changes no gradient.

    Args:
        log_alpha: The natural logarithm of alpha, the noise's variance at mean 1; of a real floating type.
        approximation: ``"sigmoid"`` (Molchanov et al. 2017) or ``"polynomial"`` (Kingma et al. 2015).
            Default: ``"sigmoid"``.

    Returns:
        A tensor of the same shape, in float32 or wider.

    Raises:
        ArgumentError: If the approximation is unknown.
        ArgumentTypeError: If `log_alpha` is no dense tensor of a real floating type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.log_uniform_kl(torch.tensor([-4.0, 0.0, 4.0]))
        tensor([2.6342, 0.4312, 0.0093])

    References:
        Molchanov, Ashukha and Vetrov (2017), "Variational dropout sparsifies deep neural networks", equation 14.
        Kingma, Salimans and Welling (2015), "Variational dropout and the local reparameterization trick", appendix C.
    """
    check_real("log_uniform_kl", "log_alpha", log_alpha)
    chosen = _APPROXIMATION.check("log_uniform_kl", "approximation", approximation)
    log_alpha = widened(log_alpha)
    if chosen == "sigmoid":
        k1, k2, k3 = _SIGMOID
        return k1 * sigmoid(-k2 - k3 * log_alpha) + 0.5 * softplus(-log_alpha)
    log_alpha = log_alpha.clamp(max=0.0)
    alpha = log_alpha.exp()
    c1, c2, c3 = _POLYNOMIAL
    return _CONSTANT - 0.5 * log_alpha - alpha * (c1 + alpha * (c2 + alpha * c3))


@overridable
def variational_dropout(
    input: Tensor,
    log_alpha: Tensor,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Tensor:
    """Multiply by Gaussian noise of mean 1 and a variance alpha that has a gradient, in training.

    Args:
        input: Dense tensor of any shape, of a real floating type.
        log_alpha: The natural logarithm of alpha, of a shape that broadcasts to the input's. Noise of alpha has the
            mean and variance of dropout at ``p = alpha / (1 + alpha)``.
        training: Whether to draw noise. If False the input itself is returned. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, or one a slice of axis 0, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type; computed in float32 or wider and rounded once.

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If a tensor is no dense one of a real floating type, or another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.variational_dropout(torch.ones(2, 2), torch.tensor([-2.0, -9.0]), key=7)
        tensor([[1.4457, 0.9979],
                [1.1061, 1.0204]])

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local reparameterization trick", section 3.2.
    """
    where = "variational_dropout"
    check_real(where, "input", input, training=training)
    check_alike(where, "log_alpha", log_alpha, input)
    noise = noise_in_training(where, input, training, key, generator, stream)
    if noise is None:
        return input
    wide = widened(input)
    deviation = torch.exp(0.5 * log_alpha.to(wide.dtype))
    return (wide * (1.0 + deviation * noise.normal(input.shape, wide.dtype))).to(input.dtype)


@overridable
def local_reparameterization(
    operation: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    input: Tensor,
    weight: Tensor,
    variance: Tensor,
    bias: Tensor | None = None,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Tensor:
    """Apply a linear operation with Gaussian weights by drawing its outputs, each example's apart, in training.

    Where weights are independent with a mean and a variance, an output is a Gaussian with mean
    ``operation(input, weight, bias)`` and variance ``operation(input**2, variance, None)``. Drawing that costs two such
    operations for a whole batch, with noise of its own for every example; its gradients vary far less than those of
    weights drawn once a batch. Outputs that share weights (the places of a convolution) are drawn independently.

    Args:
        operation: Called as ``operation(input, weight, bias)``; linear in the weights, such as
            `torch.nn.functional.linear` or a convolution.
        input: Dense tensor of a real floating type, as the operation takes it.
        weight: The mean of the weights.
        variance: Their variance, of the same shape. Not negative: where one is, all outputs are NaN.
        bias: A bias without noise. Default: none.
        training: Whether to draw noise; if not, the mean is returned. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, or one a slice of the output's axis 0, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        What the operation returns. The variance is computed in float32 or wider, also under autocast.

    Raises:
        ArgumentError: If sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If a tensor is no dense one of a real floating type, or another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> x, weight = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> linear = torch.nn.functional.linear
        >>> dropkit.functional.local_reparameterization(linear, x, weight, 0.01 * weight**2, key=7)
        tensor([[1.1212, 2.9427],
                [2.0577, 4.7328]])

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local reparameterization trick", equation 6.
    """
    where = "local_reparameterization"
    if not callable(operation):
        raise argument_type_error(where, "operation", "a callable", operation)
    check_real(where, "input", input, training=training)
    check_real(where, "weight", weight)
    check_real(where, "variance", variance)
    if variance.shape != weight.shape:
        raise argument_error(where, "variance", f"of the weight's shape {tuple(weight.shape)}", tuple(variance.shape))
    if bias is not None:
        check_real(where, "bias", bias)
    mean = operation(input, weight, bias)
    noise = noise_in_training(where, mean, training, key, generator, stream, _OUTPUT)
    if noise is None:
        return mean
    is_cast = autocast_dtype(input) is not None
    with torch.autocast(input.device.type, enabled=False) if is_cast else contextlib.nullcontext():
        spread = operation(widened(input).square(), widened(variance), None)
    wide = widened(mean)
    deviation = deviation_of(spread).masked_fill((variance < 0).any(), math.nan)
    return (wide + deviation * noise.normal(mean.shape, wide.dtype)).to(mean.dtype)
