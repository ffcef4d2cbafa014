"""Dropout inside compiled and trained models on a GPU: rows of benchmarks/gpu.py."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_timing import P, milliseconds, show, verdict
from torch import Tensor, nn

import dropkit
from dropkit.functional import autograd, dropout

__all__ = ["fusion", "memory"]


def fused(_: Tensor) -> bool:
    return True


def alone(_: Tensor) -> bool:
    return False


def _step(
    drop: Callable[..., Tensor], fuses: Callable[[Tensor], bool], x: Tensor, residual: Tensor, grad: Tensor
) -> Callable[[], object]:
    def chain(x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(drop(F.gelu(x), P) + residual)

    compiled = torch.compile(chain, fullgraph=True)

    def run() -> object:
        autograd._fuses = fuses  # on which compiled code depends
        return torch.autograd.grad(compiled(x, residual), x, grad)

    return run


def fusion(rounds: int) -> None:
    """Dropout between pointwise operations, by bits that the compiler fuses and by an operator that stands alone."""
    is_fused = autograd._fuses
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(2**13, 2**13, device="cuda", dtype=dtype, requires_grad=True)
        residual, grad = torch.randn_like(x), torch.randn_like(x)

        chains = {
            "dropkit, by bits": (dropout, fused),
            "dropkit, by an operator": (dropout, alone),
            "PyTorch": (F.dropout, fused),
        }
        print(f"\n{dtype}, 2**26 elements, compiled GELU, dropout, residual, ReLU, forward and backward")
        sides = {name: _step(*chain, x, residual, grad) for name, chain in chains.items()}
        found = milliseconds(sides, rounds)
        show(found)
        verdict("x faster than PyTorch compiled", found["PyTorch"] / found["dropkit, by bits"], ">=", 1)
        verdict("x faster by bits", found["dropkit, by an operator"] / found["dropkit, by bits"], ">=", 1)
        autograd._fuses = is_fused
        del x, residual, grad, sides
        torch._dynamo.reset()
        torch.cuda.empty_cache()


class Block(nn.Module):
    """A transformer block with dropout where GPT-2 has it, of one library or the other."""

    def __init__(self, width: int, heads: int, is_ours: bool) -> None:
        super().__init__()
        layer = dropkit.nn.Dropout if is_ours else nn.Dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.heads, self.is_ours = heads, is_ours
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drops = nn.ModuleList(layer(P) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        mixed = self.mix(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*mixed).transpose(1, 2).reshape(x.shape)
        x = x + self.drops[0](self.out(attended))
        return x + self.drops[1](self.narrow(self.drops[2](F.gelu(self.wide(self.norms[1](x))))))


def memory(_: int) -> None:
    """Peak memory of a training step, beside PyTorch's."""
    print("\npeak memory of a training step, 12 blocks 1,024 wide, 16 x 1,024 tokens, bf16")
    peaks = {}
    for name in ("dropkit", "PyTorch"):
        torch.manual_seed(0)
        model = nn.Sequential(*(Block(1024, 16, name == "dropkit") for _ in range(12))).cuda().bfloat16()
        x = torch.randn(16, 1024, 1024, device="cuda", dtype=torch.bfloat16)
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            model(x).square().mean().backward()
            model.zero_grad()
        peaks[name] = torch.cuda.max_memory_allocated() / 2**20
        print(f"  {name:58} {peaks[name]:8.0f} MiB", flush=True)
        del model, x
        torch.cuda.empty_cache()
    verdict("of PyTorch's peak memory", peaks["dropkit"] / peaks["PyTorch"], "<=", 1)
