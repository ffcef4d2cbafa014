"""The fast way through one layer of an LSTM in one direction."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import apply_function
from dropkit.functional.recurrent_cells import CellNoise, States, Weights, lstm_cell
from dropkit.functional.recurrent_fast import (
    HiddenProduct,
    Update,
    grads_by_autograd,
    in_order,
    integers,
    order,
    settle,
    zone_bits,
)

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
        inputs = x, h, c, weight_ih, weight_hh, bias_ih, bias_hh
        steps, batch, size = *x.shape[:2], h.shape[1]
        flat = x.flatten(0, 1) @ weight_ih.t()
        if bias_ih is not None and bias_hh is not None:
            flat += bias_ih + bias_hh
        gates = flat.view(steps, batch, 4, size)
        hs, cs = (x.new_empty(steps + 1, batch, size) for _ in range(2))
        tanh_c = x.new_empty(steps, batch, size)
        first, last = (steps, 0) if reverse else (0, steps)
        hs[first], cs[first] = h, c
        update = Update(noise.update, tanh_c)
        new_h, new_c = (zone_bits(noise, state, tanh_c) for state in range(2))
        product = HiddenProduct(noise.recurrent, weight_hh, h)
        fresh_h, fresh_c = torch.empty_like(h), torch.empty_like(c)
        whole = integers(x.dtype)
        fresh_h_bits, fresh_c_bits, g_bits = (value.view(whole) for value in (fresh_h, fresh_c, gates[:, :, 2]))
        h_at, c_at, h_bits, c_bits = (value.unbind() for value in (hs, cs, hs.view(whole), cs.view(whole)))
        parts = zip(
            order(steps, reverse),
            *(in_order(part, reverse) for part in (flat.view(steps, batch, -1), gates[:, :, :2], *gates.unbind(2))),
            strict=True,
        )
        for (step, before, after), now, i_f, i, f, g, o in parts:
            product.add_to(now, h_at[before])
            i_f.sigmoid_()
            o.sigmoid_()
            g.tanh_()
            if update.keep is not None:
                g_bits[step].bitwise_and_(update.keep[step])
            to_c = c_at[after] if new_c is None else fresh_c
            torch.mul(f, c_at[before], out=to_c).addcmul_(i, g, value=update.scale)
            tanh = torch.tanh(to_c, out=tanh_c[step])
            torch.mul(o, tanh, out=h_at[after] if new_h is None else fresh_h)
            if new_c is not None:
                settle(fresh_c_bits, c_bits[before], new_c[step], c_bits[after])
            if new_h is not None:
                settle(fresh_h_bits, h_bits[before], new_h[step], h_bits[after])
        ctx.save_for_backward(*inputs, gates, hs, cs, tanh_c)
        ctx.noise, ctx.reverse, ctx.prepared = noise, reverse, (update, new_h, new_c, product)
        return (hs[:-1] if reverse else hs[1:]).clone(), hs[last].clone(), cs[last].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, gates, hs, cs, tanh_c = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = (grad, grad_h, grad_c)
            return *grads_by_autograd(lstm_cell, inputs, 2, ctx.noise, ctx.reverse, grads), None, None
        x, _, _, weight_ih, _, bias_ih, _ = inputs
        steps, batch, *_ = gates.shape
        update, new_h, new_c, product = ctx.prepared
        before = slice(1, None) if ctx.reverse else slice(-1)
        slopes, through = _slopes(gates, cs[before], tanh_c, update, new_h)
        dh, dc = grad_h.clone(), grad_c.clone()
        stays_h, stays_c = torch.empty_like(dh), torch.empty_like(dc)
        dh_bits, dc_bits, stays_h_bits, stays_c_bits = (
            value.view(integers(x.dtype)) for value in (dh, dc, stays_h, stays_c)
        )
        old_h, old_c = (None if new is None else ~new for new in (new_h, new_c))
        parts = zip(
            range(steps),
            slopes.view(steps, batch, -1),
            slopes[:, :, :3],
            slopes[:, :, 3],
            gates[:, :, 1],
            through,
            grad,
            strict=True,
        )
        for step, now, of_c, of_h, f, by_c, own in in_order(parts, not ctx.reverse):
            dh += own
            if old_h is not None:
                torch.bitwise_and(dh_bits, old_h[step], out=stays_h_bits)
            if old_c is not None and new_c is not None:
                torch.bitwise_and(dc_bits, old_c[step], out=stays_c_bits)
                dc_bits.bitwise_and_(new_c[step])
            dc.addcmul_(dh, by_c)
            of_c.mul_(dc.unsqueeze(1))
            of_h.mul_(dh)
            dc *= f
            product.backward(now, dh)
            if old_c is not None:
                dc += stays_c
            if old_h is not None:
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


def _slopes(gates: Tensor, c: Tensor, tanh_c: Tensor, update: Update, new_h: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return slopes at all steps, before the gates' functions.

    Of the new cell state by three gates, of the new hidden state by the last gate; and of that by the cell state.
    """
    slopes = torch.addcmul(gates, gates, gates, value=-1.0)  # of the sigmoids
    i, _, g, o = gates.unbind(2)
    slopes[:, :, 0].mul_(g)
    slopes[:, :, 1].mul_(c)
    torch.addcmul(i, i * g, g, value=-1.0, out=slopes[:, :, 2])
    slopes[:, :, 3].mul_(tanh_c)
    through = torch.addcmul(o, o * tanh_c, tanh_c, value=-1.0)
    as_bits = slopes.view(integers(slopes.dtype))
    if update.keep is not None:
        slopes[:, :, ::2].mul_(update.scale)
        as_bits[:, :, 2].bitwise_and_(update.keep)
    if new_h is not None:
        as_bits[:, :, 3].bitwise_and_(new_h)
        through.view(new_h.dtype).bitwise_and_(new_h)
    return slopes, through
