"""Dropout done plainly, with room for one fault at a time: what the contract's checks are tried on."""

from typing import Any

import torch
from torch import Tensor

from dropkit import random
from tests.helpers.contract import Operation

FAULTS = (
    "another mask in the backward pass", "copies where nothing is dropped", "divides by the rate",
    "draws where nothing is dropped", "drops to negative zero", "forgets the memory format",
    "gradient without a mask", "gradient without a scale", "half types scale by a rounded factor",
    "keep and drop swapped", "keeps a mask for the backward pass", "mask in the order of memory",
    "mask of what is dropped", "mask that depends on the type", "multiplies by the mask", "NaN at a rate of one",
    "never scales", "one mask for ever", "scale applied twice", "scale of p rather than of the realised rate",
    "scales in evaluation", "works in place",
)  # fmt: skip


def double(fault: str = "") -> Operation:
    """An operation that keeps the contract but for one fault."""

    def operation(
        x: Tensor,
        p: float = 0.5,
        training: bool = True,
        *,
        key: int | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
    ) -> Any:
        if (p == 0 and mask is None) or not training:
            output, keep = _idle(x, p, fault), torch.ones(x.shape, dtype=torch.bool)
            return (output, keep) if return_mask else output
        if mask is None and key is None:
            key = 0 if fault == "one mask for ever" else int(torch.randint(0, 2**63 - 1, ()))
        keep = _drawn(x, p, key, fault) if mask is None else mask & (p < 1)
        output = _Double.apply(x, keep, p, key, fault)
        if fault == "works in place" and 0 not in x.stride():
            output = x.detach().copy_(output)
        if fault == "mask of what is dropped":
            keep = ~keep
        return (output, keep) if return_mask else output

    return operation


def _idle(x: Tensor, p: float, fault: str) -> Tensor:
    if fault == "draws where nothing is dropped":
        torch.rand(())
    if fault == "copies where nothing is dropped":
        return x.clone()
    return x * (1 - p) if fault == "scales in evaluation" else x


def _drawn(x: Tensor, p: float, key: int, fault: str) -> Tensor:
    if fault == "mask that depends on the type" and x.dtype == torch.float64:
        key ^= 1
    if fault != "mask in the order of memory":
        return _mask(key, x.shape, p)
    order = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    drawn = _mask(key, tuple(x.shape[axis] for axis in order), p)
    return drawn.permute([order.index(axis) for axis in range(x.dim())])


def _mask(key: int, shape: tuple[int, ...], p: float) -> Tensor:
    return torch.from_numpy(random.keep_mask(key, shape, p))


def _factor(p: float, dtype: torch.dtype, fault: str) -> float:
    factor = 2**32 / max(2**32 - random.threshold(p), 1)
    if fault == "half types scale by a rounded factor":
        return torch.tensor(factor).to(dtype).item()
    if fault == "scale of p rather than of the realised rate" and p < 1:
        return 1 / (1 - p)
    return {"scale applied twice": factor**2, "divides by the rate": 1 / (p or 1), "never scales": 1.0}.get(
        fault, factor
    )


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, keep: Tensor, p: float, key: int | None, fault: str) -> Tensor:
        real = torch.view_as_real(x) if x.is_complex() else x
        drop = (keep if fault == "keep and drop swapped" else ~keep).expand(x.shape)
        drop = drop.unsqueeze(-1) if x.is_complex() else drop
        computing = torch.float64 if real.dtype == torch.float64 else torch.float32
        values = real.to(computing) * torch.tensor(_factor(p, real.dtype, fault), dtype=computing)
        filler = {"drops to negative zero": -0.0, "NaN at a rate of one": torch.nan if p == 1 else 0.0}.get(fault, 0.0)
        values = values * ~drop if fault == "multiplies by the mask" else values.masked_fill_(drop, filler)
        values = values.to(real.dtype)
        if fault == "forgets the memory format":
            values = values.contiguous()
        return torch.view_as_complex(values) if x.is_complex() else values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, keep, ctx.p, ctx.key, ctx.fault = inputs
        ctx.shape = x.shape
        if ctx.key is None or ctx.fault == "keeps a mask for the backward pass":
            ctx.save_for_backward(keep)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        keep = ctx.saved_tensors[0] if ctx.saved_tensors else _mask(ctx.key, ctx.shape, ctx.p)
        fault = ctx.fault
        if fault == "another mask in the backward pass" and ctx.key is not None:
            keep = _mask(ctx.key + 1, ctx.shape, ctx.p)
        if fault == "gradient without a mask":
            keep = torch.ones_like(keep)
        if fault == "gradient without a scale":
            fault = "never scales"
        return _Double.apply(gradient, keep, ctx.p, ctx.key, fault), None, None, None, None
