"""PyTorch's own dropout with given masks, to compare with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _Given(TorchDispatchMode):
    def __init__(self, masks: Sequence[Tensor]) -> None:
        super().__init__()
        self.masks = list(masks)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float:
            noise = args[0]
            return noise.copy_(self.masks.pop(0).expand(noise.shape).to(noise.dtype))
        assert "dropout" not in str(func), func
        return func(*args, **(kwargs or {}))


@contextmanager
def with_masks(*masks: Tensor) -> Iterator[None]:
    """Let PyTorch's dropout on a CPU draw these masks, one after another, and see that it takes them all."""
    mode = _Given(masks)
    with mode:
        yield
    assert not mode.masks
