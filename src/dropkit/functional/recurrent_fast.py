"""What the fast ways through LSTM and GRU have in common.

They run in plain eager code: one matrix product for the inputs of all steps, one a step for all gates, and a backward
pass by hand, whose factors are prepared for all steps at once. The plain operations of
`dropkit.functional.recurrent_cells` serve whatever is asked beyond that, second derivatives too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from dropkit.functional.autograd import apply_function, is_batched, traced
from dropkit.functional.recurrent_cells import Cell, CellNoise, Kept, Weights, run_cell
from dropkit.kernels.portable import survivor_scale

__all__ = [
    "HiddenProduct",
    "Split",
    "Update",
    "drop",
    "fits",
    "grads_by_autograd",
    "in_order",
    "input_gradients",
    "input_product",
    "integers",
    "is_plain",
    "order",
    "settle",
    "zone_bits",
]


def fits(x: Tensor, states: Sequence[Tensor], weights: Weights, noise: CellNoise) -> bool:
    """Tell whether a layer can go the fast way."""
    others = (*states, *(weight for weight in weights if weight is not None))
    return (
        is_plain(x)
        and x.shape[1] > 0  # which a shape with a -1 needs
        and weights.hr is None
        and all(type(tensor) in (Tensor, Parameter) and tensor.dtype == x.dtype for tensor in others)
        and all(zone is None or zone.mask is not None for zone in noise.zones)
    )


def is_plain(x: Tensor) -> bool:
    """Tell whether a tensor is one of plain eager code, of a type that is computed as it is."""
    is_eager = not traced() and forward_ad._current_level < 0
    return is_eager and type(x) in (Tensor, Parameter) and x.dtype in (torch.float32, torch.float64)


def order(steps: int, reverse: bool) -> list[tuple[int, int, int]]:
    """Return every step with where the state before it and the state after it are kept, in the order of computing."""
    if reverse:
        return [(step, step + 1, step) for step in reversed(range(steps))]
    return [(step, step, step + 1) for step in range(steps)]


def in_order(parts: Iterable[Any], reverse: bool) -> list[Any]:
    """Return what belongs to the steps in the order of computing: views made at once cost less than one by one."""
    found = list(parts)
    return found[::-1] if reverse else found


def bits(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as integers as wide as numbers of a type: all bits where it is True, none elsewhere.

    To keep or to clear a number's bits selects it as `torch.where` does, whatever it is, in a tenth of the time.
    """
    kind = integers(dtype)
    return keep.to(kind, memory_format=torch.contiguous_format).neg_()


def integers(dtype: torch.dtype) -> torch.dtype:
    """Return the integers as wide as numbers of a type."""
    return torch.int32 if dtype == torch.float32 else torch.int64


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.noise = keep, scale
        scaled = x * scale
        scaled.view(keep.dtype).bitwise_and_(keep)
        return scaled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        keep, scale = ctx.noise
        if is_batched(grad):
            return torch.where(keep != 0, grad * scale, 0.0), None, None
        return apply_function(_Drop, grad, keep, scale), None, None


def drop(x: Tensor, kept: Kept) -> Tensor:
    """Drop out a plain tensor, as `Kept.drop` does."""
    return apply_function(_Drop, x, bits(kept.mask, x.dtype), float(survivor_scale(kept.threshold)))


class Update:
    """What is kept of the candidates at all steps, as bits, and its scale; nothing without noise."""

    def __init__(self, kept: Kept | None, like: Tensor) -> None:
        self.keep = None if kept is None else bits(kept.mask, like.dtype).expand(like.shape)
        self.scale = 1.0 if kept is None else float(survivor_scale(kept.threshold))


def zone_bits(noise: CellNoise, state: int, like: Tensor) -> Tensor | None:
    """Return where a state takes its new value at all steps, as bits; after a sequence's end it keeps the old one."""
    zone = noise.zones[state]
    masks = [noise.active] if noise.active is not None else []
    masks += [zone.mask] if zone is not None and zone.mask is not None else []
    if not masks:
        return None
    return bits(masks[0] & masks[1] if len(masks) == 2 else masks[0], like.dtype).expand(like.shape)


def settle(new: Tensor, old: Tensor, keep: Tensor, out: Tensor) -> None:
    """Write the new values where they are kept and the old ones elsewhere, all as integers; `new` is overwritten."""
    new.bitwise_xor_(old).bitwise_and_(keep)
    torch.bitwise_xor(new, old, out=out)


