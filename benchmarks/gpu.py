"""Dropout on a GPU: against a copy of memory, PyTorch's eager dropout and compiled code, all in one process.

    python benchmarks/gpu.py [--rounds 20] [masks copy backward norm memory attention small]

Times are medians over rounds of what the GPU took, sides taking turns; the whole takes less than eight minutes on one
H100. A row says whether its bar is met, and the process fails if a mask is wrong.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("DROPKIT_KERNEL", "triton")  # before dropkit reads it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit import kernels, random
from dropkit.functional import dropout
from dropkit.kernels import gpu

warnings.simplefilter("ignore")
ELEMENTS = 2**28
P = 0.1


def milliseconds(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return how long each side takes, which take turns; the first calls compile."""
    for run in sides.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}


def verdict(name: str, value: float, rule: str, bar: float) -> None:
    is_met = value <= bar if rule == "<=" else value >= bar
    print(f"  {name:58} {value:8.3f}   bar {rule} {bar:<5} {'met' if is_met else 'MISSED'}", flush=True)


def show(found: dict[str, float], moved: dict[str, float] | None = None) -> None:
    for name, time in found.items():
        speed = f"   {moved[name] / time / 1e6:8.0f} GB/s" if moved and name in moved else ""
        print(f"  {name:58} {time:8.3f} ms{speed}", flush=True)


def masks(_: int) -> None:
    """One mask on a GPU, a CPU, in NumPy, eager and compiled; a wrong one ends the process."""
    compiled = torch.compile(dropout)
    x = torch.randn(1000, 1032)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((1000, 1032), (40, 25, 1032), (1032000,), (8, 129, 1000)):
            values = x.view(shape).to(dtype)
            want = torch.from_numpy(random.keep_mask(77, shape, P))
            on_cpu = dropout(values, P, key=77)
            for run in (dropout, compiled):
                found = run(values.cuda(), P, key=77).cpu()
                if not torch.equal(found, on_cpu) or not torch.equal(found != 0, want & (values != 0)):
                    sys.exit(f"a mask on the GPU is not that of the definition: {dtype}, {shape}")
    print("\nmasks\n  GPU = CPU = NumPy, eager = compiled, bit for bit")


def copy(rounds: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(2**14, ELEMENTS // 2**14, device="cuda", dtype=dtype)
        y = torch.empty_like(x)
        sides = {
            "copy": lambda x=x, y=y: y.copy_(x),
            "dropkit": lambda x=x: dropout(x, P),
            "eager": lambda x=x: F.dropout(x, P),
        }
        print(f"\n{dtype}, 2**28 elements, forward")
        size = 2.0 * x.numel() * x.element_size()
        found = milliseconds(sides, rounds)
        show(found, {"copy": size, "dropkit": size, "eager": size + x.numel()})
        verdict("share of a copy's bandwidth", found["copy"] / found["dropkit"], ">=", 0.9)
        del x, y
        torch.cuda.empty_cache()


def ours(x: Tensor) -> Tensor:
    return dropout(x, P)


def theirs(x: Tensor) -> Tensor:
    return F.dropout(x, P)


def backward(rounds: int) -> None:
    for dtype, bar in ((torch.bfloat16, 1.2), (torch.float32, 1.05)):
        x = torch.randn(2**14, ELEMENTS // 2**14, device="cuda", dtype=dtype, requires_grad=True)
        grad = torch.randn_like(x)

        def both(run: Callable[[Tensor], Tensor], x: Tensor = x, grad: Tensor = grad) -> None:
            x.grad = None
            run(x).backward(grad)

        compiled = torch.compile(theirs)
        sides = {
            "dropkit": lambda both=both: both(ours),
            "eager": lambda both=both: both(theirs),
            "compiled": lambda both=both, compiled=compiled: both(compiled),
        }
        print(f"\n{dtype}, 2**28 elements, forward and backward")
        found = milliseconds(sides, rounds)
        show(found)
        verdict("x faster than eager", found["eager"] / found["dropkit"], ">=", bar)
        verdict("x faster than compiled", found["compiled"] / found["dropkit"], ">=", 1)
        before = torch.cuda.memory_allocated()
        y = dropout(x, P)
        kept = torch.cuda.memory_allocated() - before - y.numel() * y.element_size()
        verdict("bytes an element kept for the backward pass", kept / x.numel(), "<=", 1e-6)
        del x, grad, y, sides
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


def small(rounds: int) -> None:
    print("\n2**16 elements under CUDA graphs, 100 forward and backward passes")
    x = torch.randn(2**16, device="cuda", requires_grad=True)
    grad = torch.ones_like(x)

    def captured(run: Callable[[Tensor], Tensor]) -> torch.cuda.CUDAGraph:
        def step() -> None:
            for _ in range(100):
                torch.autograd.grad(run(x), x, grad)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph

    graphs = {"dropkit": captured(ours), "eager": captured(theirs)}
    found = milliseconds({name: graph.replay for name, graph in graphs.items()}, rounds)
    show(found)
    verdict("x as fast as eager", found["eager"] / found["dropkit"], ">=", 1)


ROWS = {"masks": masks, "copy": copy, "backward": backward, "memory": memory, "small": small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - ROWS.keys()
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known are {', '.join(ROWS)}")
    if not torch.cuda.is_available():
        parser.error("it needs a CUDA device, and there is none")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(f"GPU kernels: {gpu.why_portable() or 'Triton'}\n{kernels.info()}")
    for name in arguments.rows or ROWS:
        ROWS[name](arguments.rounds)


if __name__ == "__main__":
    main()
