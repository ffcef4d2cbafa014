"""Dropout inside compiled and trained models on a GPU: rows of benchmarks/gpu.py."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_timing import ADDRESS, HERE, P, milliseconds, show, title, verdict
from torch import Tensor, nn

import dropkit
from dropkit.functional import autograd, dropout, scaled_dot_product_attention

__all__ = ["fusion", "memory"]

Chain = Callable[[Tensor, Tensor], Tensor]


def chain_of(drop: Callable[..., Tensor], is_fused: bool) -> Chain:
    """Return compiled code in which dropout stands between pointwise operations.

    Args:
        drop: Dropout, of one library or the other.
        is_fused: Whether ours gives the compiler bits and an operation to fuse, or an operator that stands alone.
    """

    def chain(x: Tensor, residual: Tensor) -> Tensor:
        return torch.tanh(drop(F.gelu(x), P) + residual)

    compiled = torch.compile(chain, fullgraph=True)

    def run(x: Tensor, residual: Tensor) -> Tensor:
        autograd._fuses = lambda _: is_fused  # which is asked when it is compiled
        return compiled(x, residual)

    return run


def fusion(rounds: int) -> None:
    """Dropout between pointwise operations, by bits that the compiler fuses and by an operator that stands alone."""
    x = torch.randn(HERE.sizes.fused, device=HERE.device, dtype=torch.bfloat16, requires_grad=True)
    residual, grad = torch.randn_like(x), torch.randn_like(x)
    chains = {
        "PyTorch": chain_of(F.dropout, True),
        "dropkit, by bits": chain_of(dropout, True),
        "dropkit, by an operator": chain_of(dropout, False),
    }
    title(f"{x.dtype}, {x.numel():,} elements, compiled GELU, dropout, residual, tanh, forward and backward")

    def both(run: Chain) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(x, residual), x, grad)

    found = milliseconds({name: both(run) for name, run in chains.items()}, rounds)
    show(found)
    verdict("x faster than PyTorch compiled", found["PyTorch"] / found["dropkit, by bits"], ">=", 1)
    verdict("x faster by bits", found["dropkit, by an operator"] / found["dropkit, by bits"], ">=", 1)
    for name, bar in (("dropkit, by bits", 1 / 8 + ADDRESS), ("dropkit, by an operator", ADDRESS)):
        kept = HERE.kept(lambda run=chains[name]: run(x, residual)) / x.numel()
        verdict(f"bytes an element kept for the backward pass, {name}", kept, "<=", bar)


class Block(nn.Module):
    """A transformer block with dropout where GPT-2 has it, of one library or the other."""

    def __init__(self, width: int, heads: int, is_ours: bool) -> None:
        super().__init__()
        layer = dropkit.nn.Dropout if is_ours else nn.Dropout
        self.attend = scaled_dot_product_attention if is_ours else F.scaled_dot_product_attention
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drops = nn.ModuleList(layer(P) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        mixed = self.mix(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = self.attend(*mixed, dropout_p=P, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.drops[0](self.out(attended))
        return x + self.drops[1](self.narrow(F.gelu(self.wide(self.norms[1](x)))))


def memory(rounds: int) -> None:
    """Peak memory of a training step, beside PyTorch's, and what it takes."""
    sizes = HERE.sizes
    batch, length, width = sizes.batch
    x = torch.randn(sizes.batch, device=HERE.device, dtype=HERE.matrix_type)
    title(f"a training step of {sizes.blocks} blocks {width:,} wide, {batch} x {length:,} tokens, {x.dtype}, eager")

    def step_of(name: str) -> Callable[[], None]:
        torch.manual_seed(0)
        blocks = (Block(width, width // 64, name == "dropkit") for _ in range(sizes.blocks))
        model = nn.Sequential(*blocks).to(HERE.device, HERE.matrix_type)

        def step() -> None:
            model(x).square().mean().backward()
            model.zero_grad()

        return step

    sides, peaks = ("dropkit", "PyTorch"), {}
    for name in sides:  # one after another: memory has one model at a time
        peaks[name] = HERE.peak(step_of(name))
        print(f"  {name:58} {peaks[name] / 2**20:8.0f} MiB at most")
        HERE.free()
    show(milliseconds({name: step_of(name) for name in sides}, rounds))
    verdict("of PyTorch's peak memory", peaks["dropkit"] / peaks["PyTorch"], "<=", 1)
