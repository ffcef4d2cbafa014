"""Zoneout: a unit of a recurrent state keeps its old value at random."""

from typing import Any

import torch
from torch import Tensor

from dropkit._checks import argument_error, argument_type_error
from dropkit.functional.address import Names, check_source
from dropkit.functional.examples import numbers_of
from dropkit.functional.inputs import autocast_dtype, check_input, check_mask, is_identity, kept_by, leading
from dropkit.functional.noise import noise_at
from dropkit.functional.overrides import overridable

__all__ = ["expected_state", "zoneout"]

_WHERE = "zoneout"
_NAMES = Names(input="new")


@overridable
def zoneout(
    new: Tensor,
    old: Tensor,
    p: float | Tensor = 0.15,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Keep each element of an old state with probability `p`, and take that of the new one otherwise, in training.

    Nothing is scaled. In evaluation each element is the expectation of training, ``p * old + (1 - p) * new``, with the
    realised rate, ``p`` rounded to a multiple of ``2**-32``, computed in float32 or wider and rounded once.

    Args:
        new: The state that a step has computed, of any shape and of a floating or complex type.
        old: The state before that step, of the same shape, type and device; under autocast the type may differ, and
            the result has the wider one.
        p: Probability of keeping the old value, in ``[0, 1]``; or a float64 tensor, as for `dropout`. Default: 0.15.
        training: Whether to choose at random. Default: True.
        generator: Where to draw the key. Default: PyTorch's own generator.
        key: The key, as for `dropout`. A recurrent network needs another one at every step. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = new value, False = old value, with length 1 on axes
            that share. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the states' shape and type: `new` itself for ``p=0``, unless a mask is given. With `return_mask`, a
        pair.

    Raises:
        ArgumentError: If the shapes differ, or as `dropout` does.
        ArgumentTypeError: If the types differ, or as `dropout` does.
        UnsupportedError: As `dropout` does.

    Examples:
        >>> import torch, dropkit
        >>> old, new = torch.zeros(4), torch.arange(1.0, 5.0)
        >>> dropkit.functional.zoneout(new, old, 0.5, mask=torch.tensor([True, False, False, True]))
        tensor([1., 0., 0., 4.])
        >>> dropkit.functional.zoneout(new, old, 0.5, training=False)
        tensor([0.5000, 1.0000, 1.5000, 2.0000])

    References:
        Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville and Pal (2017), "Zoneout: regularizing
        RNNs by randomly preserving hidden activations", section 3, whose z is p.
    """
    check_input(_WHERE, new, "new", training=training, return_mask=return_mask)
    if isinstance(old, Tensor) and old.dtype != new.dtype and None not in (autocast_dtype(new), autocast_dtype(old)):
        dtype = torch.promote_types(new.dtype, old.dtype)  # autocast mixes types; a choice of both has the wider one
        new, old = new.to(dtype), old.to(dtype)
    _check_old(old, new)
    threshold, streams, keys = check_source(_WHERE, new, p, key, generator, stream, _NAMES)
    check_mask(_WHERE, mask, new, {"key": key, "generator": generator}, {"stream": stream})
    is_new = is_identity(p, True, mask)
    if is_new or not training:
        output = new if is_new else expected_state(new, old, threshold)
        shape = torch.broadcast_shapes(new.shape if mask is None else mask.shape, leading(threshold, new).shape)
        return (output, torch.ones(shape, dtype=torch.bool, device=new.device)) if return_mask else output
    if mask is None:
        noise = noise_at(_WHERE, new, keys, streams, generator, _NAMES, numbers_of(key))
        mask = noise.keep_mask(new.shape, threshold)
    else:
        mask = kept_by(mask, threshold)
    output = torch.where(mask, new, old)
    return (output, mask) if return_mask else output


def expected_state(new: Tensor, old: Tensor, threshold: Tensor) -> Tensor:
    """Return the expectation of zoneout, which is one of the states themselves where the rate is 0 or 1."""
    threshold = leading(threshold, new)
    p = threshold.to(torch.float64) / 2.0**32
    wide = torch.promote_types(new.dtype, torch.float32)
    p = p.to(torch.float64 if wide in (torch.float64, torch.complex128) else torch.float32)
    mixed = (p * old.to(wide) + (1.0 - p) * new.to(wide)).to(new.dtype)
    return torch.where(threshold == 0, new, torch.where(threshold == 2**32, old, mixed))


def _check_old(old: Tensor, new: Tensor) -> None:
    if new.is_nested:
        raise argument_type_error(_WHERE, "new", "a dense tensor", new.layout, "Call to_padded_tensor(0) first.")
    check_input(_WHERE, old, "old")
    if old.dtype != new.dtype:
        raise argument_type_error(_WHERE, "old", f"of the new state's type {new.dtype}", old.dtype)
    if old.shape != new.shape:
        raise argument_error(_WHERE, "old", f"of shape {tuple(new.shape)}", tuple(old.shape))
    if old.device != new.device:
        raise argument_error(_WHERE, "old", f"on the new state's device {new.device}", old.device)
