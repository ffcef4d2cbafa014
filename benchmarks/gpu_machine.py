"""The machine that rows of benchmarks/gpu.py are measured on: its device, the sizes of their tensors, and its clock."""

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

__all__ = ["Machine", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large the tensors of rows are.

    Args:
        large: For bandwidth: gigabytes, far above what caches hold.
        most: More elements than 32 bits number.
        small: For launches in a CUDA graph.
        repeats: How many passes such a graph has.
        fused: Between pointwise operations.
        normalised: Elements, for every number of columns.
        columns: Of rows that are normalised.
        tokens: How many sequences there are of how many tokens, for attention.
        heads: Of attention.
        widths: Of a head.
        masked: Of a tensor whose masks are compared.
        checked: Queries and keys of attention whose mask is compared.
        compared: Of a tensor whose normalised sum is compared.
        blocks: Of a transformer.
        batch: Its input.
    """

    large: tuple[int, int] = (2**14, 2**14)
    most: tuple[int, int] = (2**18 + 3, 2**13)
    small: int = 2**16
    repeats: int = 100
    fused: tuple[int, int] = (2**13, 2**13)
    normalised: int = 2**26
    columns: tuple[int, ...] = (4096, 1024, 8192)
    tokens: tuple[tuple[int, int], ...] = ((4, 4096), (1, 16384))
    heads: int = 16
    widths: tuple[int, ...] = (64, 128)
    masked: tuple[int, int, int, int] = (6, 10, 12, 30)
    checked: tuple[int, int] = (1000, 128)
    compared: tuple[int, int] = (257, 1032)
    blocks: int = 12
    batch: tuple[int, int, int] = (16, 1024, 1024)


class Machine:
    """A GPU, the current one."""

    device = "cuda"
    sizes = Sizes()
    matrix_type = torch.bfloat16
    flash = "PyTorch's flash"
    backend = SDPBackend.FLASH_ATTENTION
    budget = 480  # seconds for all rows
    warm_up = 3  # calls of each side, of which the first compiles
    _HEAD_START = 2_000_000  # cycles, a millisecond or more
    _FLUSHED = 2**28  # bytes: several times what L2 holds

    def __init__(self) -> None:
        self._flush: Tensor | None = None

    def lacks(self) -> str | None:
        """Return what is missing here, if anything."""
        if not torch.cuda.is_available():
            return "a CUDA device, and there is none (--rehearse runs every row on the CPU, to see that it runs)"
        return None if find_spec("triton") else "Triton (pip install triton)"

    def prepare(self) -> None:
        """Do what must be done in a process before rows run; their modules have been imported."""
        os.environ.setdefault("DROPKIT_KERNEL", "triton")  # so that a kernel that does not serve is an error
        warnings.simplefilter("ignore")
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a process that is ended loses no line

    def heading(self) -> list[str]:
        """Return lines about the device."""
        found = torch.cuda.get_device_properties(self.device)
        multiprocessors, memory = found.multi_processor_count, found.total_memory / 2**30
        return [f"{found.name}, {multiprocessors} multiprocessors, {memory:.0f} GiB", self.state()]

    def state(self) -> str:
        """Return what may explain times: clocks, power and heat."""
        fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            return f"clocks unknown: {error}"
        return "driver; clocks now, at most, of memory; power, its limit; degrees: " + found.splitlines()[0]

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """Return how long the device takes over a call.

        No side finds in L2 what one before it has left, and the device is kept busy until the CPU has launched, so that
        what it takes the CPU to do that is not counted.
        """
        if self._flush is None:
            self._flush = torch.empty(self._FLUSHED, dtype=torch.int8, device=self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda._sleep(self._HEAD_START)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def captured(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """Return the replay of a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def kept(self, run: Callable[[], Tensor]) -> float:
        """Return how many bytes a call keeps for its backward pass, beside its output."""
        run()  # the first may keep what all share
        before = torch.cuda.memory_allocated()
        output = run()
        return torch.cuda.memory_allocated() - before - output.numel() * output.element_size()

    def peak(self, step: Callable[[], Any]) -> float:
        """Return the bytes allocated at most within a step, the second of its kind."""
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()

    def free(self) -> None:
        """Give memory back that nothing uses, and what timing takes."""
        self._flush = None
        gc.collect()
        torch.cuda.empty_cache()

    def judge(self, is_met: bool) -> str:
        """Return what is said of a bar."""
        return "met" if is_met else "MISSED"
