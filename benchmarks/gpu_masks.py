"""Masks on a GPU are those of a CPU and of NumPy, in eager and in compiled code: a row of benchmarks/gpu.py."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gpu_timing import HERE, P, title
from torch import Tensor

from dropkit import random
from dropkit.functional import dropout

__all__ = ["masks"]

SHAPE = HERE.sizes.masked
KEY, KEYS = 77, range(100, 100 + SHAPE[0])
# Whole, with draws shared by channels and by maps, and in other layouts of memory.
WAYS: tuple[tuple[Callable[[Tensor], Tensor], dict[str, Any]], ...] = (
    (lambda x: x, {}),
    (lambda x: x, {"broadcast_dims": (2, 3)}),
    (lambda x: x, {"broadcast_dims": (1,)}),
    (lambda x: x.mT, {}),
    (lambda x: x[..., 1::2], {}),
    (lambda x: x.contiguous(memory_format=torch.channels_last), {"stream": 3}),
    (torch.flatten, {}),
)


def draws(x: Tensor, p: Any, key: Any, keys: Tensor) -> list[Tensor]:
    """Drop out in all these ways, and slices with keys of their own."""
    whole = [dropout(view(x), p, key=key, **options) for view, options in WAYS]
    return [*whole, dropout(x, p, key=keys)]


def defined(p: float) -> list[Tensor]:
    """Return the masks of `draws` by the definition."""
    shapes = [view(torch.empty(SHAPE)).shape for view, _ in WAYS]
    whole = [random.keep_mask(KEY, shape, p, **options) for shape, (_, options) in zip(shapes, WAYS, strict=True)]
    found = [*whole, np.stack([random.keep_mask(key, SHAPE[1:], p) for key in KEYS])]
    return [torch.from_numpy(mask) for mask in found]


def compare(name: str, found: Sequence[Tensor], p: float, on_cpu: Sequence[Tensor]) -> None:
    """End the process if masks are not those of the definition, or values not near those of a CPU."""
    for way, (one, mask, other) in enumerate(zip(found, defined(p), on_cpu, strict=True)):
        is_alike = torch.allclose(one.cpu(), other, rtol=2**-7)  # a unit in the last place of bfloat16
        if not is_alike or not torch.equal(one.cpu() != 0, mask.expand_as(other)):
            sys.exit(f"a mask on the GPU is not that of the definition: {name}, {one.dtype}, p = {p}, way {way}")


def masks(_: int) -> None:
    """Compare masks, forward and backward; a wrong one ends the process."""
    title("masks")
    on_device = {"device": HERE.device}
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        runs = {"eager": draws}
        if dtype != torch.float16:  # which is compiled as the other half type is
            runs["compiled"] = torch.compile(draws, fullgraph=True)
        x = (torch.rand(SHAPE) + 0.5).to(dtype)
        there = x.to(**on_device).requires_grad_()
        key, keys = torch.tensor(KEY, **on_device), torch.tensor(KEYS, **on_device)
        for p in (P, 0.5):
            on_cpu = draws(x, p, KEY, keys.cpu())
            rate = torch.tensor(p, dtype=torch.float64, **on_device)
            compare("numbers as addresses", draws(there, p, KEY, keys), p, on_cpu)
            for name, run in runs.items():
                found = run(there, rate, key, keys)
                compare(name, found, p, on_cpu)
                gradient(name, there, found, p)
        torch._dynamo.reset()
        print(f"  {dtype}: GPU = CPU = NumPy, {' = '.join(runs)}, bit for bit")
    most()


def gradient(name: str, x: Tensor, found: Sequence[Tensor], p: float) -> None:
    """Compare the masks of the backward pass, of which sums of powers of 2 tell at p = 0.5."""
    grads = [torch.full_like(output, 2.0**way) for way, output in enumerate(found)]
    (total,) = torch.autograd.grad(list(found), x, grads)
    if p == 0.5:
        want = torch.zeros(SHAPE, requires_grad=True)
        views = [*(view(want) for view, _ in WAYS), want]
        both = [2.0 * mask * 2.0**way for way, mask in enumerate(defined(p))]
        (wanted,) = torch.autograd.grad(
            views, want, [each.expand_as(view) for each, view in zip(both, views, strict=True)]
        )
        if not torch.equal(total.cpu().float(), wanted):
            sys.exit(f"a mask of the backward pass is not that of the forward pass: {name}, {x.dtype}")


def most() -> None:
    """Compare the last rows of a tensor whose elements 32 bits do not number."""
    rows, columns = HERE.sizes.most
    x = torch.ones(rows, columns, dtype=torch.bfloat16, device=HERE.device, requires_grad=True)
    output = dropout(x, P, key=KEY)
    (grad,) = torch.autograd.grad(output, x, x.detach())
    last = random.keep_mask(KEY, (3, columns), P, offset=(rows - 3, 0), full_shape=(rows, columns))
    for found in (output, grad):
        if not torch.equal(found[-3:].cpu() != 0, torch.from_numpy(last)):
            sys.exit(f"a mask of {x.numel():,} elements is not that of the definition")
    print(f"  {x.numel():,} elements: GPU = NumPy, forward and backward")
