"""DropConnect: a linear map whose weights every example masks anew, and the paper's rule of inference."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit._checks import Integer, argument_error, argument_type_error
from dropkit.functional.address import check_source, signed
from dropkit.functional.autograd import traced
from dropkit.functional.connections import Linear, connect, connect_by_mask, takes_parts
from dropkit.functional.examples import check_examples, numbers_of
from dropkit.functional.inputs import (
    autocast_dtype,
    check_input,
    check_mask,
    is_identity,
    kept_by,
    leading,
    without_autocast,
)
from dropkit.functional.noise import Noise, find_noise, noise_at
from dropkit.functional.overrides import overridable
from dropkit.functional.variational import deviation_of
from dropkit.kernels import fields
from dropkit.kernels.portable import select, survivor_scale
from dropkit.random.layout import layout

__all__ = ["SAMPLES", "drop_connect", "drop_connect_inference"]

SAMPLES = Integer(1, 2**31 - 1, "[1, 2**31)")
_NORMALS_AT_ONCE = 2**20


@overridable
def drop_connect(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Apply a linear map whose weights and biases are dropped, anew for every example, with probability `p`.

    An example is a vector along the last axis. A weight has the place (..., output, input) in the mask, and a bias that
    of one input more, whose value is always 1. Neither masks nor masked weights are stored: in eager code both passes
    draw them for a few examples at a time; compiled code stores the mask alone. Half types are computed in float32 and
    rounded once. An input that is NaN or infinite makes its outputs NaN, as weights of 0 do, unless ``p=1``.

    Args:
        input: Tensor of shape (..., inputs), of a floating or complex type.
        weight: Tensor of shape (outputs, inputs).
        bias: Tensor of shape (outputs,). Default: none.
        p: Probability of dropping a weight, in ``[0, 1]``, or a tensor as for `dropout`. Default: 0.5.
        training: Whether to drop. If False, the plain weights are applied, the mean rule of inference. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept, of shape (..., outputs, inputs + 1), or
            (..., outputs, inputs) without a bias; with length 1 on axes that share. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of shape (..., outputs); with `return_mask`, a pair.

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.drop_connect(torch.ones(2, 3), torch.ones(2, 3), key=7)
        tensor([[4., 4.],
                [2., 2.]])

    References:
        Wan, Zeiler, Zhang, LeCun and Fergus (2013), "Regularization of neural networks using DropConnect", section 3,
        whose p is the probability of keeping.
    """
    where = "drop_connect"
    _check_linear(where, input, weight, bias, training=training, return_mask=return_mask)
    examples = _examples(input)
    threshold, streams, keys = check_source(where, examples, p, key, generator, stream)
    shape = (*examples.shape, weight.size(0), weight.size(1) + (bias is not None))
    weights = examples[..., None, None].expand(shape)
    check_mask(where, mask, weights, {"key": key, "generator": generator}, {"stream": stream})
    if is_identity(p, training, mask):
        ones = torch.ones((), dtype=torch.bool, device=input.device)
        output = F.linear(input, weight, bias)
        return (output, ones.expand(shape if mask is None else mask.shape)) if return_mask else output
    linear, dtype = _widened(input, weight, bias)
    with without_autocast(input.device):
        if mask is None:
            noise = noise_at(where, examples, keys, streams, generator, numbers=numbers_of(key))
            in_parts = takes_parts(input)
            mask = noise.keep_mask(shape, threshold) if return_mask or not in_parts else None
            output = connect(linear, threshold, noise) if mask is None or in_parts else connect_by_mask(linear, mask)
        else:
            mask = kept_by(mask, threshold)
            output = connect_by_mask(linear, mask)
        output = select(output, leading(threshold < 2**32, output), survivor_scale(threshold), in_place=not traced())
    return (output.to(dtype), mask) if return_mask else output.to(dtype)


@overridable
def drop_connect_inference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    *,
    activation: Callable[[Tensor], Tensor],
    samples: int = 1000,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    stream: int | Tensor = 0,
) -> Tensor:
    """Average an activation over draws of the pre-activations that `drop_connect` gives, taken for Gaussian.

    Each output has the mean and the variance that it has over all masks: ``W v + b`` and
    ``p / (1 - p) (W ** 2 v ** 2 + b ** 2)``, which are the paper's for the weights of the original form,
    ``W / (1 - p)``. For ``p=1`` the pre-activations are 0, as in training. Draws are made some at a time.

    Args:
        input: Tensor of shape (..., inputs), of a real floating type.
        weight: Tensor of shape (outputs, inputs).
        bias: Tensor of shape (outputs,). Default: none.
        p: Probability of dropping a weight, as for `drop_connect`. Default: 0.5.
        activation: What is averaged: a function of a tensor of any shape, elementwise or along the last axis.
        samples: Number of draws an output, 1 or more. Default: 1000.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of shape (..., outputs).

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...>
        >>> infer = dropkit.functional.drop_connect_inference
        >>> infer(torch.ones(2), torch.zeros(3, 2), activation=torch.sigmoid)
        tensor([0.5000, 0.5000, 0.5000])

    References:
        Wan, Zeiler, Zhang, LeCun and Fergus (2013), "Regularization of neural networks using DropConnect",
        section 3.2 and algorithm 2, whose p is the probability of keeping.
    """
    where = "drop_connect_inference"
    _check_linear(where, input, weight, bias)
    if input.is_complex():
        raise argument_type_error(where, "input", "of a real floating type", input.dtype)
    if not callable(activation):
        raise argument_type_error(where, "activation", "a function of a tensor", activation)
    samples = SAMPLES.check(where, "samples", samples)
    threshold, noise = find_noise(where, _examples(input), p, key, generator, stream)
    linear, dtype = _widened(input, weight, bias)
    with without_autocast(input.device):
        mean = F.linear(*linear)
        rows, weights, biases = linear
        square = F.linear(rows.square(), weights.square(), None if biases is None else biases.square())
        odds = (threshold / (2**32 - threshold).clamp(min=1).to(torch.float64)).to(mean.dtype)
        survives = leading(threshold < 2**32, mean)
        mean, variance = (torch.where(survives, value, 0.0) for value in (mean, leading(odds, mean) * square))
        deviation = deviation_of(variance)
        if noise.runs:
            check_examples(where, noise.runs, (*mean.shape[:-1], samples, mean.size(-1)), max(noise.passes, 1))
        parts = _in_runs(mean, deviation, noise)
        found = [_averaged(some, spread, activation, samples, own, first) for some, spread, own, first in parts]
        return (torch.cat(found) if len(found) > 1 else found[0]).to(dtype)


