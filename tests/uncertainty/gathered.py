"""Results that tests gather from random passes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropkit.uncertainty import Result
from dropkit.uncertainty.results.running import Running

__all__ = ["CLOSE", "HIDDEN", "IDS", "OF_CLASSES", "OUTPUT", "VALUES", "Output", "classified", "of_output", "random"]

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
OF_CLASSES = ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classified(logits: Tensor, axis: int | None = 0, **options: Any) -> Result:
    running = Running("classification", **options)
    running.add(logits[0], [logits])
    examples = None if axis is None else logits[0].shape[axis]
    return running.result([axis], examples, seed=3, engine="loop", sites=["a", "b"], reached=None)


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    ids: Tensor
    label: str = "first"


VALUES, HIDDEN, IDS = random(20, 6, 3), random(20, 6, 4, seed=1), torch.arange(6)
OUTPUT = Output(VALUES[0], (HIDDEN[0], HIDDEN[0, :, 0]), IDS)


def of_output(task: str | None = None, **options: Any) -> Result:
    running = Running(task, **options)
    running.add(OUTPUT, [VALUES[:11], HIDDEN[:11], None, None, None])
    running.add("what comes later is not looked at", [VALUES[11:], HIDDEN[11:], None, None, None])
    return running.result([0, 0, 0, 0, None], 6)
