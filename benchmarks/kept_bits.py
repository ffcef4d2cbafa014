"""Whether to keep the mask for the backward pass, a bit an element, or to draw it again.

    python benchmarks/kept_bits.py
    DROPKIT_KERNEL=avx2 python benchmarks/kept_bits.py

The time of forward and backward of dropout without bits, over that with bits kept, by type, rate, size and threads; the
two take turns and the median of many rounds is taken. Above 1, bits pay. `dropkit.functional.eager` holds the choice.
"""

import statistics
import time
from collections.abc import Callable

import torch
from timing import settle_allocator
from torch import Tensor

from dropkit import kernels
from dropkit.functional import dropout, eager

ROUNDS, SIZES = 40, ((32, 1024), (64, 1024), (128, 1024), (256, 1024), (512, 1024), (1024, 1024), (2048, 1024))
WAYS: dict[str, Callable[[Tensor], bool]] = {"bits": lambda _: True, "drawn": lambda _: False}


def seconds(x: Tensor, grad: Tensor, p: float) -> dict[str, float]:
    """Return the median time of forward and backward with each way."""
    count = max(1, 2**21 // x.numel())
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, keeps_bits in WAYS.items():
            eager._keeps_bits = keeps_bits
            start = time.perf_counter()
            for _ in range(count):
                x.grad = None
                dropout(x, p, key=7).backward(grad)
            found[way].append((time.perf_counter() - start) / count)
    return {way: statistics.median(times) for way, times in found.items()}


def main() -> None:
    """Print the table."""
    settle_allocator()
    print(kernels.info())
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}: time without bits / time with bits")
        print(f"{'':20}" + "".join(f"{f'{rows}x{columns}':>11}" for rows, columns in SIZES))
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for p in (0.1, 0.5):
                ratios = []
                for shape in SIZES:
                    x, grad = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)
                    found = seconds(x, grad, p)
                    ratios.append(found["drawn"] / found["bits"])
                print(
                    f"{str(dtype).removeprefix('torch.'):9} p = {p:<6} "
                    + "".join(f"{ratio:11.2f}" for ratio in ratios),
                    flush=True,
                )


if __name__ == "__main__":
    main()