def _in_runs(mean: Tensor, deviation: Tensor, noise: Noise) -> Iterator[tuple[Tensor, Tensor, Noise, int]]:
    """Yield the examples of every run of every pass, with the noise of the pass and the number of the first."""
    if not noise.runs:
        yield mean, deviation, noise, 0
        return
    passes = [noise.one_pass(number) for number in range(noise.passes)] or [noise]
    lengths = [length for _, length in noise.runs] * len(passes)
    places = ((own, first) for own in passes for first, _ in noise.runs)
    for some, spread, (own, first) in zip(mean.split(lengths), deviation.split(lengths), places, strict=True):
        yield some, spread, own, first


def _averaged(
    mean: Tensor,
    deviation: Tensor,
    activation: Callable[[Tensor], Tensor],
    samples: int,
    noise: Noise,
    first_example: int = 0,
) -> Tensor:
    """Average an activation over normal draws, some at a time, at the place (..., sample, output)."""
    whole = (*mean.shape[:-1], samples, mean.size(-1))
    before = (first_example, *(0 for _ in whole[1:-2])) if len(whole) > 2 else ()
    if first_example:
        whole = (first_example + whole[0], *whole[1:])
    step = max(_NORMALS_AT_ONCE // max(mean.numel(), 1), 1)
    mean, deviation = mean.unsqueeze(-2), deviation.unsqueeze(-2)
    total: Any = 0
    for first in range(0, samples, step):
        shape = (*mean.shape[:-2], min(step, samples - first), whole[-1])
        offset = (*before, first, 0)
        place = layout(noise.where, shape, (), offset, whole, noise.key.dim())
        rows = place._replace(row_strides=tuple(map(signed, place.row_strides)), first_row=signed(place.first_row))
        normal = fields.normal(noise.key, noise.stream, rows, noise.device, mean.dtype)
        found = activation(mean + deviation * normal)
        if not isinstance(found, Tensor) or found.shape != normal.shape:
            shown = tuple(found.shape) if isinstance(found, Tensor) else found
            rule = f"a function from a tensor to one of the same shape, here {tuple(normal.shape)}"
            raise argument_error(noise.where, "activation", rule, shown)
        total = total + found.sum(-2)
    return total / samples


def _examples(input: Tensor) -> Tensor:
    """Return a tensor of the shape of the examples, whose axis 0 is that of keys and rates; it takes no memory."""
    return input.new_empty(()).expand(input.shape[:-1])


def _check_linear(where: str, input: Any, weight: Any, bias: Any, **flags: object) -> None:
    """Raise unless input, weight and bias are those of a linear map."""
    check_input(where, input, "input", **flags)
    if input.is_nested:
        remedy = "Apply it to the values of a jagged tensor, or to its parts one by one."
        raise argument_type_error(where, "input", "a dense tensor, not a nested one", input.layout, remedy)
    for name, value, rank in (("weight", weight, 2), ("bias", bias, 1)):
        if name == "bias" and value is None:
            continue
        if not isinstance(value, Tensor):
            raise argument_type_error(where, name, "a torch.Tensor", value)
        if value.dtype != input.dtype and autocast_dtype(input) is None:
            remedy = "Convert one of them."
            raise argument_type_error(where, name, f"of the input's type {input.dtype}", value.dtype, remedy)
        if value.device != input.device:
            raise argument_error(where, name, f"on the input's device {input.device}", value.device)
        if rank == 2 and value.dim() != 2:
            raise argument_error(where, name, "of shape (outputs, inputs)", tuple(value.shape))
        if rank == 2 and input.shape[-1:] != value.shape[1:]:
            rule = f"of shape (..., {value.size(1)}), as the weight of shape {tuple(value.shape)} takes it"
            raise argument_error(where, "input", rule, tuple(input.shape))
        if rank == 1 and value.shape != weight.shape[:1]:
            raise argument_error(where, name, f"of shape ({weight.size(0)},)", tuple(value.shape))


def _widened(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Linear, torch.dtype]:
    """Return the tensors in the type to compute in, and the type of the result, which autocast may choose."""
    dtype = autocast_dtype(input) or input.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    widened = input.to(dtype).to(wide), weight.to(dtype).to(wide)
    return (*widened, None if bias is None else bias.to(dtype).to(wide)), dtype
