"""A plugin of pytest: tests on CPU tensors get what tensors on GPUs get, by Triton's kernels in its interpreter.

``python -m pytest -p tests.helpers.on_triton tests/functional`` runs tests so. Every operator of dropkit does what it
does on a GPU, attention goes by tiles, and the short ways of CPUs, which go past the operators, are closed.
"""

import os
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

CPU_ALONE = (  # tests of what only CPUs have, or of how often operators are called there
    "test_eager",
    "test_profiler",
)
_PLACED = {"dropout": 4, "keep_mask": 3, "keep_bits": 3, "integers": 2, "uniform": 2}  # arguments before a layout
_OWN, _EVERY = torch._C.DispatchKey.CUDA, torch._C.DispatchKey.CompositeExplicitAutograd
_libraries: list[torch.library.Library] = []


def pytest_configure(config: Any) -> None:
    """Let Triton serve."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from dropkit.functional import attention_tiles, autograd
    from dropkit.kernels import gpu, triton_attention
    from dropkit.kernels.native import operations

    gpu.why_portable = lambda *_: None
    attention_tiles.is_served = lambda _: True
    autograd._fuses = lambda _: True
    triton_attention.tile_of = lambda *_: triton_attention.Tile(16, 32, 4, 1)
    operations._PLAIN_KEYS = ()  # no tensor is one for the short ways
    library = torch.library.Library("dropkit", "IMPL")
    _libraries.append(library)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for name in sorted(_operators()):
            library.impl(name, _on_gpus(name), "CPU", allow_override=True)


def _operators() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("dropkit::") for name in names if name.startswith("dropkit::")}


def _on_gpus(name: str) -> Callable[..., Any]:
    """Return what an operator does on tensors of GPUs."""
    from dropkit.kernels import fields, gpu, operators

    if name == "normal":
        return operators.of_place(fields._normal_from_uniforms, 2)
    if name in _PLACED:
        kernel = getattr(import_module(f"dropkit.kernels.{gpu._KERNELS[name][0]}"), name)
        return operators.of_place(kernel, _PLACED[name])
    operator = getattr(torch.ops.dropkit, name).default
    key = _OWN if torch._C._dispatch_has_kernel_for_dispatch_key(f"dropkit::{name}", "CUDA") else _EVERY
    return lambda *arguments: operator._op_dk(key, *arguments)
