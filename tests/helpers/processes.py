"""Real processes that train together, over gloo."""

import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

SECONDS = 240  # for all that a group of processes does: far more than it takes, and an end if one waits for another


def together(work: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list[Any]:
    """Return what a function returns in each of some processes, or raise what one of them raised."""
    context = multiprocessing.start_processes(
        _run, (work, count, str(folder), arguments), nprocs=count, join=False, start_method="spawn"
    )
    end = time.monotonic() + SECONDS
    try:
        while not context.join(5):  # which returns as soon as any of them has ended
            if time.monotonic() > end:
                raise TimeoutError(f"{count} processes did not end within {SECONDS} seconds")
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _run(rank: int, work: Callable[..., Any], count: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count, timeout=limit)
    try:
        torch.save(work(*arguments), f"{folder}/{rank}.pt")
        dist.barrier()
    except BaseException:
        traceback.print_exc()  # also of those whose end is not the first that is noticed
        raise
    os._exit(0)  # for now and then gloo's threads outlive their group, and abort the process as it ends
