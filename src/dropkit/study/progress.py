"""How a study tells whoever started it how far it is."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Progress", "ProgressCallback"]


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Args:
        phase: What it is doing, such as ``"selection"``.
        done: Epochs trained so far, counted over all models; those of an earlier run that was resumed count too.
        total: Epochs in all.
        note: Something to tell, such as a strength that was chosen or a run that diverged; mostly empty.
    """

    phase: str
    done: int
    total: int
    note: str = ""


ProgressCallback = Callable[[Progress], None]
