"""Dropout on a GPU: against a copy of memory, PyTorch's eager dropout and compiled code, all in one process.

    python benchmarks/gpu.py [--rounds 20] [masks copy backward small fusion memory norm attention]

Times are medians over rounds of what the GPU took, sides taking turns; the whole takes less than eight minutes on one
H100. A row says whether its bar is met, and the process fails if a mask is wrong.
"""

import argparse
import os
import sys
from collections.abc import Callable

os.environ.setdefault("DROPKIT_KERNEL", "triton")  # before dropkit reads it

import torch
import torch.nn.functional as F
from gpu_attention import attention
from gpu_compiled import fusion, memory
from gpu_norm import norm
from gpu_timing import P, milliseconds, show, verdict
from torch import Tensor

from dropkit import kernels, random
from dropkit.functional import dropout
from dropkit.kernels import gpu

ELEMENTS = 2**28


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


ROWS: dict[str, Callable[[int], None]] = {
    "masks": masks,
    "copy": copy,
    "backward": backward,
    "small": small,
    "fusion": fusion,
    "memory": memory,
    "norm": norm,
    "attention": attention,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=20, help="how often each side is timed (default: 20)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {arguments.rounds}")
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
