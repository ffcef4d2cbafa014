"""Models written as functions of their layers and inputs."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Written", "drop"]


class Written(nn.Module):
    """A model whose forward is a function of its layers and an input."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def drop(self: nn.Module, x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, self.training)
