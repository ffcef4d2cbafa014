"""Recurrent networks with noise: layers, directions, and sequences of several lengths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dropkit.functional.autograd import apply_function
from dropkit.functional.inputs import autocast_dtype, without_autocast
from dropkit.functional.recurrent_cells import (
    Cell,
    CellNoise,
    Kept,
    States,
    Weights,
    Zone,
    gru_cell,
    lstm_cell,
    run_cell,
)
from dropkit.functional.recurrent_fast import drop, fits, is_plain
from dropkit.functional.recurrent_gru import FastGRU
from dropkit.functional.recurrent_lstm import FastLSTM
from dropkit.kernels.portable import moved_to

__all__ = ["KINDS", "Kind", "Sequences", "label", "open_packed", "run_network"]


class Kind(NamedTuple):
    """What tells one kind of network from another.

    Args:
        gates: Number of its gates.
        zones: Names of the zoneout of its states, the hidden one first.
        cell: What one step computes.
        fast: The fast way through a layer: input, states, weights, noise, direction -> hidden states, last states.
        plain: PyTorch's network without noise.
    """

    gates: int
    zones: tuple[str, ...]
    cell: Cell
    fast: type[torch.autograd.Function]
    plain: Callable[..., Any]


KINDS: Mapping[str, Kind] = {
    "LSTM": Kind(4, ("zoneout_h", "zoneout_c"), lstm_cell, FastLSTM, torch.lstm),
    "GRU": Kind(3, ("zoneout",), gru_cell, FastGRU, torch.gru),
}


class Sequences(NamedTuple):
    """A batch of sequences, opened.

    Args:
        x: Time-major, padded with zeros: (steps, batch, features).
        is_packed: Whether they were packed.
        active: Bool tensor (steps, batch, 1): which sequences have not ended; None if all are of one length.
        places: Where in the flattened time-major batch the packed values are; None if all are of one length.
        order: Which example of the batch each is; None if they are in order.
    """

    x: Tensor
    is_packed: bool = False
    active: Tensor | None = None
    places: Tensor | None = None
    order: Tensor | None = None

    def packed(self, x: Tensor) -> Tensor:
        """Return time-major values as they are packed, if they were."""
        if not self.is_packed:
            return x
        return x.flatten(0, 1) if self.places is None else x.flatten(0, 1).index_select(0, self.places)


def open_packed(packed: PackedSequence) -> Sequences:
    """Return packed sequences side by side."""
    values, sizes, order, _ = packed
    batch = int(sizes[0])
    active = torch.arange(batch, device=sizes.device) < sizes.unsqueeze(1)  # on a CPU, wherever the values are
    if bool((sizes == batch).all()):
        return Sequences(values.unflatten(0, (-1, batch)), True, order=order)
    places = moved_to(active.reshape(-1).nonzero().squeeze(1), values.device)
    padded = values.new_zeros(active.numel(), *values.shape[1:]).index_copy(0, places, values)
    rows = padded.unflatten(0, active.shape)
    return Sequences(rows, True, moved_to(active, values.device).unsqueeze(-1), places, order)


def label(kind: str, layer: int, direction: int = 0) -> str:
    """Return the name of a mask, like those of PyTorch's parameters."""
    return f"{kind}_l{layer}{'_reverse' if direction else ''}"


def run_network(
    kind: Kind,
    sequences: Sequences,
    states: Sequence[Tensor],
    weights: Sequence[Sequence[Weights]],
    masks: Mapping[str, tuple[Tensor, Tensor]],
    training: bool,
    tied: bool,
) -> tuple[Tensor, States]:
    """Run all layers and directions; return the last layer's outputs, time-major or packed, and all last states.

    Args:
        kind: What network it is.
        sequences: The input.
        states: Initial states, each (layers * directions, batch, units), the hidden one first.
        weights: Parameters by layer and direction.
        masks: Masks with the thresholds of their rates, by name; batch-first.
        training: Whether masks are applied; if not, zoneout takes its expectation, and nothing else drops.
        tied: Whether axis 1 of an input's mask is time; if not, it is gates.
    """
    noise = _Noise(masks, training, sequences, tied)
    x, dtype = sequences.x, autocast_dtype(sequences.x)
    if dtype is not None:
        with without_autocast(x.device):
            narrow = [[own.to(dtype) for own in directions] for directions in weights]
            x, last = _run_layers(kind, x.to(dtype), [state.to(dtype) for state in states], narrow, noise)
    else:
        x, last = _run_layers(kind, x, states, weights, noise)
    return sequences.packed(x), last


