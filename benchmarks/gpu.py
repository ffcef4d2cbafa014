"""Dropout on a GPU: against a copy of memory, PyTorch's eager dropout and compiled code.

    PYTHONPATH=src python benchmarks/gpu.py [--rounds 20] [--budget 480] [masks copy ...]

needs PyTorch for CUDA, with the Triton that comes with it, and NumPy, and nothing else: dropkit need not be installed,
nor its library for CPUs be compiled. `make bench-gpu` does the same, by the `python3` of the path. To install dropkit
beside a PyTorch that is there: `pip install --no-deps .`

Times are medians over rounds of what the GPU took, sides taking turns. Every row is a process of its own, so that
whatever happens to one, the others run. A row says whether its bar is met; the exit status is 1 if a row failed, for
example because a mask is wrong, or was not run.

The whole is meant to take less than eight minutes on one H100, and it does not go on for longer: after 480 seconds
(`--budget`) the row that runs is ended, and those that would come after it are named.

    python benchmarks/gpu.py --rehearse

runs every row without a GPU, on tiny tensors, to see that it runs.
"""

import argparse
import multiprocessing
import platform
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from gpu_attention import attention
from gpu_compiled import fusion, memory
from gpu_dropout import backward, copy, small
from gpu_masks import masks
from gpu_norm import norm
from gpu_timing import HERE, REHEARSE

import dropkit
from dropkit import kernels

ROWS: dict[str, Callable[[int], None]] = {
    "masks": masks,
    "copy": copy,
    "backward": backward,
    "norm": norm,
    "small": small,
    "attention": attention,
    "fusion": fusion,
    "memory": memory,
}


SHARE = 0.4  # of the budget, for a row: one that hangs leaves time for others


def ran(name: str, rounds: int, limit: float) -> str:
    """Run a row in a new process, for so many seconds at most, and return what became of it, or "" if all is well."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(name, rounds), name=name)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits: an interrupt is this process's to tell
    process.start()
    signal.signal(signal.SIGINT, before)
    try:
        process.join(limit)
        is_late = process.exitcode is None
    finally:
        process.kill()
        process.join()
    if is_late:
        return f"it took longer than {limit:.3g} s"
    return f"exit status {process.exitcode}" if process.exitcode else ""


def _run(name: str, rounds: int) -> None:
    HERE.prepare()
    ROWS[name](rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often each side is timed (default: 20; in a rehearsal 1)")
    parser.add_argument("--budget", type=int, default=HERE.budget, help="seconds for all rows (default: %(default)s)")
    parser.add_argument(REHEARSE, action="store_true", help="run without a GPU, on tiny tensors: times mean nothing")
    arguments = parser.parse_args()
    rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.rehearse else 20
    for name, number in (("rounds", rounds), ("budget", arguments.budget)):
        if number < 1:
            parser.error(f"--{name} must be 1 or more, got {number}")
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; known are {', '.join(ROWS)}")
    lacking = HERE.lacks()
    if lacking:
        parser.error(f"it needs {lacking}")
    start = time.monotonic()
    print(*HERE.heading(), *_versions(), sep="\n", flush=True)
    failed, not_run = [], []
    for name in dict.fromkeys(arguments.rows or ROWS):
        began = time.monotonic()
        left = start + arguments.budget - began
        if left <= 0:
            not_run.append(name)
            continue
        what = ran(name, rounds, min(left, SHARE * arguments.budget))
        print(f"  ({name}: {time.monotonic() - began:.0f} s)" + (f"  FAILED: {what}" if what else ""), flush=True)
        failed += [name] if what else []
    print(f"\n{HERE.state()}")
    if not_run:
        print(f"rows that were not run, for {arguments.budget} s had passed (--budget): {', '.join(not_run)}")
    print(f"{time.monotonic() - start:.0f} s in all; rows that failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not_run else 0


def _versions() -> list[str]:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "missing"
    versions = (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton}, Python {platform.python_version()}"
    )
    return [versions, f"dropkit {dropkit.__version__}; on the CPU:", str(kernels.info())]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
