"""Running a forward and leaving all as it was: modes, buffers, gradients, random generators, and counts of runs."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from dropkit.sites.interceptor import attached_to

__all__ = ["cloned", "restored"]


@contextmanager
def restored(model: Module) -> Iterator[None]:
    """Put everything back that a forward may change: flags, buffers, gradients, generators' states, counts of runs."""
    runs = [(interceptor, dict(interceptor.runs)) for interceptor in attached_to(model)]
    flags = [(module, module.training) for module in model.modules()]
    # By value: a version counter does not move back with the values.
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    python, numpy = random.getstate(), sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for interceptor, counts in runs:
            interceptor.runs = counts
        random.setstate(python)
        if numpy is not None and of_numpy is not None:
            numpy.random.set_state(of_numpy)
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def cloned(values: Any) -> Any:
    """Return a forward's arguments with every tensor copied, so that work in place does not reach the user's."""

    def clone(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad) if value.is_leaf else value.clone()

    return torch.utils._pytree.tree_map(clone, values)
