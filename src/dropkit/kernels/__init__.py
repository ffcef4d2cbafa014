"""The kernels that apply masks: compiled ones on CPUs, Triton's on GPUs, and portable ones elsewhere.

`info` says which serve here, and why; the environment variable ``DROPKIT_KERNEL`` chooses others. Masks are the same
whichever serve. The modules are dropkit's own, behind `dropkit.functional` and `dropkit.numpy`, and do not check what
they are given.
`portable` states every operation in plain PyTorch operations, `native` has them compiled, and `gpu` calls the modules
named after Triton, once it has compared each kernel with the portable one. `operators`, `fused` for what passes over
memory once, and `fields` for what is drawn alone, are the points through which whichever kernel runs is reached. What
needs PyTorch is imported when it is used, for `dropkit.numpy` needs none.
"""

from dropkit.kernels.native.library import Info, info

__all__ = ["Info", "info"]
