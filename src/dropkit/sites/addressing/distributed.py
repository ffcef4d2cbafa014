"""Tensors of PyTorch's that are spread over workers: the part that this one has, and back."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dropkit.sites.calls.functions import Call

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

__all__ = ["is_distributed", "local_arguments", "offset_of", "placements_of", "whole_of"]


def is_distributed(value: object) -> bool:
    """Tell whether a value is a DTensor, without loading what knows of them."""
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(value, library.DTensor)


def placements_of(whole: "DTensor", axes: int) -> "tuple[Placement, ...]":
    """Return how a DTensor has to lie so that each worker can drop from its part alone."""
    from torch.distributed.tensor import Replicate

    placements = whole.placements
    return tuple(each if any(each.is_shard(axis) for axis in range(axes)) else Replicate() for each in placements)


def offset_of(whole: "DTensor", placements: "Sequence[Placement]") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of this worker's part of a DTensor that lies so, and where it begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, first = compute_local_shape_and_global_offset(whole.shape, whole.device_mesh, placements)
    return shape, first


def local_arguments(
    call: Call, mesh: Any, placements: Any, shards: Mapping[int, tuple[int, int]], local: Sequence[int]
) -> dict[str, Any]:
    """Return the arguments of a call that are DTensors, or are to be as they are, as this worker has them."""
    arguments: dict[str, Any] = {
        name: value.redistribute(mesh, placements).to_local()
        for name, value in call.arguments.items()
        if is_distributed(value) and name != "attn_mask"
    }
    if call.arguments.get("inplace"):
        arguments["inplace"] = False
    mask = call.arguments.get("attn_mask")
    if mask is not None:
        mask = mask.full_tensor() if is_distributed(mask) else mask
        for axis, (first, _) in shards.items():
            own = axis - len(local)  # a mask may have fewer axes
            if -own <= mask.dim() and mask.size(own) > 1:
                mask = mask.narrow(own, first, local[axis])
        arguments["attn_mask"] = mask
    return arguments


def whole_of(part: Tensor, whole: "DTensor", mesh: Any, placements: Any, local: Sequence[int]) -> "DTensor":
    """Return the DTensor of which this worker has a part, as long as another one along the axes that are sharded."""
    from torch.distributed.tensor import DTensor

    axes = {axis for axis in range(whole.dim()) if any(each.is_shard(axis) for each in placements)}
    lengths = zip(part.shape, local, whole.shape, strict=True)  # a mask may be shorter, where draws are shared
    shape = torch.Size(
        full if axis in axes and length == own else length for axis, (length, own, full) in enumerate(lengths)
    )
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)
