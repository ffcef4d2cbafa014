"""Recurrent networks of every form for tests, and the formulas of their cells by hand."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import dropkit
from tests.helpers.contract import scale

__all__ = [
    "BATCH",
    "BOTH",
    "FORMS",
    "HIDDEN",
    "KEY",
    "LENGTHS",
    "RATES_OF",
    "SIZE",
    "STEPS",
    "assert_close",
    "by_hand",
    "flat",
    "inputs",
    "network",
    "noisy",
    "same",
    "steps_of",
]

KEY = 0x157_0000_1234_5678
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 3, 4
LENGTHS = [3, 5, 2]
BOTH = ("LSTM", "GRU")
RATES_OF = {
    "LSTM": {
        "input_p": 0.2,
        "recurrent_p": 0.3,
        "output_p": 0.4,
        "update_p": 0.35,
        "zoneout_c": 0.5,
        "zoneout_h": 0.15,
    },
    "GRU": {"input_p": 0.2, "recurrent_p": 0.3, "output_p": 0.4, "update_p": 0.35, "zoneout": 0.5},
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"num_layers": 2, "dropout": 0.45},
    "both ways": {"bidirectional": True, "num_layers": 2, "dropout": 0.45},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "untied": {"tied": False},
    "one update mask": {"update_mask": "sequence"},
}


def network(kind: str, *sizes: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(dropkit.nn, kind)(*sizes, **options).to(dtype)


def flat(result: Any) -> list[Tensor]:
    """The tensors of what a network returns: output, last states."""
    output, states, *_ = result
    output = output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
    return [output, *(states if isinstance(states, tuple) else (states,))]


def inputs(batch_first: bool = False) -> Tensor:
    x = torch.randn(STEPS, BATCH, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.transpose(0, 1).contiguous() if batch_first else x


def noisy(kind: str, form: str = "plain", **options: Any) -> Any:
    return network(kind, SIZE, HIDDEN, **FORMS[form] | RATES_OF[kind] | options)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def assert_close(one: Any, other: Any) -> None:
    for a, b in zip(flat(one), flat(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def steps_of(mask: Tensor, steps: int) -> Tensor:
    """A batch-first mask as one a step."""
    return mask.transpose(0, 1).expand(steps, -1, -1)


def by_hand(
    layer: Any, x: Tensor, states: tuple[Tensor, ...], masks: Mapping[str, Tensor], suffix: str = "_l0"
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One time-major layer, gate by gate and example by example, as the papers write it."""
    weight_ih, weight_hh = getattr(layer, f"weight_ih{suffix}"), getattr(layer, f"weight_hh{suffix}")
    bias_ih, bias_hh = (getattr(layer, f"bias_{kind}{suffix}", None) for kind in ("ih", "hh"))
    gates = 4 if layer.mode == "LSTM" else 3
    steps, size = len(x), layer.hidden_size

    def entering(name: str, gate: int, value: Tensor, p: float) -> Tensor:
        mask = masks.get(name + suffix)
        return value if mask is None else torch.where(mask[:, min(gate, mask.shape[1] - 1)], value * scale(p), 0.0)

    def times(name: str, step: int, value: Tensor, p: float) -> Tensor:
        if name + suffix not in masks:
            return value
        mask = steps_of(masks[name + suffix], steps)[step]
        return torch.where(mask, value * scale(p), 0.0)

    def zoned(name: str, step: int, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(masks[name + suffix][:, step], new, old) if name + suffix in masks else new

    outputs = []
    for step in range(steps):
        h = states[0]
        a, b = [], []
        for gate in range(gates):
            rows = slice(gate * size, (gate + 1) * size)
            now = entering("input", gate, x[step], layer.input_p)
            state = entering("recurrent", gate, h, layer.recurrent_p)
            a.append(now @ weight_ih[rows].T + (0 if bias_ih is None else bias_ih[rows]))
            b.append(state @ weight_hh[rows].T + (0 if bias_hh is None else bias_hh[rows]))
        if layer.mode == "LSTM":
            i, f, g, o = (s + t for s, t in zip(a, b, strict=True))
            c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * times("update", step, torch.tanh(g), layer.update_p)
            new = (torch.sigmoid(o) * torch.tanh(c), c)
            states = (zoned("zoneout_h", step, new[0], h), zoned("zoneout_c", step, c, states[1]))
        else:
            r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
            n = times("update", step, torch.tanh(a[2] + r * b[2]), layer.update_p)
            states = (zoned("zoneout", step, (1 - z) * n + z * h, h),)
        outputs.append(states[0])
    output = torch.stack(outputs)
    if "output" in masks:
        output = torch.where(steps_of(masks["output"], steps), output * scale(layer.output_p), 0.0)
    return output, states
