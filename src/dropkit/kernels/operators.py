"""The operators that PyTorch sees: schemas, shape-only versions, batching rules, and which kernel serves them.

Whatever runs eagerly, compiled or under a fake mode calls the same operator, so all get the same mask. An operator
carries no autograd: `dropkit.functional` wraps it in an `autograd.Function`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import gpu, portable
from dropkit.kernels.native import operations as native
from dropkit.random.layout import Layout

__all__ = ["PLACE", "batch_first", "drawn_on", "dropout", "keep_mask", "of_place", "slices_first"]

_LIBRARY = torch.library.Library("dropkit", "DEF")
PLACE = "SymInt[] shape, SymInt[] row_strides, SymInt first_row, SymInt first_column"
_ADDRESS = f"Tensor key, Tensor stream, Tensor threshold, {PLACE}"

_LIBRARY.define(f"dropout(Tensor input, {_ADDRESS}, bool scaled) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(f"keep_mask({_ADDRESS}, Device device) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

dropout = torch.ops.dropkit.dropout.default
keep_mask = torch.ops.dropkit.keep_mask.default


def of_place(kernel: Callable[..., Tensor], before: int) -> Callable[..., Tensor]:
    """Return a kernel that takes a layout after so many arguments, with its parts in its place, as an operator's."""

    def run(*arguments: Any) -> Tensor:
        shape, row_strides, first_row, first_column = arguments[before : before + 4]
        place = Layout(tuple(shape), tuple(row_strides), first_row, first_column)
        return kernel(*arguments[:before], place, *arguments[before + 4 :])

    return run


def drawn_on(portable: Callable[..., Tensor], **kernels: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what draws on the device that is among its arguments, wherever the tensors of its address are.

    Args:
        portable: The kernel of any device.
        **kernels: The kernels of some types of devices.
    """

    def run(*arguments: Any) -> Tensor:
        device = next(each for each in arguments if isinstance(each, torch.device))
        return kernels.get(device.type, portable)(*arguments)

    return run


def _fake_dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    *_, scaled = rest
    keep = torch.empty((1,) * input.dim(), dtype=torch.bool, device=input.device)
    return portable.select(input, keep, portable.survivor_scale(threshold) if scaled else None)


def _fake_keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, *rest: Any) -> Tensor:
    shape, *_, device = rest
    mask = (*torch.broadcast_shapes(key.shape, stream.shape), *shape)
    thresholds = (*threshold.shape, *(1,) * (len(mask) - threshold.dim()))
    return torch.empty(torch.broadcast_shapes(mask, thresholds), dtype=torch.bool, device=device)


def batch_first(info: Any, in_dims: tuple[Any, ...], tensor: Tensor, *address: Any) -> tuple[Any, ...]:
    """Move the axis that `vmap` batches to the front of a dropout operator's arguments.

    The address gets a leading axis of slices: with keys of their own if it is batched, of length 1 if it is not.
    """
    tensor = tensor.expand(info.batch_size, *tensor.shape) if in_dims[0] is None else tensor.movedim(in_dims[0], 0)
    return tensor, *slices_first(in_dims[1:4], address[:3]), *address[3:]


def slices_first(in_dims: tuple[int | None, ...], address: tuple[Tensor, ...]) -> list[Tensor]:
    """Move the axes that `vmap` batches to the front of the tensors of an address."""
    pairs = zip(address, in_dims, strict=True)
    return [value.unsqueeze(0) if dim is None else value.movedim(dim, 0) for value, dim in pairs]


def _batch_dropout(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    return dropout(*batch_first(info, in_dims, *arguments)), 0


def _batch_keep_mask(info: Any, in_dims: tuple[Any, ...], *address: Any) -> tuple[Tensor, int]:
    return keep_mask(*slices_first(in_dims[:3], address[:3]), *address[3:]), 0


_cuda_dropout = gpu.served("triton_dropout", "dropout", portable.dropout)
_cuda_keep_mask = gpu.served("triton_dropout", "keep_mask", portable.keep_mask)
_LIBRARY.impl("dropout", of_place(portable.dropout, 4), "CompositeExplicitAutograd")
_LIBRARY.impl("dropout", of_place(native.dropout, 4), "CPU")
_LIBRARY.impl("dropout", of_place(_cuda_dropout, 4), "CUDA")
_drawn = drawn_on(portable.keep_mask, cpu=native.keep_mask, cuda=_cuda_keep_mask)
_LIBRARY.impl("keep_mask", of_place(_drawn, 3), "CompositeExplicitAutograd")

for _name, _fake, _batch in (
    ("dropout", _fake_dropout, _batch_dropout),
    ("keep_mask", _fake_keep_mask, _batch_keep_mask),
):
    torch.library.register_fake(f"dropkit::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_vmap(f"dropkit::{_name}", _batch, lib=_LIBRARY)
