"""A rehearsal of benchmarks/gpu.py without a GPU: every row runs to its end on tiny tensors of the CPU.

Operators run there what they run on GPUs: Triton's kernels, in its interpreter. What is timed and kept means nothing.
"""

import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_machine import Machine, Sizes
from torch import Tensor
from torch.nn.attention import SDPBackend

__all__ = ["Rehearsal"]


class Rehearsal(Machine):
    """A CPU in the place of a GPU."""

    device = "cpu"
    sizes = Sizes(
        large=(16, 64),
        most=(9, 64),
        small=64,
        repeats=2,
        fused=(16, 64),
        normalised=128,
        columns=(64, 16, 128),
        tokens=((2, 16), (1, 48)),
        heads=1,
        masked=(2, 3, 4, 6),
        checked=(24, 32),
        compared=(5, 40),
        blocks=2,
        batch=(1, 8, 64),
    )
    matrix_type = torch.float32  # the interpreter multiplies no matrices of bfloat16
    flash = "PyTorch's plain"  # the flash backend of CPUs has no dropout
    backend = SDPBackend.MATH
    budget = 3000
    warm_up = 1

    def lacks(self) -> str | None:
        return None

    def heading(self) -> list[str]:
        return [
            "A REHEARSAL on the CPU: tiny tensors, Triton's interpreter. ITS NUMBERS MEAN NOTHING; no bar is judged."
        ]

    def state(self) -> str:
        return "a rehearsal: no number above means anything"

    def milliseconds(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    def captured(self, step: Callable[[], Any]) -> Callable[[], Any]:
        return step

    def kept(self, run: Callable[[], Tensor]) -> float:
        run()
        return math.nan

    def peak(self, step: Callable[[], Any]) -> float:
        step()
        return math.nan

    def free(self) -> None: ...

    def judge(self, is_met: bool) -> str:
        return "not judged"

    def prepare(self) -> None:
        """Let what serves GPUs serve the CPU."""
        super().prepare()
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        from dropkit.functional import attention_tiles, autograd
        from dropkit.kernels import triton_attention
        from dropkit.kernels.native import library

        library._find = lambda: None  # no short way of CPUs
        autograd._fuses = lambda _: True
        attention_tiles.is_served = lambda *_: True
        tile = triton_attention.Tile(16, 32, 4, 1)
        triton_attention.tile_of = lambda *_: tile
        _serve_cpus()


_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_DRAWN = ("keep_mask", "keep_bits")  # which choose among kernels themselves, by the device they draw for


def _serve_cpus() -> None:
    """Give every operator's kernel of GPUs to the CPU."""
    from dropkit.kernels import gpu, operators

    for operator in torch._C._dispatch_get_all_op_names():
        if operator.startswith("dropkit::") and torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA"):
            kernel = torch.library.get_kernel(operator, "CUDA").call_boxed
            _LIBRARY.impl(operator, kernel, "CPU", with_keyset=True, allow_override=True)
    for name in _DRAWN:
        module, portable = gpu._KERNELS[name]
        _LIBRARY.impl(name, operators.of_place(gpu.served(module, name, portable), 3), "CPU")
