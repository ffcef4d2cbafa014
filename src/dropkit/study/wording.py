"""How numbers are written in sentences, tables and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["change", "joined", "loss_name", "number", "p_value", "percent", "signed"]


def loss_name(data: Mapping[str, Any]) -> str:
    """Return what a plan's data are scored by: log loss for classes, squared error for numbers."""
    return "squared error of the standardised target" if data["task"] == "regression" else "log loss"


def number(value: float, digits: int = 3) -> str:
    """Write a loss."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign; a minus sign, not a hyphen."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Write a share without its sign, to two figures at most."""
    value = abs(share) * 100
    return f"{value:.2g} %" if value >= 0.1 else "less than 0.1 %"


def change(share: float) -> str:
    """Write a relative change of a loss."""
    return f"{percent(share)} {'lower' if share < 0 else 'higher'}"


def p_value(p: float) -> str:
    """Write a p-value with its sign of relation."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def joined(parts: Sequence[str], word: str = "and") -> str:
    """Join words as a sentence does."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
