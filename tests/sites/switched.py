"""Models to switch, and whether one drops."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.sites.networks import Block, GatedAttention

X = torch.linspace(-1, 1, 48).reshape(6, 8)


class Many(nn.Module):
    """Draws in a layer, in a function, in a gated attention and in a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.attention = Block(), GatedAttention()
        self.network = nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        ones = torch.ones(6, 5, 8)
        parts = [self.block(x), F.dropout(x, 0.5, self.training), self.attention(ones), self.network(ones)[0]]
        return [part.detach() for part in parts]


def many() -> Many:
    torch.manual_seed(1)
    return Many().eval()


def is_on(model: nn.Module) -> bool:
    return bool((model(X) == 0).any())


class Gate(nn.Module):
    """A module whose forward is a function of it."""

    def __init__(self, function: Callable[["Gate", Tensor], Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
