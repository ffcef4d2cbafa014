"""The ways to apply a mask in PyTorch, and in NumPy on a CPU.

`portable` states every operation in plain PyTorch operations, `native` has them compiled for CPUs. `operators`, and
`fields` for what is drawn alone, are the points through which whichever kernel runs is reached; `info` says which. What
needs PyTorch is imported when it is used, for `dropkit.numpy` needs none.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dropkit.kernels.native.library import Info, info

if TYPE_CHECKING:
    from dropkit.kernels.fields import integers, keep_mask, normal, uniform
    from dropkit.kernels.portable import fold

__all__ = ["Info", "fold", "info", "integers", "keep_mask", "normal", "uniform"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{'portable' if name == 'fold' else 'fields'}")
    found = globals()[name] = getattr(home, name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
