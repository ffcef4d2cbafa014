"""How long dropout takes: ours, PyTorch's and a multiplication, interleaved in one process.

    python benchmarks/dropout.py

Prints nanoseconds an element (minimum of the repeats) and the ratio of PyTorch's time to ours, forward and forward with
backward, in float32; then the bytes that each keeps for the backward pass.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from dropkit.functional import dropout

SHAPES = ((32, 128), (128, 1024), (1024, 1024), (4096, 4096))
RATES = (0.1, 0.5)
SECONDS = 1.0  # for each row


def minima(calls: list[Callable[[], object]]) -> list[float]:
    """Return the shortest time of each call in seconds, over rounds in which each runs once."""
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def kept_bytes(apply: Callable[[Tensor], Tensor], input: Tensor) -> int:
    """Return how many bytes the operation keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = apply(input)
    del output
    return sum(kept.values())


def main() -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, nanoseconds an element")
    print(f"{'shape':>14} {'p':>4} {'pass':>8} {'dropkit':>8} {'torch':>8} {'multiply':>8}  torch/dropkit  kept bytes")
    for shape in SHAPES:
        for p in RATES:
            x = torch.randn(shape, requires_grad=True)
            grad = torch.ones(shape)
            operations: list[Callable[[Tensor], Tensor]] = [
                lambda x, p=p: dropout(x, p, key=1),
                lambda x, p=p: torch.nn.functional.dropout(x, p),
                lambda x: x * 1.25,
            ]
            with torch.no_grad():
                forward = minima([lambda f=f, x=x: f(x) for f in operations])
            both = minima([lambda f=f, x=x, g=grad: torch.autograd.grad(f(x), x, g) for f in operations])
            kept = [kept_bytes(f, x) for f in operations[:2]]
            for name, times in (("forward", forward), ("both", both)):
                each = " ".join(f"{1e9 * t / x.numel():8.2f}" for t in times)
                shown = f"{shape[0]} x {shape[1]}"
                print(f"{shown:>14} {p:4} {name:>8} {each}  {times[1] / times[0]:13.2f}  {kept[0]} / {kept[1]}")


if __name__ == "__main__":
    main()
