"""Random numbers of code that is not ours: every generator it may draw from, seeded, and given back afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python, and put back what they were.

    Args:
        key: A 64-bit key.
    """
    with_cuda = torch.cuda.is_initialized()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002  # the user's is this one
    before_cuda = torch.cuda.get_rng_state_all() if with_cuda else []
    torch.manual_seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002
    random.seed(key)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if with_cuda:
            torch.cuda.set_rng_state_all(before_cuda)
