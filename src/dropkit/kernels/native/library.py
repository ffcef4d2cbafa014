"""The compiled library: where it is, which instruction set serves, and why it may be missing.

It serves NumPy as well, so nothing here imports PyTorch.
"""

import ctypes
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from dropkit._checks import Choice
from dropkit.errors import UnsupportedError

__all__ = [
    "ENVIRONMENT",
    "PORTABLE",
    "TRITON",
    "Info",
    "Library",
    "choice",
    "info",
    "library",
    "share_threads",
    "warn",
    "why_no_triton",
]

ENVIRONMENT = "DROPKIT_KERNEL"
PORTABLE = "portable"
_ONE, _PYTORCH = "one", "PyTorch"  # threads
_INSTRUCTION_SETS = ("avx512", "avx2", "neon", "scalar")
TRITON = "triton"  # on GPUs, and nothing else there; CPUs are served as by "auto"
_CHOICES = Choice(("auto", PORTABLE, TRITON, *_INSTRUCTION_SETS))
_SUFFIX = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
_NAME = f"dropkit_kernels.{_SUFFIX}"

# Every argument is a number of 64 bits, an address or not, and declared as a pointer: ctypes converts an int to that in
# half the time that it needs for an int64. CMakeLists.txt refuses to build where pointers are shorter.
_WORD = ctypes.c_void_p
_WORDS = {  # how many arguments each function takes
    "dropkit_set_parallel_for": 1,
    "dropkit_dropout": 4,
    "dropkit_dropout_plain": 8,
    "dropkit_add": 8,
    "dropkit_activate": 9,
    "dropkit_activate_slices": 6,
    "dropkit_activate_gradient": 10,
    "dropkit_activate_gradient_slices": 7,
    "dropkit_softmax": 4,
    "dropkit_keep_bits": 3,
    "dropkit_keep_bytes": 2,
    "dropkit_integers": 2,
    "dropkit_uniform": 3,
    "dropkit_normal": 3,
    "dropkit_gaussian": 4,
    "dropkit_affine": 4,
    "dropkit_apply_bits": 7,
    "dropkit_apply_bits_strided": 10,
    "dropkit_affine_by_bits": 9,
}
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "dropkit_kernel": (ctypes.c_char_p, ()),
    "dropkit_use": (ctypes.c_int, (ctypes.c_char_p,)),
    **{name: (None, (_WORD,) * count) for name, count in _WORDS.items()},
}


@dataclass(frozen=True)
class Info:
    """Which kernels serve tensors and NumPy arrays.

    Args:
        kernel: On CPUs, ``"avx512"``, ``"avx2"``, ``"neon"``, ``"scalar"`` (compiled) or ``"portable"`` (PyTorch's
            operations, and NumPy's on its arrays).
        reason: Why this one.
        library: The compiled library; None where there is none.
        threads: ``"PyTorch"``, on whose threads it works once PyTorch is imported (compiled kernels: 2.10 or newer), or
            ``"one"``. Portable operations on NumPy arrays always work on one.
        gpus: What serves tensors on GPUs: ``"triton"``, its kernels, or ``"portable"`` and why. Each kernel is compared
            with portable operations on the GPU before it first serves there; what has failed is listed.
    """

    kernel: str
    reason: str
    library: Path | None
    threads: str
    gpus: str = PORTABLE

    def __str__(self) -> str:
        where = f"\nlibrary: {self.library}" if self.library else ""
        on_cpus = f"kernel: {self.kernel} ({self.reason})\nthreads: {self.threads}{where}"
        return f"{on_cpus}\nGPUs: {self.gpus}"


class Library:
    """The functions of the compiled library, as attributes without their prefix."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._loaded, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("dropkit_"), function)
        self.threads = _ONE
        self._has_asked = False

    def share_threads(self) -> None:
        """Work on PyTorch's threads, from when it is imported: a second pool would fight with it for the cores."""
        torch = _imported_torch()
        if self._has_asked or torch is None:
            return
        self._has_asked = True
        loop = _parallel_for(Path(str(getattr(torch, "__file__", None))).parent / "lib")
        if loop:
            self.set_parallel_for(loop)
            self.threads = _PYTORCH

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"{_NAME} has no function {name!r}")


def _imported_torch() -> ModuleType | None:
    """Return PyTorch if a program has imported it."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "get_num_threads") else None  # which it lacks while it is being imported


def _parallel_for(folder: Path) -> int | None:
    """Return the address of the loop over threads of the PyTorch whose libraries are in a folder."""
    names = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}
    try:
        loaded = ctypes.CDLL(str(folder / names.get(sys.platform, "libtorch_cpu.so")))
        return ctypes.cast(loaded.torch_parallel_for, ctypes.c_void_p).value  # from PyTorch 2.10 on
    except (OSError, AttributeError):
        return None


def _find() -> Path | None:
    """Return the library's path; an editable install keeps it apart from the sources."""
    with resources.as_file(resources.files(__package__).joinpath(_NAME)) as path:
        return path if path.exists() else None


