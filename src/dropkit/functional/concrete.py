"""Dropout whose mask is relaxed, so that its rate has a gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dropkit._checks import POSITIVE, check_axes
from dropkit.functional.overrides import overridable
from dropkit.functional.variational import check_alike, check_real, noise_in_training, widened

__all__ = ["concrete_dropout", "relaxed_factor"]

_WHERE = "concrete_dropout"


def relaxed_factor(logit: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Return a relaxed mask over ``1 - p``: the mask is above 1/2 where dropout at p keeps, at every temperature.

    Args:
        logit: ``ln(p / (1 - p))``.
        uniform: Uniforms strictly between 0 and 1.
        temperature: How far it is relaxed; near 0 it is a Bernoulli mask.
    """
    logit = logit.clamp(max=0.5 * math.log(torch.finfo(logit.dtype).max))  # or 1 / (1 - p) would be infinite
    return torch.sigmoid((torch.logit(uniform) - logit) / temperature) * (1.0 + logit.exp())


@overridable
def concrete_dropout(
    input: Tensor,
    logit: Tensor,
    temperature: float = 0.1,
    training: bool = True,
    *,
    broadcast_dims: int | Sequence[int] = (),
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Tensor:
    """Multiply by a relaxed mask and scale by ``1 / (1 - p)``, in training; p has a gradient.

    The relaxed mask is above 1/2 where `dropout` with the same key keeps an element. Its mean is not
    exactly the probability of keeping: at p = 0.1 it is 0.8988 at temperature 0.1 and 0.8547 at 2/3.

    Args:
        input: Dense tensor of any shape, of a real floating type.
        logit: ``ln(p / (1 - p))`` of the probability of dropping, of a shape that broadcasts to the input's.
        temperature: Above 0; the nearer to 0, the more like a Bernoulli mask and the steeper its gradient.
            Default: 0.1.
        training: Whether to drop. If False the input itself is returned. Default: True.
        broadcast_dims: Axes along which one draw is shared; negatives count from the end. Default: none.
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
        >>> dropkit.functional.concrete_dropout(torch.ones(2, 4), torch.tensor(0.0), key=7).round(decimals=3)
        tensor([[0.5740, 2.0000, 2.0000, 2.0000],
                [2.0000, 0.0000, 2.0000, 0.0000]])

    References:
        Gal, Hron and Kendall (2017), "Concrete dropout", equation 5, whose p is the probability of dropping.
    """
    check_real(_WHERE, "input", input, training=training)
    check_alike(_WHERE, "logit", logit, input)
    temperature = POSITIVE.check(_WHERE, "temperature", temperature)
    check_axes(_WHERE, "broadcast_dims", broadcast_dims, input.dim())
    noise = noise_in_training(_WHERE, input, training, key, generator, stream)
    if noise is None:
        return input
    wide = widened(input)
    uniform = noise.uniform(input.shape, wide.dtype, broadcast_dims)
    return (wide * relaxed_factor(logit.to(wide.dtype), uniform, temperature)).to(input.dtype)
