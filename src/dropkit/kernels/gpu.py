"""Which kernels serve tensors on GPUs: Triton's where they are asked for, else portable operations of PyTorch."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dropkit.errors import UnsupportedError
from dropkit.kernels.native.library import ENVIRONMENT, TRITON

__all__ = ["served", "why_portable"]


@cache
def why_portable() -> str | None:
    """Return why portable operations serve, or None where Triton's kernels do.

    Raises:
        UnsupportedError: If Triton's kernels are asked for and it is not installed.
    """
    if os.environ.get(ENVIRONMENT, "").strip().lower() != TRITON:
        return f"{ENVIRONMENT}={TRITON} asks for Triton's"
    try:
        version("triton")
    except PackageNotFoundError:
        remedy = f"Install it (pip install triton), or unset {ENVIRONMENT}."
        raise UnsupportedError(
            f"dropkit.kernels: {ENVIRONMENT}={TRITON}, and Triton is not installed. {remedy}"
        ) from None
    return None


def served(module: str, name: str, portable: Callable[..., Any]) -> Callable[..., Any]:
    """Return what does an operator's work on tensors of GPUs.

    Args:
        module: The module here that has Triton's kernels; it is imported when the first tensor comes.
        name: The function in it.
        portable: What does the same by PyTorch's operations.
    """

    def run(*arguments: Any) -> Any:
        if why_portable() is not None:
            return portable(*arguments)
        return getattr(import_module(f"dropkit.kernels.{module}"), name)(*arguments)

    return run
