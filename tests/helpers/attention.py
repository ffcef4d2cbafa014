"""A layer of attention of ours beside PyTorch's, and inputs of both."""

from typing import Any

import torch
from torch import Tensor

from dropkit.nn import MultiheadAttention

KEY = 0x720F_0000_1234_5678
BATCH, QUERIES, KEYS, WIDTH, HEADS = 3, 4, 5, 8, 2


def pair(p: float = 0.0, **options: Any) -> tuple[MultiheadAttention, torch.nn.MultiheadAttention]:
    """Our layer and PyTorch's, made from one seed, with biases that are not 0."""
    layers = []
    for kind in (MultiheadAttention, torch.nn.MultiheadAttention):
        torch.manual_seed(0)
        layers.append(kind(WIDTH, HEADS, p, **options))
        for parameter in layers[-1].parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return tuple(layers)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((BATCH, QUERIES, WIDTH), (BATCH, KEYS, WIDTH), (BATCH, KEYS, WIDTH))
    return tuple(torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)
