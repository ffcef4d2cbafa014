"""What LSTM and GRU have in common: checked arguments, sequences in and out, and where masks are drawn."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dropkit._checks import PROBABILITY, Choice, Integer, argument_error, argument_type_error
from dropkit.functional.inputs import autocast_dtype, check_masks
from dropkit.functional.recurrent import KINDS, Kind, Sequences, label, open_packed, run_network
from dropkit.functional.recurrent_cells import Weights
from dropkit.functional.recurrent_masks import Site, find_masks
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import NoiseMixin, check_bool
from dropkit.nn.rates import RatesMixin

__all__ = ["RecurrentBase"]

_SIZE = Integer(1, 2**31 - 1, "[1, 2**31)")
_UPDATE_MASK = Choice(("step", "sequence"))
# Numbers of the fields of noise: 1 + kind + 8 * (direction + 2 * layer).
_FIELDS = {
    "input": 0,
    "recurrent": 1,
    "update": 2,
    "zoneout_c": 3,
    "zoneout_h": 4,
    "zoneout": 4,
    "dropout": 5,
    "output": 6,
}


class RecurrentBase(NoiseMixin, RatesMixin, torch.nn.RNNBase):
    """A recurrent network of PyTorch's with noise."""

    tied: bool
    update_mask: str

    @property
    def _kind(self) -> Kind:
        return KINDS[self.mode]

    def _check_options(
        self,
        sizes: dict[str, int],
        flags: dict[str, bool],
        rates: dict[str, float],
        device: Any,
        dtype: Any,
        update_mask: str,
        generator: Any,
    ) -> None:
        """Check all arguments, before weights are drawn."""
        where = type(self).__name__
        for name, size in sizes.items():
            if name != "proj_size":
                _SIZE.check(where, name, size)
            else:
                hidden = sizes["hidden_size"]
                Integer(0, hidden - 1, f"[0, {hidden})", "It is less than hidden_size.").check(where, name, size)
        for name, flag in flags.items():
            check_bool(where, name, flag)
        for name, p in rates.items():
            PROBABILITY.check(where, name, p)
        _UPDATE_MASK.check(where, "update_mask", update_mask)
        check_factory(where, device, dtype, generator, is_real=True)

    def _set_options(
        self, rates: dict[str, float], generator: torch.Generator | None, tied: bool, update_mask: str
    ) -> None:
        self._set_source(generator)
        for name, p in rates.items():
            setattr(self, name, p)
        self.tied, self.update_mask = tied, update_mask

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        key: int | Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_masks: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Run the network.

        Args:
            input: Sequences as PyTorch's network takes them: (steps, batch, features), batch-first if so built, without
                the batch's axis, or packed.
            hx: Initial states as PyTorch's network takes them. Default: zeros.
            key: As for `dropkit.functional.dropout`; or one an example. Default: drawn from the generator.
            masks: Bool tensors by name to use instead of drawing, True = kept (for zoneout, True = new state); others
                are drawn. Default: none.
            return_masks: Whether to return the masks too. Default: False.
            stream: Number of the pass, as for `dropkit.functional.dropout`. Default: 0.

        Returns:
            The output and the last states as PyTorch's network returns them; with `return_masks`, also a dict of masks,
            all True in evaluation.

        Raises:
            ArgumentError: If a shape does not fit, a mask is unknown, or as `dropkit.functional.dropout`.
            ArgumentTypeError: If something has a wrong type.
        """
        where = type(self).__name__
        check_bool(where, "return_masks", return_masks)
        sequences = self._open(input)
        steps, batch = sequences.x.shape[:2]
        states = self._states(hx, input, sequences)
        sites, given = self._sites(steps, batch), {} if masks is None else masks
        shapes = {site.name: (batch, site.middle, site.shape[2]) for site in sites}
        check_masks(where, given, shapes, sequences.x.device)
        found = find_masks(where, sites, given, sequences.x.transpose(0, 1), self.is_on, key, self._source(key), stream)
        if any(self.is_on or name.startswith("zoneout") for name in found):
            x, last = run_network(self._kind, sequences, states, self._weights(), found, self.is_on, self.tied)
        else:
            x, last = self._run_plain(input, sequences, states)
        result = self._close(x, input), self._close_states(last, input)
        return (*result, {name: mask for name, (mask, _) in found.items()}) if return_masks else result

    def _open(self, input: Any) -> Sequences:
        where = type(self).__name__
        if not isinstance(input, Tensor | PackedSequence):
            raise argument_type_error(where, "input", "a torch.Tensor or a PackedSequence", input)
        values = input.data if isinstance(input, PackedSequence) else input
        remedy = "Convert it, or the network."
        dtype = getattr(self, self._flat_weights_names[0]).dtype
        if values.dtype != dtype and autocast_dtype(values) is None:
            raise argument_type_error(where, "input", f"of the weights' type {dtype}", values.dtype, remedy)
        device = getattr(self, self._flat_weights_names[0]).device
        if values.device != device:
            raise argument_error(where, "input", f"on the weights' device {device}", values.device, remedy)
        if values.is_nested or values.layout != torch.strided:
            remedy = "Pack them: pack_sequence(input.unbind(), enforce_sorted=False)." if values.is_nested else ""
            raise argument_type_error(where, "input", "a dense tensor or a PackedSequence", values.layout, remedy)
        ranks = (2,) if isinstance(input, PackedSequence) else (2, 3)
        if values.dim() not in ranks or values.shape[-1] != self.input_size:
            rule = f"of 2 or 3 axes, the last of length {self.input_size}"
            raise argument_error(where, "input", rule, tuple(values.shape))
        if isinstance(input, PackedSequence):
            return open_packed(input)
        x = input.unsqueeze(1) if input.dim() == 2 else input.transpose(0, 1) if self.batch_first else input
        if len(x) == 0:
            raise argument_error(where, "input", "of one step or more", tuple(values.shape))
        return Sequences(x)

    def _states(self, hx: Any, input: Any, sequences: Sequences) -> tuple[Tensor, ...]:
        """Return initial states with a batch's axis, in the order of the sequences."""
        where, x = type(self).__name__, sequences.x
        units = (self.proj_size or self.hidden_size, self.hidden_size)[: len(self._kind.zones)]
        lead = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None:
            return tuple(x.new_zeros(lead, x.shape[1], n) for n in units)
        states = (hx,) if len(units) == 1 else hx
        if not isinstance(states, tuple | list) or len(states) != len(units):
            raise argument_type_error(where, "hx", "a pair of tensors, (h_0, c_0)", hx)
        unbatched = isinstance(input, Tensor) and input.dim() == 2
        opened = []
        for i, (state, n) in enumerate(zip(states, units, strict=True)):
            name = "hx" if len(units) == 1 else f"hx[{i}]"
            if not isinstance(state, Tensor):
                raise argument_type_error(where, name, "a torch.Tensor", state)
            if state.dtype != x.dtype and None in (autocast_dtype(x), autocast_dtype(state)):
                raise argument_type_error(where, name, f"of the input's type {x.dtype}", state.dtype)
            shape = (lead, n) if unbatched else (lead, x.shape[1], n)
            if tuple(state.shape) != shape:
                raise argument_error(where, name, f"of shape {shape}", tuple(state.shape))
            if state.device != x.device:
                raise argument_error(where, name, f"on the input's device {x.device}", state.device)
            state = state.unsqueeze(1) if unbatched else state  # noqa: PLW2901  # the same state, opened
            opened.append(state if sequences.order is None else state.index_select(1, sequences.order))
        return tuple(opened)

    def _sites(self, steps: int, batch: int) -> list[Site]:
        """Return all places that may draw a mask."""
        directions, gates = 2 if self.bidirectional else 1, self._kind.gates
        hidden, rates, sites = self.proj_size or self.hidden_size, self.rates, []

        def add(kind: str, layer: int, direction: int, units: int, length: int, is_ragged: bool = False) -> None:
            name = kind if kind == "output" else label(kind, layer, direction)
            rate = rates[kind if kind in rates else f"{kind}_p"]
            field = 1 + _FIELDS[kind] + 8 * (direction + 2 * layer)
            most = gates if kind == "recurrent" or (kind == "input" and not self.tied) else steps
            sites.append(Site(name, rate, field, (batch, length, units), most, is_ragged))

        gate_masks = 1 if self.tied else gates
        for layer in range(self.num_layers):
            add("input", layer, 0, directions * hidden if layer else self.input_size, gate_masks)
            for direction in range(directions):
                add("recurrent", layer, direction, hidden, gate_masks)
                by_step = self.update_mask == "step"
                add("update", layer, direction, self.hidden_size, steps if by_step else 1, by_step)
                for zone in reversed(self._kind.zones):
                    units = self.hidden_size if zone == "zoneout_c" else hidden
                    add(zone, layer, direction, units, steps, is_ragged=True)
            if layer < self.num_layers - 1:
                add("dropout", layer, 0, directions * hidden, steps, is_ragged=True)
        add("output", 0, 0, directions * hidden, 1)
        return sites

    def _weights(self) -> list[list[Weights]]:
        """Return all parameters, by attribute, for whoever replaces an attribute for a call."""

        def own(layer: int, direction: int) -> Weights:
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            found: list[Any] = [getattr(self, label(kind, layer, direction), None) for kind in kinds]
            return Weights(*found)

        directions = range(2 if self.bidirectional else 1)
        return [[own(layer, direction) for direction in directions] for layer in range(self.num_layers)]

    def _run_plain(
        self, input: Any, sequences: Sequences, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run PyTorch's network without dropout; return values as they are packed, or time-major, and last states."""
        hx = states if len(states) > 1 else states[0]
        flat = [getattr(self, name) for name in self._flat_weights_names]
        options = (flat, self.bias, self.num_layers, 0.0, self.training, self.bidirectional)
        if isinstance(input, PackedSequence):
            x, *last = self._kind.plain(input.data, input.batch_sizes, hx, *options)
        else:
            x, *last = self._kind.plain(sequences.x, hx, *options, False)
        return x, tuple(last)

    def _close(self, x: Tensor, input: Any) -> Any:
        """Return outputs as the input was given; of packed input they are packed values."""
        if isinstance(input, PackedSequence):
            return PackedSequence(x, *input[1:])
        return x.squeeze(1) if input.dim() == 2 else x.transpose(0, 1) if self.batch_first else x

    def _close_states(self, states: tuple[Tensor, ...], input: Any) -> Any:
        if isinstance(input, PackedSequence) and input.unsorted_indices is not None:
            order = input.unsorted_indices
            states = tuple(state.index_select(1, order) for state in states)
        if isinstance(input, Tensor) and input.dim() == 2:
            states = tuple(state.squeeze(1) for state in states)
        return states if len(states) > 1 else states[0]

    def extra_repr(self) -> str:
        """Show the sizes, and whatever differs from the defaults."""
        options: dict[str, Any] = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        options |= {"bidirectional": False} | dict.fromkeys(self.RATES, 0.0) | {"tied": True, "update_mask": "step"}
        shown = [
            f"{name}={getattr(self, name)!r}" for name, default in options.items() if getattr(self, name) != default
        ]
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown, *self._parts()])
