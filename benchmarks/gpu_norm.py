"""Dropout, residual and normalisation on a GPU against PyTorch's eager and compiled code: a row of benchmarks/gpu.py.

Forward and backward in bfloat16, and what is kept in between. The process fails if a mask is wrong.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_timing import ADDRESS, HERE, P, milliseconds, show, title, verdict
from torch import Tensor

from dropkit import random
from dropkit.functional import activation_dropout, dropout_add, dropout_add_layer_norm, dropout_add_rms_norm

__all__ = ["norm"]

DTYPE = torch.bfloat16
Outputs = tuple[Tensor, ...]


def eager_layer(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
    return (F.layer_norm(residual + F.dropout(x, P), x.shape[-1:], weight, bias),)


def eager_layer_and_sum(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
    total = residual + F.dropout(x, P)
    return F.layer_norm(total, x.shape[-1:], weight, bias), total


def eager_root(x: Tensor, residual: Tensor, weight: Tensor, _: Tensor) -> Outputs:
    return (F.rms_norm(residual + F.dropout(x, P), x.shape[-1:], weight),)


def eager_activation(x: Tensor, _: Tensor, __: Tensor, bias: Tensor) -> Outputs:
    return (F.dropout(F.gelu(x + bias), P),)


def eager_sum(x: Tensor, residual: Tensor, _: Tensor, __: Tensor) -> Outputs:
    return (residual + F.dropout(x, P),)


# Ours, PyTorch's, and how many times as fast ours is to be as eager and as compiled code, if there is a bar.
WORK: dict[str, tuple[Callable[..., Outputs], Callable[..., Outputs], tuple[float, float] | None]] = {
    "dropout + residual + LayerNorm": (
        lambda x, residual, *columns: (dropout_add_layer_norm(x, residual, *columns, P),),
        eager_layer,
        (2.0, 1.2),
    ),
    "the same, with the sum": (
        lambda x, residual, *columns: dropout_add_layer_norm(x, residual, *columns, P, prenorm=True),
        eager_layer_and_sum,
        None,
    ),
    "dropout + residual + RMSNorm": (
        lambda x, residual, weight, _: (dropout_add_rms_norm(x, residual, weight, P),),
        eager_root,
        None,
    ),
    "bias + GELU + dropout": (
        lambda x, _, __, bias: (activation_dropout(x, "gelu", P, bias=bias),),
        eager_activation,
        None,
    ),
    "dropout + residual": (lambda x, residual, *_: (dropout_add(x, residual, P),), eager_sum, None),
}

# PyTorch's without dropout: ours is to keep no more for the backward pass, but for the key. PyTorch would keep the sum
# with a bias, ours what was given.
KEPT: dict[str, Callable[..., Outputs]] = {
    "dropout + residual + LayerNorm": lambda x, residual, *columns: (
        F.layer_norm(residual + x, x.shape[-1:], *columns),
    ),
    "bias + GELU + dropout": lambda x, *_: (F.gelu(x),),
}


def norm(rounds: int) -> None:
    """Print all tables: what has a bar for every width, the rest for the first."""
    check()
    first, *others = HERE.sizes.columns
    for columns in (first, *others):
        for name, (_, _, bars) in WORK.items():
            if bars is not None or columns == first:
                measure(name, columns, rounds)


def check() -> None:
    """Compare results and masks with those of a CPU; a wrong one ends the process."""
    shape = HERE.sizes.compared
    x, weight = torch.randn(shape), torch.randn(shape[1])
    keep = torch.from_numpy(random.keep_mask(77, x.shape, P))
    for run in (dropout_add_layer_norm, dropout_add_rms_norm):
        on_cpu, on_gpu = (
            run(*(each.to(device) for each in (x, x.flip(0), weight)), p=P, prenorm=True, key=77)
            for device in ("cpu", HERE.device)
        )
        worst = max((one - other.cpu()).abs().max().item() for one, other in zip(on_cpu, on_gpu, strict=True))
        there = x.to(HERE.device)
        _, alone = run(there, torch.zeros_like(there), p=P, prenorm=True, key=77)
        if worst > 1e-4 or not torch.equal(alone.cpu() != 0, keep & (x != 0)):
            sys.exit(f"{run.__name__} on the GPU is not that of the CPU: {worst}")
    title("normalisation\n  results and masks are those of the CPU")


def measure(name: str, columns: int, rounds: int) -> None:
    """Time forward and backward."""
    ours, theirs, bars = WORK[name]
    shape = (HERE.sizes.normalised // columns, columns)
    sizes = (shape, shape, (columns,), (columns,))
    tensors = [torch.randn(size, device=HERE.device, dtype=DTYPE, requires_grad=True) for size in sizes]
    grad = torch.randn(shape, device=HERE.device, dtype=DTYPE)
    title(f"{name}, {DTYPE}, {shape[0]:,} rows of {columns:,}, forward and backward")

    def both(run: Callable[..., Outputs]) -> Callable[[], object]:
        def call() -> None:
            found = run(*tensors)
            # The same gradient for every output.
            torch.autograd.grad(found, tensors, [grad] * len(found), allow_unused=True)

        return call

    found = milliseconds(
        {"dropkit": both(ours), "eager": both(theirs), "compiled": both(torch.compile(theirs))}, rounds
    )
    show(found)
    for side, bar in zip(("eager", "compiled"), bars or (None, None), strict=True):
        verdict(f"x faster than {side}", found[side] / found["dropkit"], ">=", bar)
    if name in KEPT:
        without = HERE.kept(lambda: KEPT[name](*tensors)[0])
        more = HERE.kept(lambda: ours(*tensors)[0]) - without
        verdict("bytes an element kept, beside PyTorch's without dropout", more / tensors[0].numel(), "<=", ADDRESS)
    torch._dynamo.reset()
    HERE.free()
