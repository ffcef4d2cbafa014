"""How numbers are written in sentences, tables and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["capital", "change", "detectable", "joined", "loss_name", "number", "p_value", "percent", "signed"]

_LEAST = 0.1  # percent: smaller shares are not told apart


def loss_name(data: Mapping[str, Any]) -> str:
    """Return what a plan's data are scored by: log loss for classes, squared error for numbers."""
    return "squared error of the standardised target" if data["task"] == "regression" else "log loss"


def number(value: float, digits: int = 3) -> str:
    """Write a loss."""
    return f"{value:z.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 3) -> str:
    """Write a difference with its sign, a minus sign and not a hyphen; one that rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Write a share without its sign, to two figures at most."""
    value = abs(share) * 100
    if value < _LEAST:
        return f"less than {_LEAST:g} %"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f} %" if rounded >= 100 else f"{value:.2g} %"


def detectable(share: float) -> str:
    """Write the effects that would have been seen, those of a share or more; a tiny share is rounded up."""
    return f"{percent(max(abs(share), _LEAST / 100))} or more"


def change(share: float) -> str:
    """Write a relative change of a loss."""
    return f"{percent(share)} {'lower' if share < 0 else 'higher'}"


def p_value(p: float) -> str:
    """Write a p-value with its sign of relation."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def capital(text: str) -> str:
    """Begin a sentence with a label."""
    return text[:1].upper() + text[1:]


def joined(parts: Sequence[str], word: str = "and") -> str:
    """Join words as a sentence does."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
