"""The fast way through one layer of an LSTM in one direction."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import apply_function
from dropkit.functional.recurrent_cells import CellNoise, States, Weights, lstm_cell
from dropkit.functional.recurrent_fast import HiddenProduct, Mask, grads_by_autograd, order, zone_mask

__all__ = ["run_fast"]


class _FastLSTM(torch.autograd.Function):
    """An LSTM layer with its gradient by hand: x, h, c, weights, noise, direction -> hidden states, last states."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        noise: CellNoise,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, batch, size = *x.shape[:2], h.shape[1]
        flat = x.flatten(0, 1) @ weight_ih.t()
        if bias_ih is not None and bias_hh is not None:
            flat += bias_ih + bias_hh
        gates = flat.view(steps, batch, 4, size)
        hs, cs = (x.new_empty(steps + 1, batch, size) for _ in range(2))
        tanh_c = x.new_empty(steps, batch, size)
        first, last = (steps, 0) if reverse else (0, steps)
        hs[first], cs[first] = h, c
        update, (new_h, new_c) = Mask(noise.update, tanh_c.shape), (zone_mask(noise, i, tanh_c.shape) for i in range(2))
        product = HiddenProduct(noise.recurrent, weight_hh, batch)
        product.prepare(h)
        fresh_h, fresh_c = torch.empty_like(h), torch.empty_like(c)
        for step, before, after in order(steps, reverse):
            now = gates[step]
            product.add_to(now.view(batch, -1), hs[before])
            now[:, :2].sigmoid_()
            now[:, 3].sigmoid_()
            i, f, g, o = now.unbind(1)
            g.tanh_()
            if update.drop is not None:
                g.masked_fill_(update.drop[step], 0.0)
            to_c = cs[after] if new_c is None else fresh_c
            torch.mul(f, cs[before], out=to_c).addcmul_(i, g, value=update.scale)
            torch.tanh(to_c, out=tanh_c[step])
            torch.mul(o, tanh_c[step], out=hs[after] if new_h is None else fresh_h)
            if new_c is not None:
                torch.where(new_c[step], fresh_c, cs[before], out=cs[after])
            if new_h is not None:
                torch.where(new_h[step], fresh_h, hs[before], out=hs[after])
        ctx.save_for_backward(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, gates, hs, cs, tanh_c)
        ctx.noise, ctx.reverse = noise, reverse
        return (hs[:-1] if reverse else hs[1:]).clone(), hs[last].clone(), cs[last].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, gates, hs, cs, tanh_c = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = (grad, grad_h, grad_c)
            return *grads_by_autograd(lstm_cell, inputs, 2, ctx.noise, ctx.reverse, grads), None, None
        x, _, _, weight_ih, weight_hh, bias_ih, _ = inputs
        noise, (steps, batch, *_) = ctx.noise, gates.shape
        (new_h, new_c) = (zone_mask(noise, i, tanh_c.shape) for i in range(2))
        before = slice(1, None) if ctx.reverse else slice(-1)
        slopes, through = _slopes(gates, cs[before], tanh_c, Mask(noise.update, tanh_c.shape), new_h)
        product = HiddenProduct(noise.recurrent, weight_hh, batch)
        dh, dc = grad_h.clone(), grad_c.clone()
        for step, _, _ in reversed(order(steps, ctx.reverse)):
            dh += grad[step]
            stays_h = None if new_h is None else dh.masked_fill(new_h[step], 0.0)
            stays_c = None if new_c is None else dc.masked_fill(new_c[step], 0.0)
            if stays_c is not None:
                dc -= stays_c
            dc.addcmul_(dh, through[step])
            slopes[step, :, :3].mul_(dc.unsqueeze(1))
            slopes[step, :, 3].mul_(dh)
            dc *= gates[step, :, 1]
            product.backward(slopes[step].view(batch, -1), dh)
            if stays_c is not None:
                dc += stays_c
            if stays_h is not None:
                dh += stays_h
        dgates = slopes.view(steps, batch, -1)
        flat = dgates.flatten(0, 1)
        wants = ctx.needs_input_grad
        bias = flat.sum(0) if bias_ih is not None and (wants[5] or wants[6]) else None
        return (
            (flat @ weight_ih).view_as(x) if wants[0] else None,
            dh,
            dc,
            flat.t() @ x.flatten(0, 1) if wants[3] else None,
            product.weight_gradient(dgates, hs[before]) if wants[4] else None,
            bias,
            bias,
            None,
            None,
        )


def run_fast(x: Tensor, states: States, weights: Weights, noise: CellNoise, reverse: bool) -> tuple[Tensor, States]:
    """Run a layer as `dropkit.functional.recurrent_cells.run_cell` does."""
    output, *last = apply_function(_FastLSTM, x, *states, *weights[:4], noise, reverse)
    return output, tuple(last)


def _slopes(gates: Tensor, c: Tensor, tanh_c: Tensor, update: Mask, new_h: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return slopes at all steps, before the gates' functions.

    Of the new cell state by three gates, of the new hidden state by the last gate; and of that by the cell state.
    """
    slopes = torch.addcmul(gates, gates, gates, value=-1.0)  # of the sigmoids
    i, _, g, o = gates.unbind(2)
    slopes[:, :, 0].mul_(g).mul_(update.scale)
    slopes[:, :, 1].mul_(c)
    torch.addcmul(i, i * g, g, value=-1.0, out=slopes[:, :, 2])
    slopes[:, :, 3].mul_(tanh_c)
    through = torch.addcmul(o, o * tanh_c, tanh_c, value=-1.0)
    if update.drop is not None:
        slopes[:, :, 2].mul_(update.scale).masked_fill_(update.drop, 0.0)
    if new_h is not None:
        old = ~new_h
        slopes[:, :, 3].masked_fill_(old, 0.0)
        through.masked_fill_(old, 0.0)
    return slopes, through
