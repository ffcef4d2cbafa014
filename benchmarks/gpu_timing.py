"""How sides are timed on a GPU, and how a row of a table says what was found."""

import statistics
import sys
from collections.abc import Callable
from typing import Any

from gpu_machine import Machine
from gpu_rehearsal import Rehearsal

__all__ = ["ADDRESS", "HERE", "REHEARSE", "P", "milliseconds", "show", "title", "verdict"]

REHEARSE = "--rehearse"
HERE = Rehearsal() if REHEARSE in sys.argv else Machine()
P = 0.1
ADDRESS = 1e-3  # bytes an element: keys are kept, a few blocks of 512 bytes for a whole tensor


def milliseconds(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return how long each side takes, the median over rounds in which they take turns."""
    for run in sides.values():
        for _ in range(HERE.warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(HERE.milliseconds(run))
    return {name: statistics.median(found) for name, found in times.items()}


def title(words: str) -> None:
    """Begin a table."""
    print(f"\n{words}")


def verdict(name: str, value: float, rule: str, bar: float | None) -> None:
    """Say a number, and whether its bar is met if it has one."""
    line = f"  {name:58} {value:8.3f}"
    if bar is not None:
        is_met = value <= bar if rule == "<=" else value >= bar
        line += f"   bar {rule} {bar:<5} {HERE.judge(is_met)}"
    print(line)


def show(found: dict[str, float], moved: dict[str, float] | None = None) -> None:
    """Say how long sides took, and how fast they moved so many bytes."""
    for name, time in found.items():
        speed = f"   {moved[name] / time / 1e6:8.0f} GB/s" if moved and name in moved else ""
        print(f"  {name:58} {time:8.3f} ms{speed}")
