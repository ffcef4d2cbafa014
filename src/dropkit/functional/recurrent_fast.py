"""What the fast ways through LSTM and GRU have in common.

They run in plain eager code: one matrix product for the inputs of all steps, one a step for all gates, and a backward
pass by hand, whose factors are prepared for all steps at once. The plain operations of
`dropkit.functional.recurrent_cells` serve whatever is asked beyond that, second derivatives too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from dropkit.functional.autograd import traced
from dropkit.functional.recurrent_cells import Cell, CellNoise, Kept, Weights, run_cell
from dropkit.kernels.portable import survivor_scale

__all__ = ["HiddenProduct", "Mask", "fits", "grads_by_autograd", "order", "zone_mask"]


def fits(x: Tensor, states: Sequence[Tensor], weights: Weights, noise: CellNoise) -> bool:
    """Tell whether a layer can go the fast way."""
    tensors = (x, *states, *(weight for weight in weights if weight is not None))
    return (
        not traced()
        and forward_ad._current_level < 0
        and weights.hr is None
        and x.dtype in (torch.float32, torch.float64)
        and all(type(tensor) in (Tensor, Parameter) and tensor.dtype == x.dtype for tensor in tensors)
        and all(zone is None or zone.mask is not None for zone in noise.zones)
    )


def order(steps: int, reverse: bool) -> list[tuple[int, int, int]]:
    """Return every step with where the state before it and the state after it are kept, in the order of computing."""
    if reverse:
        return [(step, step + 1, step) for step in reversed(range(steps))]
    return [(step, step, step + 1) for step in range(steps)]


class Mask:
    """What is dropped of a value at each step, and the scale of the rest."""

    def __init__(self, kept: Kept | None, shape: Sequence[int]) -> None:
        self.drop = None if kept is None else ~kept.mask.expand(shape)
        self.scale = 1.0 if kept is None else float(survivor_scale(kept.threshold))


def zone_mask(noise: CellNoise, state: int, shape: Sequence[int]) -> Tensor | None:
    """Return where a state takes its new value, for all steps; those after a sequence's end keep the old one."""
    zone = noise.zones[state]
    masks = [noise.active] if noise.active is not None else []
    masks += [zone.mask] if zone is not None and zone.mask is not None else []
    if not masks:
        return None
    return (masks[0] & masks[1] if len(masks) == 2 else masks[0]).expand(shape)


class HiddenProduct:
    """The product of the hidden state, dropped out, with the weights of all gates; forwards and backwards.

    Masks of a gate each take one batched product instead of one product; the scale is put into the weights.
    """

    def __init__(self, kept: Kept | None, weight: Tensor, batch: int) -> None:
        self.keep = None if kept is None else kept.mask.expand(batch, -1, -1).transpose(0, 1)
        gates = 1 if self.keep is None else len(self.keep)
        self.scale = 1.0 if kept is None else float(survivor_scale(kept.threshold))
        self.weight = weight.unflatten(0, (gates, -1)) * self.scale if kept is not None else weight.unsqueeze(0)
        self.zero = weight.new_zeros(())

    def prepare(self, h: Tensor) -> None:
        """Get memory for the steps forward."""
        self.transposed = self.weight.transpose(1, 2).contiguous()
        self.dropped = h.new_empty(len(self.weight), *h.shape)
        self.product = h.new_empty(len(self.weight), len(h), self.weight.shape[1])

    def add_to(self, gates: Tensor, h: Tensor) -> None:
        """Add the product of a step to the gates, (batch, gates * units)."""
        if self.keep is not None:
            h = torch.where(self.keep, h, self.zero, out=self.dropped)
        if len(self.weight) == 1:
            gates.addmm_(h.view(len(gates), -1), self.transposed[0])
        else:
            torch.bmm(h, self.transposed, out=self.product)
            gates.unflatten(1, (len(self.weight), -1)).add_(self.product.transpose(0, 1))

    def backward(self, grad: Tensor, out: Tensor) -> None:
        """Write the gradient of the hidden state before a step, given that of its gates."""
        if len(self.weight) == 1:
            torch.mm(grad, self.weight[0], out=out)
            if self.keep is not None:
                out.masked_fill_(self.drop[0], 0.0)
            return
        by_gate = grad.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        torch.sum(torch.bmm(by_gate, self.weight).masked_fill_(self.drop, 0.0), 0, out=out)

    @property
    def drop(self) -> Tensor:
        """What is dropped, by gate."""
        assert self.keep is not None  # noqa: S101
        return ~self.keep

    def weight_gradient(self, grad: Tensor, before: Tensor) -> Tensor:
        """Return the gradient of the weights from those of all gates, (steps, batch, gates * units)."""
        if self.keep is None:
            return grad.flatten(0, 1).t() @ before.flatten(0, 1)
        dropped = torch.where(self.keep.unsqueeze(1), before, self.zero).flatten(1, 2)
        by_gate = grad.flatten(0, 1).unflatten(1, (len(self.keep), -1)).permute(1, 2, 0)
        return torch.bmm(by_gate, dropped).flatten(0, 1) * self.scale


def grads_by_autograd(
    cell: Cell, inputs: Sequence[Tensor | None], states: int, noise: CellNoise, reverse: bool, grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of a layer's inputs, differentiable again.

    Args:
        cell: What one step computes.
        inputs: Input, initial states and weights.
        states: How many states there are.
        noise: The noise.
        reverse: Whether the layer begins at the end.
        grads: Gradients of the hidden states and of the last states.
    """
    # Views, so that an input's own gradient does not contain that of another one computed from it.
    own = [tensor if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    x, *rest = own
    weights: Any = Weights(*rest[states:])  # type: ignore[arg-type]  # two biases may be none, the others are not
    outputs, last = run_cell(cell, x, tuple(rest[:states]), weights, noise, reverse)  # type: ignore[arg-type]
    wanted = [tensor for tensor in own if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad((outputs, *last), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in own]
