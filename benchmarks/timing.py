"""How two sides are timed against each other, and how a row of a table says what was found."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Call", "Ratio", "minima", "report", "settle_allocator", "with_backward"]

Call = Callable[[], object]
SECONDS = 0.3 if "--quick" in sys.argv else 2.0  # for each row


@dataclass(frozen=True)
class Ratio:
    """A row of the table: how many times as long one side takes as the other."""

    name: str
    ours: float
    other: float
    bar: float | None = None
    is_faster: bool = False  # whether the bar is on how much faster ours is, not on how much slower

    def __str__(self) -> str:
        ratio = self.other / self.ours if self.is_faster else self.ours / self.other
        words = "x faster" if self.is_faster else "x as long"
        found = f"{self.name:66} {1e6 * self.ours:10.1f} {1e6 * self.other:10.1f} {ratio:7.2f} {words}"
        if self.bar is None:
            return found
        met = ratio >= self.bar if self.is_faster else ratio <= self.bar
        return f"{found:110} bar {'>=' if self.is_faster else '<='} {self.bar:<5} {'met' if met else 'MISSED'}"


def minima(*calls: Call) -> list[float]:
    """Return the shortest time of each call in seconds; short calls are repeated, and all take turns.

    Each is called once before it is timed, so that none pays for the memory that another gave back to the system.
    """
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, int(2e-4 / max(time.perf_counter() - start, 1e-9))))
    best = [float("inf")] * len(calls)
    end, rounds = time.perf_counter() + SECONDS * len(calls) / 2, 0
    while time.perf_counter() < end or rounds < 3:
        for i, (call, count) in enumerate(zip(calls, repeats, strict=True)):
            call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            best[i] = min(best[i], (time.perf_counter() - start) / count)
        rounds += 1
    return best


def report(*ratios: Ratio) -> None:
    """Print rows."""
    for ratio in ratios:
        print(ratio, flush=True)


def with_backward(call: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Call:
    """Return forward and backward of a call."""

    def run() -> None:
        x.grad = None
        call(x).backward(grad)

    return run


def settle_allocator() -> None:
    """Free a large tensor, as every program does sooner or later.

    From then on glibc keeps up to twice its size for new tensors. Before, it gives memory back to the system after each
    backward pass over half a megabyte or more, and both sides of a row spend most of their time on getting it again.
    """
    torch.zeros(30 * 2**18)
