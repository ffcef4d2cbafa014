"""One tensor, laid out in memory in many ways."""

import torch
from torch import Tensor

__all__ = ["arrangements"]


def arrangements(x: Tensor) -> dict[str, Tensor]:
    """Tensors equal to a four-axis one that lie otherwise in memory."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "every other column": wide[..., ::2],
        "inside a larger tensor": torch.nn.functional.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2],
        "begins within its storage": torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(x.shape),
        "expanded": x[:, :, :1].expand(x.shape),
        "expanded from one number": x[:1, :1, :1, :1].expand(x.shape),
    }
