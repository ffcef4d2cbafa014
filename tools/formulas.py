"""Formulas of the documentation: a fence of LaTeX becomes MathML, which browsers show without a script."""

from typing import Any

from latex2mathml.converter import convert

__all__ = ["fence"]


def fence(source: str, *_: Any, **__: Any) -> str:
    """Return what stands in the place of a fence named math."""
    return convert(source.strip(), display="block")
