"""What a method is: a name, a grid of strengths, and what a strength does to the training of one model."""

from collections.abc import Callable
from dataclasses import dataclass

from dropkit._checks import Number

__all__ = ["Method", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. A method sets the fields that it stands for and leaves the others alone."""

    dropout: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Method:
    """A way to regularise, with the strengths that a study tries.

    Args:
        name: The name in plans, tables and `methods=`.
        title: The name in sentences.
        symbol: What the strength is called, such as ``"p"``; empty where there is none.
        strengths: The grid, rising. Every method but none has equally many, so that none gets more chances.
        recipe: From a strength to how a model is trained.
        domain: What a strength may be.
        log_axis: Whether pictures space the strengths logarithmically.
    """

    name: str
    title: str
    symbol: str
    strengths: tuple[float, ...]
    recipe: Callable[[float], Recipe]
    domain: Number
    log_axis: bool = False

    def label(self, strength: float) -> str:
        """Return how sentences and tables write the strength, such as ``"p = 0.5"``."""
        return f"{self.symbol} = {strength:g}" if self.symbol else ""
