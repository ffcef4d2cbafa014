"""dropkit: dropout for PyTorch that is exact, reproducible and fast.

Two ideas carry all of it:

- A mask is a pure function of an address. Whether a unit is dropped follows from a 64-bit key and the unit's index
  alone, never from a generator's state, a device, a thread or the way a batch is split; `dropkit.random` defines it.
- A site is any place where a model draws dropout noise: a layer, a call of a function, or a rate inside a larger
  module. Tools look for sites, not for layers of one class.

Sub-packages load on first use, so that `import dropkit` costs next to nothing and masks need no torch.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dropkit import errors, functional, kernels, nn, numpy, random, schedules, sites, study, uncertainty

__all__ = [
    "__version__",
    "errors",
    "functional",
    "kernels",
    "nn",
    "numpy",
    "random",
    "schedules",
    "sites",
    "study",
    "uncertainty",
]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
