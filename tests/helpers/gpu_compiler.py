"""Triton's compiler for GPUs that are not there: what Python launches on fake tensors is compiled, and looked at.

It works where Triton is no interpreter: in a process of its own, without TRITON_INTERPRET.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dropkit.kernels import operators, triton_dropout, triton_fused, triton_keep_bits
from dropkit.kernels.operators import of_place
from tests.helpers.gpus import guard

# KiB of shared memory that a program may have, by compute capability (CUDA C++ Programming Guide, "Compute
# Capabilities", technical specifications).
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227}


class Compiled(NamedTuple):
    """What has become of a launch.

    Args:
        kernel: Its name.
        programs: How many are launched.
        error: Why it has not been compiled, or None.
        spilled: Bytes that a thread has in local memory, for want of registers.
        shared: Bytes that a program has in shared memory.
        accesses: The widths of all accesses of global memory, such as "v4.b32".
        products: How many products of 32-bit integers have their upper half computed, as Philox does twice a round.
        variant: Which of the kernel's compilations it is.
    """

    kernel: str
    programs: int
    error: str | None = None
    spilled: int = 0
    shared: int = 0
    accesses: tuple[str, ...] = ()
    products: int = 0
    variant: str = ""


class _Pointer:
    """A fake tensor as a kernel's argument: its address is that of its storage, which is aligned, and its offset."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self._offset = tensor.dtype, tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self._offset


@contextmanager
def gpu(capability: int, report: Callable[[Compiled], None]) -> Iterator[None]:
    """Let "cuda" be a GPU for which kernels are compiled in the place of being launched, and tensors be fake.

    Args:
        capability: Ten times its compute capability.
        report: Is given what has become of every launch.
    """
    target, launch = GPUTarget("cuda", capability, 32), JITFunction.run
    properties = SimpleNamespace(shared_memory_per_block_optin=SHARED[capability] * 1024, multi_processor_count=132)
    patches: list[tuple[Any, str, Any]] = [
        (torch.cuda, "device", lambda _: nullcontext()),
        (torch.cuda, "get_device_properties", lambda _: properties),
        (JITFunction, "run", lambda kernel, *args, **options: report(_compiled(launch, kernel, args, options))),
        # Operators that kernels' launches call: of fake tensors they would return shapes.
        (triton_dropout, "keep_bits", of_place(triton_keep_bits.keep_bits, 3)),
        (operators, "keep_mask", of_place(triton_dropout.keep_mask, 3)),
        (triton_fused, "dropout", of_place(triton_dropout.dropout, 4)),
    ]
    before = [getattr(place, name) for place, name, _ in patches]
    for place, name, patch in patches:
        setattr(place, name, patch)
    get = {"get_current_target": target, "get_current_device": capability, "get_current_stream": 0}
    driver.set_active(SimpleNamespace(**{name: lambda *_, value=value: value for name, value in get.items()}))
    try:
        with guard(), FakeTensorMode():
            yield
    finally:
        for (place, name, _), value in zip(patches, before, strict=True):
            setattr(place, name, value)


def _compiled(launch: Any, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Compiled:
    name, programs = kernel.fn.__name__, options["grid"][0]
    args = tuple(_Pointer(each) if isinstance(each, Tensor) else each for each in args)
    try:
        found = launch(kernel, *args, **{**options, "warmup": True})
    except Exception as error:  # noqa: BLE001  # whatever keeps it from being compiled
        return Compiled(name, programs, f"{type(error).__name__}: {error}")
    ptx = found.asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.global(?:\.[a-z_]+)*?\.((?:v\d\.)?b\d+)", ptx)
    products = len(re.findall(r"mul\.(?:hi|wide)\.u32", ptx))
    spilled, shared = _spilled(found.asm["cubin"]), found.metadata.shared
    return Compiled(name, programs, None, spilled, shared, tuple(accesses), products, found.hash)


def _spilled(binary: bytes) -> int:
    """Return how many bytes of local memory a thread has, as NVIDIA's tool has it that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
