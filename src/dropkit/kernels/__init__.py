"""The ways to apply a mask in PyTorch.

`portable` states every operation in plain PyTorch operations; `operators` is the one point through which
`dropkit.functional` reaches whichever kernel runs.
"""

from dropkit.kernels.portable import fold, integers, keep_mask, normal, uniform

__all__ = ["fold", "integers", "keep_mask", "normal", "uniform"]
