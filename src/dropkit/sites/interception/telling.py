"""Warnings that point at the user's line: the innermost that is neither PyTorch's nor dropkit's."""

import contextlib
import sys
import warnings
from os import sep
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["warn"]

_LIBRARIES = tuple(f"{folder}{sep}" for folder in (Path(__file__).parents[2], Path(torch.__file__).parent))
_SKIPPED = (*_LIBRARIES, contextlib.__file__, "<eval_with_key>", "<frozen ")


def warn(message: str) -> None:
    """Warn at the line of the user's that has led here, for Python shows a text but once a line."""
    frame: FrameType = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_SKIPPED) and frame.f_back is not None:
        frame = frame.f_back
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__"),
        names.setdefault("__warningregistry__", {}),
    )
