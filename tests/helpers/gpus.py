"""A GPU of shapes alone: tensors on "cuda" where there is none, and a record of what would make a real one wait.

PyTorch's fake tensors know their devices and refuse to mix them. On top of them a mode sees every operation that
reaches a device, dropkit's operators too, which either their shape-only versions serve or the portable operations.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dropkit.kernels import gpu as kernels_of_gpus
from tests.helpers import engine

SERVING = ("shapes", "portable")
_CUDA, _META = 1, 14  # places of devices in PyTorch's table of guards
_OWN, _EVERY = torch._C.DispatchKey.CUDA, torch._C.DispatchKey.CompositeExplicitAutograd


class Gpu(TorchDispatchMode):
    """Notes what crosses between devices.

    Args:
        serving: What serves dropkit's operators, one of `SERVING`.
    """

    def __init__(self, serving: str) -> None:
        super().__init__()
        self.serving = serving
        self.crossings: list[str] = []
        self.operators: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "dropkit":
            self.operators.add(function._opname)
            if self.serving == "portable":
                has_own = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CUDA")
                with self:
                    return function._op_dk(_OWN if has_own else _EVERY, *args, **kwargs)
        found = function(*args, **kwargs)
        if function.namespace != "prim" and not kwargs.get("non_blocking"):
            self._note(function, _tensors((args, kwargs)), _tensors(found))
        return found

    def _note(self, function: Any, given: list[Tensor], found: list[Tensor]) -> None:
        """Note an operation on tensors of two devices; numbers on a CPU are read there, without waiting for a GPU."""
        if not {value.device.type for value in (*given, *found)} >= {"cpu", "cuda"}:
            return
        takes_numbers = torch.Tag.pointwise in function.tags and function._opname != "where"  # which copies them
        takes_numbers |= function._opname == "fill_"
        is_ours = function.namespace == "dropkit"
        if takes_numbers and all(value.is_cuda or not value.dim() for value in given):
            return
        if is_ours and all(value.is_cuda or value.dtype in (torch.int64, torch.float64) for value in given):
            return  # addresses may be on a CPU; how they are moved is seen where the portable operations serve
        devices = ", ".join(f"{value.device.type} {list(value.shape)}" for value in (*given, *found))
        self.crossings.append(f"{function} of {devices}\n{_where()}")


class _Shapes(FakeTensorMode):
    """Fake tensors, whose numbers that are known are not copied to a device that is not there."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_cpu and args[0].constant is None:
            return 1  # some number: to read one on a CPU is no matter
        leaves = pytree.tree_leaves((args, kwargs))
        known = [value for value in leaves if getattr(value, "constant", None) is not None]
        with contextlib.ExitStack() as stack:
            if any(isinstance(value, torch.device) and value.type != "cpu" for value in leaves):
                for value in known:
                    stack.enter_context(mock.patch.object(value, "constant", None))
            return super().dispatch(func, types, args, kwargs)


def _tensors(value: Any) -> list[Any]:
    return [each for each in pytree.tree_leaves(value) if isinstance(each, Tensor)]


def _where() -> str:
    """Return the lines of dropkit that are being run, the innermost first."""
    lines, frame = [], sys._getframe()
    while frame is not None:
        _, package, file = frame.f_code.co_filename.rpartition("/dropkit/")
        if package:
            lines.append(f"    {file}:{frame.f_lineno}")
        frame = frame.f_back
    return "\n".join(lines[:6])


@contextmanager
def on_gpu(serving: str = "shapes") -> Iterator[Gpu]:
    """Let tensors be on "cuda".

    Args:
        serving: What serves dropkit's operators, one of `SERVING`.
    """
    with _there_is_one(), engine.replaced(), _Shapes(allow_non_fake_inputs=True), Gpu(serving) as gpu:
        yield gpu


@contextmanager
def compiled_on_gpu() -> Iterator[Callable[[Callable[..., Any]], tuple[Any, list[torch.fx.Node]]]]:
    """Let tensors be on "cuda", and functions be compiled for them, without gradients.

    Yields:
        What returns, for a function of no arguments, what one graph compiled for it returns, and the graph's nodes.
    """

    def compiled(function: Callable[[], Any]) -> tuple[Any, list[torch.fx.Node]]:
        nodes: list[torch.fx.Node] = []

        def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
            nodes.extend(graph.graph.nodes)
            return make_boxed_func(graph.forward)

        torch._dynamo.reset()
        return torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(), nodes

    with _there_is_one(), _Shapes(allow_non_fake_inputs=True), torch.no_grad():
        yield compiled


def is_on_cpu(node: torch.fx.Node) -> bool:
    """Tell whether a node of a graph has tensors on the CPU."""
    return any(value.is_cpu for value in _tensors(node.meta.get("val")))


@contextmanager
def _there_is_one() -> Iterator[None]:
    no_triton = mock.patch.object(kernels_of_gpus, "why_portable", return_value="there is no GPU")
    capability = mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0))
    with no_triton, capability, guard():
        yield


@contextmanager
def guard() -> Iterator[None]:
    """Let autograd record on "cuda": where PyTorch is built for CPUs, nothing switches to such a device.

    What switches to "meta" does nothing, which is what is wanted.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


def moved(value: Any, dtype: torch.dtype | None = None) -> Any:
    """Return what a call is given, on "cuda": tensors of floating types in one of them, and to be differentiated.

    Args:
        value: Tensors and layers in any nest; layers are changed in place, as `Module.to` changes them.
        dtype: What float32 becomes. Default: it stays.
    """

    def move(tensor: Tensor) -> Tensor:
        wanted = dtype if dtype is not None and tensor.dtype == torch.float32 else tensor.dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="cuda")

    def of(each: Any) -> Any:
        if isinstance(each, nn.Module):
            return each._apply(move)
        if not isinstance(each, Tensor):
            return each
        return move(each).requires_grad_(each.dtype == torch.float32 or each.is_complex())

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return pytree.tree_map(of, value)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
