"""The fast way through one layer of a GRU in one direction."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional.autograd import is_batched
from dropkit.functional.recurrent_cells import CellNoise, gru_cell
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

__all__ = ["FastGRU"]


class FastGRU(torch.autograd.Function):
    """A GRU layer with its gradient by hand: x, h, weights, noise, direction -> hidden states, last state."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        weight_ih: Tensor | None,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        noise: CellNoise,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer."""
        inputs = x, h, weight_ih, weight_hh, bias_ih, bias_hh
        steps, batch, size = *x.shape[:2], h.shape[1]
        flat = input_product(x, weight_ih)
        flat = flat if bias_ih is None else flat.add_(bias_ih)
        gates = flat.view(steps, batch, 3, size)
        hidden = torch.zeros_like(flat) if bias_hh is None else bias_hh.repeat(steps * batch, 1)
        hidden = hidden.view_as(gates)
        hs = x.new_empty(steps + 1, batch, size)
        first, last = (steps, 0) if reverse else (0, steps)
        hs[first] = h
        update, new = Update(noise.update, gates[:, :, 0]), zone_bits(noise, 0, gates[:, :, 0])
        product = HiddenProduct(noise.recurrent, weight_hh, h)
        fresh = torch.empty_like(h)
        hs_bits, gates_bits, fresh_bits = (value.view(integers(x.dtype)) for value in (hs, gates, fresh))
        parts = zip(order(steps, reverse), in_order(gates, reverse), in_order(hidden, reverse), strict=True)
        for (step, before, after), now, by_hidden in parts:
            h = hs[before]
            product.add_to(by_hidden.view(batch, -1), h)
            r, z, n = now.unbind(1)
            now[:, :2].add_(by_hidden[:, :2]).sigmoid_()
            n.addcmul_(r, by_hidden[:, 2]).tanh_()
            if update.keep is not None:
                n.mul_(update.scale)
                gates_bits[step, :, 2].bitwise_and_(update.keep[step])
            torch.lerp(n, h, z, out=hs[after] if new is None else fresh)
            if new is not None:
                settle(fresh_bits, hs_bits[before], new[step], hs_bits[after])
        ctx.save_for_backward(*inputs, gates, hidden[:, :, 2], hs)
        ctx.noise, ctx.reverse, ctx.prepared = noise, reverse, (update, new, product)
        return (hs[:-1] if reverse else hs[1:]).clone(), hs[last].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        """Walk back through it."""
        *inputs, gates, hidden_n, hs = ctx.saved_tensors
        grads = grad, grad_h
        if torch.is_grad_enabled() or is_batched(*grads):
            return *grads_by_autograd(gru_cell, inputs, 1, ctx.noise, ctx.reverse, grads), None, None
        x, _, weight_ih, *_ = inputs
        update, new, product = ctx.prepared
        steps, batch, *_ = gates.shape
        before = slice(1, None) if ctx.reverse else slice(-1)
        dhidden, dn_all = torch.empty_like(gates), torch.empty_like(grad)
        dh = Split(grad_h, new)
        other, scale = torch.empty_like(grad_h), torch.full((), update.scale, dtype=x.dtype, device=x.device)
        whole = (dhidden.view(steps, batch, -1), dhidden, gates, *dhidden.unbind(2), *gates.unbind(2))
        parts = zip(range(steps), *whole, dn_all, hidden_n, hs[before], grad, strict=True)
        for step, flat, dgate, gate, dr, dz, dhidden_n, r, z, n, dn, hidden, h, own in in_order(parts, not ctx.reverse):
            dh.value += own
            dh.split(step)
            torch.addcmul(gate, gate, gate, value=-1.0, out=dgate)  # the slopes of the sigmoids
            dz.mul_(torch.sub(h, n, out=other)).mul_(dh.value)
            torch.addcmul(scale, n, n, value=-1.0 / update.scale, out=dn)
            dn.mul_(torch.addcmul(dh.value, dh.value, z, value=-1.0, out=other))
            if update.keep is not None:
                dn.view(update.keep.dtype).bitwise_and_(update.keep[step])
            dr.mul_(hidden).mul_(dn)
            torch.mul(dn, r, out=dhidden_n)
            torch.mul(dh.value, z, out=other)
            product.backward(flat, dh.value)
            dh.value += other
            dh.join()
        wants = ctx.needs_input_grad
        of_hidden = dhidden.view(steps, batch, -1)
        weight_gradient = product.weight_gradient(of_hidden, hs[before]) if wants[3] else None
        bias_gradient = of_hidden.sum((0, 1)) if wants[5] else None
        dhidden[:, :, 2] = dn_all
        flat = dhidden.view(steps * batch, -1)
        of_x, of_weight_ih = input_gradients(flat, x, weight_ih, wants[0], wants[2])
        return (
            of_x,
            dh.value,
            of_weight_ih,
            weight_gradient,
            flat.sum(0) if wants[4] else None,
            bias_gradient,
            None,
            None,
        )
