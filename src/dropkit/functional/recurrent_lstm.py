"""The fast way through one layer of an LSTM in one direction."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import is_batched
from dropkit.functional.recurrent_cells import CellNoise, lstm_cell
from dropkit.functional.recurrent_fast import (
    HiddenProduct,
    Split,
    Update,
    grads_by_autograd,
    in_order,
    input_gradients,
    input_product,
    integers,
    order,
    settle,
    zone_bits,
)

__all__ = ["FastLSTM"]


class FastLSTM(torch.autograd.Function):
    """An LSTM layer with its gradient by hand: x, h, c, weights, noise, direction -> hidden states, last states."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        noise: CellNoise,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer."""
        inputs = x, h, c, weight_ih, weight_hh, bias_ih, bias_hh
        steps, batch, size = *x.shape[:2], h.shape[1]
        flat = input_product(x, weight_ih)
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
        """Walk back through it."""
        *inputs, gates, hs, cs, tanh_c = ctx.saved_tensors
        grads = grad, grad_h, grad_c
        if torch.is_grad_enabled() or is_batched(*grads):
            return *grads_by_autograd(lstm_cell, inputs, 2, ctx.noise, ctx.reverse, grads), None, None
        x, _, _, weight_ih, _, bias_ih, _ = inputs
        update, new_h, new_c, product = ctx.prepared
        steps, batch, *_ = gates.shape
        before = slice(1, None) if ctx.reverse else slice(-1)
        dgates = torch.empty_like(gates)
        dh, dc = Split(grad_h, new_h), Split(grad_c, new_c)
        slope, scaled = torch.empty_like(grad_h), torch.empty_like(grad_c)
        g_bits = dgates[:, :, 2].view(integers(x.dtype))
        whole = (dgates.view(steps, batch, -1), dgates[:, :, ::2], dgates, gates, *dgates.unbind(2), *gates.unbind(2))
        parts = zip(range(steps), *whole, cs[before], tanh_c, grad, strict=True)
        for step, flat, dig, dgate, gate, di, df, dg, do, i, f, g, o, c, tanh, own in in_order(parts, not ctx.reverse):
            dh.value += own
            dh.split(step)
            dc.split(step)
            torch.addcmul(gate, gate, gate, value=-1.0, out=dgate)  # the slopes of the sigmoids
            do.mul_(tanh).mul_(dh.value)
            torch.mul(tanh, tanh, out=slope)
            dc.value.addcmul_(dh.value, torch.addcmul(o, o, slope, value=-1.0, out=slope))
            df.mul_(c).mul_(dc.value)
            di.mul_(g)
            torch.mul(g, g, out=slope)
            torch.addcmul(i, i, slope, value=-1.0, out=dg)
            dig.mul_(torch.mul(dc.value, update.scale, out=scaled).unsqueeze(1))
            if update.keep is not None:
                g_bits[step].bitwise_and_(update.keep[step])
            dc.value *= f
            product.backward(flat, dh.value)
            dc.join()
            dh.join()
        dgates = dgates.view(steps, batch, -1)
        flat = dgates.flatten(0, 1)
        wants = ctx.needs_input_grad
        bias = flat.sum(0) if bias_ih is not None and (wants[5] or wants[6]) else None
        of_x, of_weight_ih = input_gradients(flat, x, weight_ih, wants[0], wants[3])
        return (
            of_x,
            dh.value,
            dc.value,
            of_weight_ih,
            product.weight_gradient(dgates, hs[before]) if wants[4] else None,
            bias,
            bias,
            None,
            None,
        )
