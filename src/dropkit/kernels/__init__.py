"""The kernels that apply masks: which of them serve here, and why. Compiled ones for CPUs, if there are any.

`info` says it, and the environment variable ``DROPKIT_KERNEL`` chooses others; masks are the same whichever serve. The
modules are dropkit's own, behind `dropkit.functional` and `dropkit.numpy`, and do not check what they are given.
`portable` states every operation in plain PyTorch operations, `native` has them compiled. `operators`, `fused` for what
passes over memory once, and `fields` for what is drawn alone, are the points through which whichever kernel runs is
reached. What needs PyTorch is imported when it is used, for `dropkit.numpy` needs none.
"""

import importlib
from typing import Any

from dropkit.kernels.native.library import Info, info

__all__ = ["Info", "info"]

_OWN = ("integers", "keep_mask", "normal", "uniform")  # of `fields`, which imports PyTorch


def __getattr__(name: str) -> Any:
    if name not in _OWN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.fields"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
