"""Masks and fields of numbers at an address, by whichever kernel serves; eager, compiled and batched code alike.

Tensors of keys and streams have one axis for every leading axis of slices; the rows of a layout are wrapped to 64 bits
with a sign, as operators take them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dropkit.kernels import gpu, operators, portable
from dropkit.kernels.native import fields as native
from dropkit.random.keys import FOLD
from dropkit.random.layout import Layout
from dropkit.random.philox import rounds, split

__all__ = ["integers", "keep_mask", "keys", "normal", "uniform"]

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_ADDRESS = "Tensor key, Tensor stream, SymInt[] shape, SymInt[] row_strides, SymInt first_row, SymInt first_column"


def _fake(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    shape = (*torch.broadcast_shapes(key.shape, stream.shape), *place.shape)
    return torch.empty(shape, dtype=dtype, device=device)


def _batch(operator: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    def run(_info: Any, in_dims: tuple[Any, ...], key: Tensor, stream: Tensor, *rest: Any) -> tuple[Tensor, int]:
        return operator(*operators.slices_first(in_dims[:2], (key, stream)), *rest), 0

    return run


def _normal_from_uniforms(
    key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype
) -> Tensor:
    return portable.normal_from(lambda key, wide: _uniform(key, stream, *place, device, wide), key, dtype)


_KERNELS: dict[str, tuple[str, dict[str, Callable[..., Tensor]]]] = {
    "integers": ("", {"cpu": native.integers, "cuda": gpu.served("triton_fields", "integers", portable.integers)}),
    "uniform": (
        ", ScalarType dtype",
        {"cpu": native.uniform, "cuda": gpu.served("triton_fields", "uniform", portable.uniform)},
    ),
    "normal": (", ScalarType dtype", {"cpu": native.normal, "cuda": _normal_from_uniforms}),
}

for _name, (_options, _kernels) in _KERNELS.items():
    _LIBRARY.define(f"{_name}({_ADDRESS}, Device device{_options}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _drawn = operators.drawn_on(getattr(portable, _name), **_kernels)
    _LIBRARY.impl(_name, operators.of_place(_drawn, 2), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dropkit::{_name}", operators.of_place(_fake, 2), lib=_LIBRARY)
    _operator = getattr(torch.ops.dropkit, _name).default
    torch.library.register_vmap(f"dropkit::{_name}", _batch(_operator), lib=_LIBRARY)


def _fold(key: Tensor, number: Tensor) -> Tensor:
    return portable.fold(key, number, 0)


def _fold_on_cpu(key: Tensor, number: Tensor) -> Tensor:
    """Fold in NumPy, which takes a third of the time of as many operations of PyTorch on a few keys."""
    shape = torch.broadcast_shapes(key.shape, number.shape)
    keys, numbers = (np.atleast_1d(each.numpy()).view(np.uint64) for each in (key, number))  # scalars warn of overflow
    words = rounds((numbers, *split(0), FOLD), split(keys))
    folded = torch.from_numpy((words[0] | words[1] << 32).view(np.int64)).reshape(shape)
    return torch.empty(shape, dtype=torch.int64, device="cpu").copy_(folded)


def _fake_fold(key: Tensor, number: Tensor) -> Tensor:
    return torch.empty(torch.broadcast_shapes(key.shape, number.shape), dtype=torch.int64, device=key.device)


def _batch_fold(_info: Any, in_dims: tuple[Any, ...], *operands: Tensor) -> tuple[Tensor, int]:
    first = operators.slices_first(in_dims, operands)
    rank = max(operand.dim() for operand in first)
    return _folded(*(one.reshape(len(one), *(1,) * (rank - one.dim()), *one.shape[1:]) for one in first)), 0


# One operator in compiled code: made C++ of, its products would overflow, which compilers of C++ take never to happen,
# and written into whatever reads a key they would take minutes to compile.
_LIBRARY.define("fold(Tensor key, Tensor number) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("fold", _fold, "CompositeExplicitAutograd")
_LIBRARY.impl("fold", _fold_on_cpu, "CPU")
torch.library.register_fake("dropkit::fold", _fake_fold, lib=_LIBRARY)
torch.library.register_vmap("dropkit::fold", _batch_fold, lib=_LIBRARY)

_folded = torch.ops.dropkit.fold.default
_integers = torch.ops.dropkit.integers.default
_uniform = torch.ops.dropkit.uniform.default
_normal = torch.ops.dropkit.normal.default


def keep_mask(key: Tensor, stream: Tensor, threshold: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return the mask of kept units, True = kept.

    Args:
        key: Int64 tensor of keys.
        stream: Int64 tensor of streams, with the same axes.
        threshold: Int64 tensor of rates' thresholds, over the leading axes of the mask.
        place: The places of the mask.
        device: Where the mask shall be.
    """
    return operators.keep_mask(key, stream, threshold, *place, device)


def keys(key: Tensor, number: int | Tensor) -> Tensor:
    """Return the keys of further fields of noise, as `dropkit.random.field` counts them, but for field 0.

    Args:
        key: Int64 tensor of keys.
        number: Number of the field, or a tensor of several that broadcasts with the keys.
    """
    if not torch.compiler.is_compiling():
        return portable.fold(key, number, 0)
    if not isinstance(number, Tensor):  # made where it is used, for the compiler would copy a constant to a GPU
        number = torch.full((), number, dtype=torch.int64, device=key.device)
    return _folded(key, number)


def integers(key: Tensor, stream: Tensor, place: Layout, device: torch.device) -> Tensor:
    """Return the uniform 32-bit integers of a field, as int64.

    Args:
        key: Int64 tensor of keys.
        stream: Int64 tensor of streams, with the same axes.
        place: The places of the field.
        device: Where the field shall be.
    """
    return _integers(key, stream, *place, device)


def uniform(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return uniforms strictly between 0 and 1, exact in float32 and float64; half types are rounded from float32.

    Args:
        key: Int64 tensor of keys.
        stream: Int64 tensor of streams, with the same axes.
        place: The places of the field.
        device: Where the field shall be.
        dtype: Its type.
    """
    return _uniform(key, stream, *place, device, dtype)


def normal(key: Tensor, stream: Tensor, place: Layout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return standard normals, by the cosine branch of Box and Muller (1958); half types are rounded from float32.

    The compiled kernels give one result on every processor; on other devices it differs from that by at most 1e-12 in
    float64 and 4e-6 in float32.

    Args:
        key: Int64 tensor of keys.
        stream: Int64 tensor of streams, with the same axes.
        place: The places of the field.
        device: Where the field shall be.
        dtype: Its type.
    """
    return _normal(key, stream, *place, device, dtype)
