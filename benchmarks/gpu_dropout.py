"""Dropout on a GPU against a copy of memory and PyTorch's: rows of benchmarks/gpu.py."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_timing import ADDRESS, HERE, P, milliseconds, show, title, verdict
from torch import Tensor

from dropkit.functional import dropout

__all__ = ["backward", "copy", "small"]


def ours(x: Tensor) -> Tensor:
    return dropout(x, P)


def theirs(x: Tensor) -> Tensor:
    return F.dropout(x, P)


def copy(rounds: int) -> None:
    """Forward, beside a copy."""
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(HERE.sizes.large, device=HERE.device, dtype=dtype)
        sides = {"copy": x.clone, "dropkit": lambda x=x: ours(x), "eager": lambda x=x: theirs(x)}
        title(f"{dtype}, {x.numel():,} elements, forward")
        found = milliseconds(sides, rounds)
        size = 2.0 * x.numel() * x.element_size()
        show(found, {"copy": size, "dropkit": size, "eager": size + x.numel()})  # which writes a mask of bytes
        verdict("share of a copy's bandwidth", found["copy"] / found["dropkit"], ">=", 0.9)
        del x, sides
        HERE.free()


def backward(rounds: int) -> None:
    """Forward and backward, beside eager and compiled code."""
    for dtype, bar in ((torch.bfloat16, 1.2), (torch.float32, 1.05)):
        x = torch.randn(HERE.sizes.large, device=HERE.device, dtype=dtype, requires_grad=True)
        grad = torch.randn_like(x)

        def both(run: Callable[[Tensor], Tensor], x: Tensor = x, grad: Tensor = grad) -> Callable[[], object]:
            return lambda: torch.autograd.grad(run(x), x, grad)

        title(f"{dtype}, {x.numel():,} elements, forward and backward")
        sides = {"dropkit": both(ours), "eager": both(theirs), "compiled": both(torch.compile(theirs))}
        found = milliseconds(sides, rounds)
        size = 4.0 * x.numel() * x.element_size()
        show(found, {"dropkit": size, "eager": size + 2 * x.numel()})
        verdict("x faster than eager", found["eager"] / found["dropkit"], ">=", bar)
        verdict("x faster than compiled", found["compiled"] / found["dropkit"], ">=", 1)
        kept = HERE.kept(lambda x=x: ours(x)) / x.numel()
        verdict("bytes an element kept for the backward pass", kept, "<=", ADDRESS)
        del x, grad, sides, both
        HERE.free()


def small(rounds: int) -> None:
    """Launches alone, in CUDA graphs: with a key drawn at every call, and with the key of an address."""
    sizes = HERE.sizes
    x = torch.randn(sizes.small, device=HERE.device, requires_grad=True)
    grad, key = torch.ones_like(x), torch.tensor(77, device=HERE.device)
    title(f"{x.numel():,} elements, {sizes.repeats} forward and backward passes in a CUDA graph")

    def step(run: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def several() -> None:
            for _ in range(sizes.repeats):
                torch.autograd.grad(run(x), x, grad)

        return several

    sides = {"dropkit": ours, "dropkit, a key given": lambda x: dropout(x, P, key=key), "eager": theirs}
    found = milliseconds({name: HERE.captured(step(run)) for name, run in sides.items()}, rounds)
    show(found)
    for name in ("dropkit", "dropkit, a key given"):
        verdict(f"{name}: x as fast as eager", found["eager"] / found[name], ">=", 1)
