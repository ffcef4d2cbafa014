"""One layer of a recurrent network in one direction, with noise, in plain differentiable operations.

This way serves derivatives of every order, `torch.func`, `torch.compile` and export, and is what the fast way is tested
against. Sequences are time-major; masks are True where a value is kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.functional.zoneout import expected_state
from dropkit.kernels.portable import select, survivor_scale

__all__ = ["Cell", "CellNoise", "Kept", "States", "Weights", "Zone", "gru_cell", "lstm_cell", "run_cell"]


class Kept(NamedTuple):
    """Dropout of one kind.

    Args:
        mask: Bool tensor; axis 0 is time, of length 1 where all steps share a draw. That of the recurrent connection
            is batch-first and has gates on axis 1, of length 1 where they share a draw.
        threshold: Int64 tensor of the rate's threshold.
    """

    mask: Tensor
    threshold: Tensor

    def drop(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Drop out a tensor by the mask, or by a part of it."""
        return select(x, self.mask if mask is None else mask, survivor_scale(self.threshold), in_place=False)


class Zone(NamedTuple):
    """Zoneout of one state.

    Args:
        mask: Bool tensor, True = new state, time-major; None takes the expectation.
        threshold: Int64 tensor of the rate's threshold.
    """

    mask: Tensor | None
    threshold: Tensor


class CellNoise(NamedTuple):
    """All noise within one layer and direction.

    Args:
        recurrent: On the hidden state, where it enters the gates.
        update: On the candidate.
        zones: Of the states: hidden, cell.
        active: Bool tensor (steps, batch, 1) that says which sequences have not ended; None if all are of one length.
    """

    recurrent: Kept | None
    update: Kept | None
    zones: tuple[Zone | None, ...]
    active: Tensor | None


class Weights(NamedTuple):
    """The parameters of one layer and direction, named as PyTorch names them; without `ih` the input is its product."""

    ih: Tensor | None
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None = None

    def to(self, dtype: torch.dtype) -> "Weights":
        """Return them in another type."""
        found: list[Any] = [weight if weight is None else weight.to(dtype) for weight in self]
        return Weights(*found)


States = tuple[Tensor, ...]
Cell = Callable[[Tensor, States, Weights, CellNoise, int], States]


def lstm_cell(from_input: Tensor, states: States, weights: Weights, noise: CellNoise, step: int) -> States:
    """Return the hidden and the cell state after one step, before zoneout."""
    h, c = states
    i, f, g, o = (from_input + _from_hidden(h, weights, noise.recurrent)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * _update(g.tanh(), noise, step)
    h = o.sigmoid() * c.tanh()
    return h if weights.hr is None else F.linear(h, weights.hr), c


def gru_cell(from_input: Tensor, states: States, weights: Weights, noise: CellNoise, step: int) -> States:
    """Return the hidden state after one step, before zoneout."""
    (h,) = states
    input_r, input_z, input_n = from_input.chunk(3, -1)
    hidden_r, hidden_z, hidden_n = _from_hidden(h, weights, noise.recurrent).chunk(3, -1)
    r, z = (input_r + hidden_r).sigmoid(), (input_z + hidden_z).sigmoid()
    n = _update((input_n + r * hidden_n).tanh(), noise, step)
    return ((1 - z) * n + z * h,)


def run_cell(
    cell: Cell, x: Tensor, states: States, weights: Weights, noise: CellNoise, reverse: bool
) -> tuple[Tensor, States]:
    """Run a cell over all steps; return its hidden states, those of ended sequences of no meaning, and the last states.

    Args:
        cell: What one step computes.
        x: Input, (steps, batch, features).
        states: Initial states, each (batch, units), the hidden one first.
        weights: The parameters.
        noise: The noise.
        reverse: Whether to begin at the end.
    """
    if weights.ih is not None:
        from_input = F.linear(x, weights.ih, weights.bias_ih)
    else:
        from_input = x if weights.bias_ih is None else x + weights.bias_ih
    steps = len(x)
    outputs = []
    for step in reversed(range(steps)) if reverse else range(steps):
        new = cell(from_input[step], states, weights, noise, step)
        states = tuple(
            _settle(*of_state, noise.active, step) for of_state in zip(new, states, noise.zones, strict=True)
        )
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if reverse else outputs), states


def _from_hidden(h: Tensor, weights: Weights, kept: Kept | None) -> Tensor:
    if kept is None:
        return F.linear(h, weights.hh, weights.bias_hh)
    dropped = kept.drop(h.unsqueeze(1))
    if dropped.shape[1] == 1:
        return F.linear(dropped.squeeze(1), weights.hh, weights.bias_hh)
    by_gate = weights.hh.unflatten(0, (dropped.shape[1], -1))
    product = torch.einsum("bgh,gkh->bgk", dropped, by_gate).flatten(1)
    return product if weights.bias_hh is None else product + weights.bias_hh


def _update(candidate: Tensor, noise: CellNoise, step: int) -> Tensor:
    kept = noise.update
    return candidate if kept is None else kept.drop(candidate, kept.mask[min(step, len(kept.mask) - 1)])


def _settle(new: Tensor, old: Tensor, zone: Zone | None, active: Tensor | None, step: int) -> Tensor:
    """Return the state that a step leaves."""
    if zone is not None:
        new = expected_state(new, old, zone.threshold) if zone.mask is None else torch.where(zone.mask[step], new, old)
    return new if active is None else torch.where(active[step], new, old)
