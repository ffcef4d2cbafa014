"""Which kernels serve tensors on GPUs: Triton's, each compared there before it first serves, else portable operations.

Between a kernel's source and what a GPU runs stand a compiler and a driver, and masks that are off would go unnoticed.
So before an operator's first call of a form on a GPU, in a type, a small one of that form is done both ways.
"""

import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch

from dropkit.errors import UnsupportedError
from dropkit.kernels.gpu_address import Form
from dropkit.kernels.gpu_examples import TYPES, described, example, form, is_near
from dropkit.kernels.native.library import ENVIRONMENT, PORTABLE, TRITON, choice, warn, why_no_triton

__all__ = ["failures", "served", "why_portable"]

_Run = Callable[..., Any]
_KERNELS: dict[str, tuple[str, _Run]] = {}  # by operators: the module of Triton's, and what they do by PyTorch's
_FOUND: dict[tuple[str, torch.device, torch.dtype, Form], str | None] = {}  # why portable operations serve
_thread = threading.local()


def served(module: str, name: str, portable: _Run) -> _Run:
    """Return what does an operator's work on tensors of GPUs.

    Args:
        module: The module here that has Triton's kernels; it is imported when the first tensor comes.
        name: The operator, and the function in that module.
        portable: What does the same by PyTorch's operations.
    """
    _KERNELS[name] = module, portable

    def run(*arguments: Any) -> Any:
        if getattr(_thread, "compares", False):  # a kernel that calls this one, which has comparisons of its own
            return portable(*arguments)
        device, dtype = _place(arguments)
        if why_portable(name, device, dtype, form(name, arguments)) is not None:
            return portable(*arguments)
        return _kernel(name)(*arguments)

    return run


def why_portable(name: str, device: torch.device, dtype: torch.dtype, like: Form) -> str | None:
    """Return why portable operations do an operator's work, or None where kernels of Triton's do.

    Args:
        name: The operator.
        device: A GPU.
        dtype: Of the tensors it is given.
        like: The form of the call.

    Raises:
        UnsupportedError: If Triton's kernels are asked for and they cannot serve.
    """
    wanted = dtype if dtype in TYPES else torch.float32  # for others, masks alone are Triton's
    place = name, device, wanted, like
    if place not in _FOUND:
        if _why_none() is None and _is_capturing(device):  # a CUDA graph, while nothing can be compared
            return None
        _FOUND[place] = _why_none() or _why_not_here(*place)
    return _FOUND[place]


def failures() -> list[str]:
    """Return why portable operations serve where kernels were compared with them and failed."""
    return sorted(reason for reason in _FOUND.values() if reason)


@cache
def _why_none() -> str | None:
    """Return why there are no kernels of Triton's at all, and say so, if unasked; or None where there are."""
    reason = why_no_triton()
    if reason and choice() != PORTABLE:
        _say(reason, "Install it (pip install triton)")
    return reason


def _why_not_here(name: str, device: torch.device, dtype: torch.dtype, like: Form) -> str | None:
    """Return why the kernel of an operator does not serve on a device, and say so; or None where it does."""
    reason = _differs(name, device, dtype, like)
    if reason is None:
        return None
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    of_form = f" ({described(name, like)})" if like else ""
    reason = f"on {where} Triton's {name} for {dtype}{of_form} {reason}"
    if choice() == TRITON:
        raise UnsupportedError(f"dropkit.kernels: {ENVIRONMENT}={TRITON}, and {reason}. Unset {ENVIRONMENT}.")
    _say(reason, "Another version of Triton may help")
    return reason


def _say(reason: str, remedy: str) -> None:
    warn(
        f"dropkit runs on portable operations of PyTorch on GPUs, slower than its kernels: {reason}. {remedy}. "
        f"Or set {ENVIRONMENT}={PORTABLE} to silence this."
    )


def _differs(name: str, device: torch.device, dtype: torch.dtype, like: Form) -> str | None:
    """Return in what way a kernel fails at a small example, or None if it does what portable operations do."""
    found: list[str | None] = []

    def compare() -> None:
        _thread.compares = True
        try:
            arguments = example(name, device, dtype, like, _portable)
            is_right = is_near(_kernel(name)(*arguments), _portable(name)(*arguments))
            found.append(None if is_right else "does not compute what they do")
        except Exception as error:  # noqa: BLE001  # of the compiler, the driver, an import: whatever keeps it from serving
            found.append(f"fails ({type(error).__name__}: {' '.join(str(error).split())[:300]})")

    # In a thread of its own no mode, transform or inference of the caller is active.
    thread = threading.Thread(target=compare, name="dropkit compares kernels")
    thread.start()
    thread.join()
    return found[0]


def _portable(name: str) -> _Run:
    return _KERNELS[name][1]


def _kernel(name: str) -> _Run:
    kernel: _Run = getattr(import_module(f"dropkit.kernels.{_KERNELS[name][0]}"), name)
    return kernel


def _place(arguments: tuple[Any, ...]) -> tuple[torch.device, torch.dtype]:
    """Return the GPU that an operator works on, and the type of the tensors it is given."""
    device = next((each for each in arguments if isinstance(each, torch.device)), None)
    if device is None:
        return arguments[0].device, arguments[0].dtype
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device, next((each for each in arguments if isinstance(each, torch.dtype)), torch.float32)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
