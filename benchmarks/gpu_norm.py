"""Dropout, residual and normalisation on a GPU against PyTorch's eager and compiled code: rows of benchmarks/gpu.py.

Forward and backward in bfloat16. The process fails if a mask is wrong.
"""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from gpu_timing import P, milliseconds, show, verdict
from torch import Tensor

from dropkit import random
from dropkit.functional import activation_dropout, dropout_add, dropout_add_layer_norm, dropout_add_rms_norm

__all__ = ["norm"]

ELEMENTS = 2**26
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
        (2.0, 1.2),
    ),
    "dropout + residual + RMSNorm": (
        lambda x, residual, weight, _: (dropout_add_rms_norm(x, residual, weight, P),),
        eager_root,
        (2.0, 1.2),
    ),
    "bias + GELU + dropout": (
        lambda x, _, __, bias: (activation_dropout(x, "gelu", P, bias=bias),),
        eager_activation,
        None,
    ),
    "dropout + residual": (lambda x, residual, *_: (dropout_add(x, residual, P),), eager_sum, None),
}


def step(run: Callable[..., Outputs], tensors: Sequence[Tensor], grad: Tensor) -> Callable[[], None]:
    """Return forward and backward, with the same gradient for every output."""

    def both() -> None:
        found = run(*tensors)
        torch.autograd.grad(found, tensors, [grad] * len(found), allow_unused=True)

    return both


def check() -> None:
    """Compare results and masks with those of a CPU; a wrong one ends the process."""
    x, weight = torch.randn(257, 1032), torch.randn(1032)
    keep = torch.from_numpy(random.keep_mask(77, x.shape, P))
    for run in (dropout_add_layer_norm, dropout_add_rms_norm):
        on_cpu, on_gpu = (
            run(*(each.to(device) for each in (x, x.flip(0), weight)), p=P, prenorm=True, key=77)
            for device in ("cpu", "cuda")
        )
        worst = max((one - other.cpu()).abs().max().item() for one, other in zip(on_cpu, on_gpu, strict=True))
        _, alone = run(x.cuda(), torch.zeros_like(x).cuda(), p=P, prenorm=True, key=77)
        if worst > 1e-4 or not torch.equal(alone.cpu() != 0, keep & (x != 0)):
            sys.exit(f"{run.__name__} on the GPU is not that of the CPU: {worst}")
    print("  results and masks are those of the CPU")


def measure(columns: int, rounds: int) -> None:
    shape = (ELEMENTS // columns, columns)
    sizes = (shape, shape, (columns,), (columns,))
    tensors = [torch.randn(size, device="cuda", dtype=DTYPE, requires_grad=True) for size in sizes]
    grad = torch.randn(shape, device="cuda", dtype=DTYPE)
    for name, (ours, theirs, bars) in WORK.items():
        if bars is None and columns != 4096:
            continue
        print(f"\n{name}, {shape[0]:,} rows of {columns:,}, forward and backward", flush=True)
        compiled = torch.compile(theirs)
        sides = {
            side: step(run, tensors, grad)
            for side, run in (("dropkit", ours), ("eager", theirs), ("compiled", compiled))
        }
        found = milliseconds(sides, rounds)
        show(found)
        for side, bar in zip(("eager", "compiled"), bars or (), strict=False):
            verdict(f"x faster than {side}", found[side] / found["dropkit"], ">=", bar)
        torch._dynamo.reset()


def norm(rounds: int) -> None:
    """Print all rows."""
    print("\nnormalisation")
    check()
    for columns in (1024, 4096, 8192):
        measure(columns, rounds)
