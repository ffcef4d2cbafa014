"""Random numbers of code that is not ours: every generator it may draw from, seeded, and given back afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["Stream", "seeded"]


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python, and put back what they were.

    Args:
        key: A 64-bit key.
    """
    before = _states()
    torch.manual_seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002  # the user's is this one
    random.seed(key)
    try:
        yield
    finally:
        _put_back(before)


class Stream:
    """The global generators of code that takes turns with other code: what one draws never moves the other's numbers.

    Args:
        key: A 64-bit key that seeds them.
    """

    def __init__(self, key: int) -> None:
        with seeded(key):
            self._states = _states()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let the global generators go on from the end of the last turn, and put back what they were."""
        before = _states()
        _put_back(self._states)
        try:
            yield
        finally:
            self._states = _states()
            _put_back(before)


def _states() -> tuple[Any, ...]:
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), on_cuda  # noqa: NPY002  # as above


def _put_back(states: tuple[Any, ...]) -> None:
    of_torch, of_numpy, of_python, on_cuda = states
    torch.set_rng_state(of_torch)
    np.random.set_state(of_numpy)  # noqa: NPY002  # as above
    random.setstate(of_python)
    if on_cuda:
        torch.cuda.set_rng_state_all(on_cuda)