class Split:
    """The gradient of a state, walked back from step to step; where the state kept its old value, past the cell."""

    def __init__(self, grad: Tensor, new: Tensor | None) -> None:
        self.value, self.new = grad.clone(memory_format=torch.contiguous_format), new
        self.past = torch.empty_like(self.value)
        kind = integers(grad.dtype)
        self.bits, self.past_bits = self.value.view(kind), self.past.view(kind)

    def split(self, step: int) -> None:
        """Set aside what goes past the cell."""
        if self.new is not None:
            torch.bitwise_and(self.bits, self.new[step], out=self.past_bits)
            self.bits.bitwise_xor_(self.past_bits)
            self.value, self.past = self.past, self.value
            self.bits, self.past_bits = self.past_bits, self.bits

    def join(self) -> None:
        """Add what was set aside."""
        if self.new is not None:
            self.value += self.past


class HiddenProduct:
    """The product of the hidden state, dropped out, with the weights of all gates; forwards and backwards.

    Masks of a gate each take one batched product instead of one product; the scale is put into the weights.
    """

    def __init__(self, kept: Kept | None, weight: Tensor, h: Tensor) -> None:
        self.keep = None if kept is None else bits(kept.mask.expand(len(h), -1, -1).transpose(0, 1), h.dtype)
        self.scale = 1.0 if kept is None else float(survivor_scale(kept.threshold))
        self.gates = 1 if self.keep is None else len(self.keep)
        self.weight = (weight * self.scale if kept is not None else weight).unflatten(0, (self.gates, -1))
        self.dropped = h.new_empty(self.gates, *h.shape)
        self.dropped_bits = self.dropped.view(integers(h.dtype))

        self.transposed = self.weight.transpose(1, 2).contiguous()
        self.product = self.dropped.new_empty(*self.dropped.shape[:2], self.weight.shape[1])

    def add_to(self, gates: Tensor, h: Tensor) -> None:
        """Add the product of a step to the gates, (batch, gates * units)."""
        if self.keep is None:
            gates.addmm_(h, self.transposed[0])
            return
        torch.bitwise_and(h.view(self.dropped_bits.dtype), self.keep, out=self.dropped_bits)
        if self.gates == 1:
            gates.addmm_(self.dropped[0], self.transposed[0])
        else:
            torch.bmm(self.dropped, self.transposed, out=self.product)
            gates.unflatten(1, (self.gates, -1)).add_(self.product.transpose(0, 1))

    def backward(self, grad: Tensor, out: Tensor) -> None:
        """Write the gradient of the hidden state before a step, given that of its gates."""
        if self.gates == 1:
            torch.mm(grad, self.weight[0], out=out)
            if self.keep is not None:
                out.view(self.keep.dtype).bitwise_and_(self.keep[0])
            return
        torch.bmm(grad.unflatten(1, (self.gates, -1)).transpose(0, 1), self.weight, out=self.dropped)
        if self.keep is not None:
            self.dropped_bits.bitwise_and_(self.keep)
        torch.sum(self.dropped, 0, out=out)

    def weight_gradient(self, grad: Tensor, before: Tensor) -> Tensor:
        """Return the gradient of the weights from those of all gates, (steps, batch, gates * units)."""
        flat = grad.flatten(0, 1)
        if self.keep is None:
            return flat.t() @ before.flatten(0, 1)
        kept = (before.view(self.keep.dtype) & self.keep.unsqueeze(1)).view(before.dtype).flatten(1, 2)
        if self.gates == 1:
            return (flat.t() @ kept[0]).mul_(self.scale)
        return torch.bmm(flat.unflatten(1, (self.gates, -1)).permute(1, 2, 0), kept).flatten(0, 1).mul_(self.scale)


def input_product(x: Tensor, weight: Tensor | None) -> Tensor:
    """Return the product of the inputs of all steps with the weights of all gates, to be changed in place."""
    return x.flatten(0, 1).clone() if weight is None else x.flatten(0, 1) @ weight.t()


def input_gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the inputs and of the weights that are wanted from that of their product."""
    of_x = (grad if weight is None else grad @ weight).view_as(x) if wants_x else None
    return of_x, grad.t() @ x.flatten(0, 1) if wants_weight else None


def grads_by_autograd(
    cell: Cell, inputs: Sequence[Tensor | None], states: int, noise: CellNoise, reverse: bool, grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of a layer's inputs, differentiable again, by operations that PyTorch maps over a batch.

    Args:
        cell: What one step computes.
        inputs: Input, initial states and weights.
        states: How many states there are.
        noise: The noise.
        reverse: Whether the layer begins at the end.
        grads: Gradients of the hidden states and of the last states.
    """
    # Views, so that an input's own gradient does not contain that of another one computed from it.
    with torch.enable_grad():
        own = [tensor if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        x, *rest = own
        weights: Any = Weights(*rest[states:])  # type: ignore[arg-type]  # two biases may be none, the others are not
        outputs, last = run_cell(cell, x, tuple(rest[:states]), weights, noise, reverse)  # type: ignore[arg-type]
        wanted = [tensor for tensor in own if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad((outputs, *last), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in own]
