"""Options as text, and messages that name them as the command line does."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from dropkit.errors import ArgumentError

__all__ = ["in_options", "number", "whole"]


def in_options(message: str, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """Name an argument of a function of `dropkit.study` as the command line does.

    Args:
        message: What the function says.
        names: From arguments to what they are called, where that is not their name with dashes.
    """
    return re.sub(
        r"^(?:run|predict|load_models|Budget): `(\w+)`",
        lambda found: names.get(found[1], "--" + found[1].replace("_", "-")),
        message,
    )


def whole(option: str, text: str | None) -> int | None:
    """Return the whole number that a text is."""
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ArgumentError(f"{option} must be a whole number, got {text!r}.") from None


def number(option: str, text: str | None) -> float | None:
    """Return the number that a text is."""
    try:
        return None if text is None else float(text)
    except ValueError:
        raise ArgumentError(f"{option} must be a number, got {text!r}.") from None
