"""The ways to apply a mask in PyTorch.

`portable` states every operation in plain PyTorch operations, `native` has them compiled for CPUs; `operators` is the
point through which `dropkit.functional` reaches whichever kernel runs, and `info` says which.
"""

from dropkit.kernels.native.library import Info, info
from dropkit.kernels.portable import fold, integers, keep_mask, normal, uniform

__all__ = ["Info", "fold", "info", "integers", "keep_mask", "normal", "uniform"]