def _run_layers(
    kind: Kind, x: Tensor, states: Sequence[Tensor], weights: Sequence[Sequence[Weights]], noise: "_Noise"
) -> tuple[Tensor, States]:
    last: list[States] = []
    for layer, directions in enumerate(weights):
        by_gate = noise.of_gates(label("input", layer))
        x = x if by_gate is not None else noise.drop(x, label("input", layer))
        outputs = []
        for direction, own in enumerate(directions):
            first = tuple(state[layer * len(directions) + direction] for state in states)
            found = noise.of_cell(kind, layer, direction)
            into = (x, own) if by_gate is None else _by_gate(x, own, by_gate)
            output, final = _run_layer(kind, into[0], first, into[1], found, bool(direction))
            outputs.append(output)
            last.append(final)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        x = noise.drop(x, label("dropout", layer))
    return noise.drop(x, "output"), tuple(torch.stack(state) for state in zip(*last, strict=True))


def _by_gate(x: Tensor, weights: Weights, kept: Kept) -> tuple[Tensor, Weights]:
    """Return what the input, dropped out for each gate by a mask of its own, gives the gates, and the other weights."""
    gates = kept.mask.shape[1]
    dropped = _drop(x.unsqueeze(2).expand(-1, -1, gates, -1), kept)
    weight: Any = weights.ih
    product = torch.einsum("sbgf,guf->sbgu", dropped, weight.unflatten(0, (gates, -1)))
    return product.flatten(2), weights._replace(ih=None)


def _drop(x: Tensor, kept: Kept) -> Tensor:
    return drop(x, kept) if is_plain(x) else kept.drop(x)


def _run_layer(
    kind: Kind, x: Tensor, states: States, weights: Weights, noise: CellNoise, reverse: bool
) -> tuple[Tensor, States]:
    if not fits(x, states, weights, noise):
        return run_cell(kind.cell, x, states, weights, noise, reverse)
    output, *last = apply_function(kind.fast, x.contiguous(), *states, *weights[:4], noise, reverse)
    return output, tuple(last)


class _Noise:
    """All noise of a network, by name, in the order of its sequences."""

    def __init__(
        self, masks: Mapping[str, tuple[Tensor, Tensor]], training: bool, sequences: Sequences, tied: bool
    ) -> None:
        self.masks, self.training, self.sequences, self.tied = masks, training, sequences, tied

    def _kept(self, name: str, *, by_time: bool = True) -> Kept | None:
        if name not in self.masks or not self.training:
            return None
        mask, threshold = self.masks[name]
        if self.sequences.order is not None and len(mask) > 1:
            mask = mask.index_select(0, self.sequences.order)
        return Kept(mask.transpose(0, 1) if by_time else mask, threshold)

    def _zone(self, name: str) -> Zone | None:
        kept = self._kept(name)
        if kept is not None:
            steps, *rest = self.sequences.x.shape[:2]
            return Zone(kept.mask.expand(steps, *rest, -1), kept.threshold)
        return Zone(None, self.masks[name][1]) if name in self.masks else None

    def drop(self, x: Tensor, name: str) -> Tensor:
        kept = self._kept(name)
        return x if kept is None else _drop(x, kept)

    def of_gates(self, name: str) -> Kept | None:
        """Return what gates keep of an input each by a mask of its own, or None where one mask serves them all."""
        kept = None if self.tied else self._kept(name, by_time=False)
        return kept if kept is not None and kept.mask.shape[1] > 1 else None

    def of_cell(self, kind: Kind, layer: int, direction: int) -> CellNoise:
        return CellNoise(
            recurrent=self._kept(label("recurrent", layer, direction), by_time=False),
            update=self._kept(label("update", layer, direction)),
            zones=tuple(self._zone(label(zone, layer, direction)) for zone in kind.zones),
            active=self.sequences.active,
        )