def choice() -> str:
    """Return which kernels the environment asks for.

    Raises:
        ArgumentError: If there are none of that name.
    """
    given = os.environ.get(ENVIRONMENT, "").strip().lower()
    return _CHOICES.check("dropkit.kernels", ENVIRONMENT, given or "auto")


@cache
def _state() -> tuple[Library | None, Info]:
    wanted = choice()
    asked = f"{ENVIRONMENT}={wanted}"
    if wanted == PORTABLE:
        return None, Info(PORTABLE, asked, None, _ONE)
    path = _find()
    if path is None:
        reason = "it was installed without a C++ compiler"
        return None, Info(PORTABLE, reason, None, _ONE)
    try:
        found = Library(path)
    except (OSError, AttributeError) as error:
        return None, Info(PORTABLE, f"the compiled library does not load: {error}", path, _ONE)
    reason = "the best that this processor has"
    if wanted not in ("auto", TRITON):
        if not found.use(wanted.encode()):
            warn(f"{asked}: this processor or build lacks it; {_kernel(found)} serves.")
            reason = f"{asked} is not to be had, and this is {reason}"
        else:
            reason = asked
    return found, Info(_kernel(found), reason, path, found.threads)


def _kernel(found: Library) -> str:
    return found.kernel().decode()


_served: list[Library | None] = []  # what `library` found; Dynamo would look behind `functools.cache`, and warn


def library() -> Library | None:
    """Return the compiled library, or None where portable operations serve; say once that they do, if unasked."""
    if not _served:
        _served.append(_find_and_say())
    return _served[0]


def _find_and_say() -> Library | None:
    found, about = _state()
    if found is not None:
        found.share_threads()
    elif not about.reason.startswith(ENVIRONMENT):
        from dropkit.kernels.native import reinstall  # here, for few programs need what it imports

        command = reinstall.reinstall_command()
        warn(
            "dropkit runs on portable operations of PyTorch and NumPy, slower than its compiled kernels: "
            f"{about.reason}. Install GCC or Clang, then run{reinstall.place_to_run(command)}:\n\n    {command}\n\n"
            f"Or set {ENVIRONMENT}={PORTABLE} to silence this."
        )
    return found


def share_threads() -> None:
    """Let a library that was loaded before PyTorch was imported work on PyTorch's threads."""
    for found in _served:
        if found is not None:
            found.share_threads()


def warn(message: str) -> None:
    """Warn at the line that called dropkit, be it through PyTorch."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in ("dropkit", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def why_no_triton() -> str | None:
    """Return why Triton's kernels serve on no GPU, or None if they may.

    Raises:
        UnsupportedError: If they are asked for and Triton is not installed.
    """
    asked = choice()
    if asked == PORTABLE:
        return f"{ENVIRONMENT}={PORTABLE}"
    if importlib.util.find_spec("triton"):
        return None
    if asked == TRITON:
        remedy = f"Install it (pip install triton), or unset {ENVIRONMENT}."
        raise UnsupportedError(f"dropkit.kernels: {ENVIRONMENT}={TRITON}, and Triton is not installed. {remedy}")
    return "Triton is not installed"


def _gpus() -> str:
    """Say what serves on GPUs, as far as it is known."""
    gpu = sys.modules.get("dropkit.kernels.gpu")  # which imports PyTorch
    why = why_no_triton()
    reasons = [why] if why else gpu.failures() if gpu else []
    return "; ".join([*([] if why else [TRITON]), *(f"{PORTABLE} ({reason})" for reason in reasons)])


def info() -> Info:
    """Say which kernels serve tensors and NumPy arrays, and why. PyTorch is not imported for it.

    The environment variable ``DROPKIT_KERNEL`` chooses others, before dropkit is first used: ``avx512``, ``avx2``,
    ``neon``, ``scalar`` (compiled without vector instructions), ``portable``, or ``auto``, the best that there is. On
    GPUs Triton's kernels serve, unless it is ``portable``, or Triton is not installed, or a kernel fails when it is
    compared with portable operations there, of which a warning tells; with ``triton`` that is an error.

    Returns:
        An `Info`, which prints as text.

    Raises:
        ArgumentError: If ``DROPKIT_KERNEL`` is none of these.
        UnsupportedError: If it is ``triton``, and Triton is not installed.

    Examples:
        >>> from dropkit import kernels
        >>> kernels.info().kernel in ("avx512", "avx2", "neon", "scalar", "portable")
        True
    """
    found, about = _state()
    if found is None:
        return replace(about, threads=_ONE if _imported_torch() is None else _PYTORCH, gpus=_gpus())
    found.share_threads()
    return replace(about, threads=found.threads, gpus=_gpus())
