"""How sides are timed on a GPU, and how a row of a table says what was found."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["P", "milliseconds", "show", "verdict"]

warnings.simplefilter("ignore")
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
