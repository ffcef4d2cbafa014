"""A plugin of pytest: tests on CPU tensors get what tensors on GPUs get, by Triton's kernels in its interpreter.

``python -m pytest -p tests.helpers.on_triton tests/functional`` runs tests so. Every operator of dropkit does what it
does on a GPU, attention goes by tiles, and the short ways of CPUs, which go past the operators, are closed. So tests
that say that such a way is taken fail, and none else should.
"""

import os
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch

_PLACED = {"dropout": 4, "keep_mask": 3, "keep_bits": 3, "integers": 2, "uniform": 2}  # arguments before a layout
_OWN, _EVERY = torch._C.DispatchKey.CUDA, torch._C.DispatchKey.CompositeExplicitAutograd
_libraries: list[torch.library.Library] = []
_launches: list[str] = []


def pytest_configure(config: Any) -> None:
    """Let Triton serve."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    seen = "(overflow|underflow|invalid value|divide by zero) encountered"  # by NumPy, where a GPU goes on
    config.addinivalue_line("filterwarnings", f"ignore:{seen}:RuntimeWarning")
    from dropkit.functional import attention_tiles, autograd
    from dropkit.kernels import gpu, triton_address, triton_attention
    from dropkit.kernels.native import operations

    _round_as_gpus_do()
    run = triton_address.Launch.run

    def launched(launch: Any, kernel: Any, *tensors: Any, **options: Any) -> None:
        _launches.append(kernel.__name__)
        run(launch, kernel, *tensors, **options)

    triton_address.Launch.run = launched
    gpu.why_portable = lambda *_: None
    attention_tiles.is_served = lambda *_: True
    autograd._fuses = lambda _: True
    triton_attention.tile_of = lambda *_: triton_attention.Tile(16, 32, 4, 1)
    operations._PLAIN_KEYS = ()  # no tensor is one for the short ways
    library = torch.library.Library("dropkit", "IMPL")
    _libraries.append(library)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for name in sorted(_operators()):
            library.impl(name, _on_gpus(name), "CPU", allow_override=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how often Triton's kernels ran."""
    terminalreporter.write_line(f"{len(_launches)} launches of Triton's kernels, but for those of attention and norms")


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


def _round_as_gpus_do() -> None:
    """Let the interpreter round to bfloat16, which it truncates to."""
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(input: Any, input_dtype: Any, output_dtype: Any, rounding_mode: Any) -> Any:
        if (input_dtype, output_dtype) != (language.float32, language.bfloat16):
            return convert(input, input_dtype, output_dtype, rounding_mode)
        values = torch.from_numpy(np.array(input, np.float32)).bfloat16()
        return values.view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = rounded
