"""The fast way through one layer of a GRU in one direction."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import apply_function
from dropkit.functional.recurrent_cells import CellNoise, States, Weights, gru_cell
from dropkit.functional.recurrent_fast import HiddenProduct, Mask, grads_by_autograd, order, zone_mask

__all__ = ["run_fast"]


class _FastGRU(torch.autograd.Function):
    """A GRU layer with its gradient by hand: x, h, weights, noise, direction -> hidden states, last state."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        noise: CellNoise,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        steps, batch, size = *x.shape[:2], h.shape[1]
        flat = x.flatten(0, 1) @ weight_ih.t()
        flat = flat if bias_ih is None else flat.add_(bias_ih)
        gates = flat.view(steps, batch, 3, size)
        hidden = torch.zeros_like(flat) if bias_hh is None else bias_hh.repeat(steps * batch, 1)
        hidden = hidden.view_as(gates)
        hs = x.new_empty(steps + 1, batch, size)
        first, last = (steps, 0) if reverse else (0, steps)
        hs[first] = h
        update, new = Mask(noise.update, gates[:, :, 0].shape), zone_mask(noise, 0, gates[:, :, 0].shape)
        product = HiddenProduct(noise.recurrent, weight_hh, batch)
        product.prepare(h)
        fresh = torch.empty_like(h)
        for step, before, after in order(steps, reverse):
            product.add_to(hidden[step].view(batch, -1), hs[before])
            now = gates[step]
            now[:, :2].add_(hidden[step, :, :2]).sigmoid_()
            r, z, n = now.unbind(1)
            n.addcmul_(r, hidden[step, :, 2]).tanh_()
            if update.drop is not None:
                n.mul_(update.scale).masked_fill_(update.drop[step], 0.0)
            torch.lerp(n, hs[before], z, out=hs[after] if new is None else fresh)
            if new is not None:
                torch.where(new[step], fresh, hs[before], out=hs[after])
        ctx.save_for_backward(x, h, weight_ih, weight_hh, bias_ih, bias_hh, gates, hidden[:, :, 2], hs)
        ctx.noise, ctx.reverse = noise, reverse
        return (hs[:-1] if reverse else hs[1:]).clone(), hs[last].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, gates, hidden_n, hs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *grads_by_autograd(gru_cell, inputs, 1, ctx.noise, ctx.reverse, (grad, grad_h)), None, None
        x, _, weight_ih, weight_hh, *_ = inputs
        noise, (steps, batch, *_) = ctx.noise, gates.shape
        new = zone_mask(noise, 0, hidden_n.shape)
        before = slice(1, None) if ctx.reverse else slice(-1)
        slopes, slope_n, stays = _slopes(gates, hidden_n, hs[before], Mask(noise.update, hidden_n.shape), new)
        product = HiddenProduct(noise.recurrent, weight_hh, batch)
        dh, kept = grad_h.clone(), torch.empty_like(grad_h)
        for step, _, _ in reversed(order(steps, ctx.reverse)):
            dh += grad[step]
            slopes[step].mul_(dh.unsqueeze(1))
            slope_n[step].mul_(dh)
            torch.mul(dh, stays[step], out=kept)
            product.backward(slopes[step].view(batch, -1), dh)
            dh += kept
        wants = ctx.needs_input_grad
        by_hidden = slopes.view(steps, batch, -1)
        weight_gradient = product.weight_gradient(by_hidden, hs[before]) if wants[3] else None
        bias_gradient = by_hidden.sum((0, 1)) if wants[5] else None
        slopes[:, :, 2] = slope_n
        flat = slopes.view(steps * batch, -1)
        return (
            (flat @ weight_ih).view_as(x) if wants[0] else None,
            dh,
            flat.t() @ x.flatten(0, 1) if wants[2] else None,
            weight_gradient,
            flat.sum(0) if wants[4] else None,
            bias_gradient,
            None,
            None,
        )


def run_fast(x: Tensor, states: States, weights: Weights, noise: CellNoise, reverse: bool) -> tuple[Tensor, States]:
    """Run a layer as `dropkit.functional.recurrent_cells.run_cell` does."""
    output, *last = apply_function(_FastGRU, x, *states, *weights[:4], noise, reverse)
    return output, tuple(last)


def _slopes(
    gates: Tensor, hidden_n: Tensor, h: Tensor, update: Mask, new: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slopes of the new state at all steps.

    By what the hidden state adds to the gates, by the candidate before its tanh, and by the state before, directly.
    """
    r, z, n = gates.unbind(2)
    slope_n = torch.addcmul(torch.full_like(n, update.scale), n, n, value=-1.0 / update.scale).mul_(1.0 - z)
    if update.drop is not None:
        slope_n.masked_fill_(update.drop, 0.0)
    slopes = torch.addcmul(gates, gates, gates, value=-1.0)  # of the sigmoids
    slopes[:, :, 1].mul_(h - n)
    stays = z.clone()
    if new is not None:
        old = ~new
        slope_n.masked_fill_(old, 0.0)
        slopes[:, :, 1].masked_fill_(old, 0.0)
        stays.masked_fill_(old, 1.0)
    slopes[:, :, 0].mul_(slope_n).mul_(hidden_n)
    torch.mul(slope_n, r, out=slopes[:, :, 2])
    return slopes, slope_n, stays
