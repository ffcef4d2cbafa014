"""The operators that fuse dropout with what stands before or after it, beside those of `dropkit.kernels.operators`.

Their masks lie on whole tensors, so their addresses have no layout: one follows from the shape and from how many
leading axes have keys of their own. What they stand for is scaled dropout before or after operations of PyTorch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.kernels import gpu, portable
from dropkit.kernels.activations import activate, activate_backward
from dropkit.kernels.native import fused as native
from dropkit.kernels.operators import batch_first
from dropkit.random.layout import layout

__all__ = ["activation_dropout", "activation_dropout_backward", "dropout_add"]

_LIBRARY = torch.library.Library("dropkit", "FRAGMENT")
_ADDRESS = "Tensor key, Tensor stream, Tensor threshold"
_ACTIVATED = f"Tensor input, Tensor? bias, str activation, {_ADDRESS}"

for _schema in (
    f"dropout_add(Tensor input, Tensor residual, {_ADDRESS}) -> Tensor",
    f"activation_dropout({_ACTIVATED}) -> Tensor",
    f"activation_dropout_backward(Tensor grad, {_ACTIVATED}) -> Tensor",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

dropout_add = torch.ops.dropkit.dropout_add.default
activation_dropout = torch.ops.dropkit.activation_dropout.default
activation_dropout_backward = torch.ops.dropkit.activation_dropout_backward.default

_Dropout = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    place = layout("dropout", input.shape, slices=max(key.dim(), stream.dim()))
    return portable.dropout(input, key, stream, threshold, place)


def _fake_dropout(input: Tensor, key: Tensor, stream: Tensor, threshold: Tensor) -> Tensor:
    keep = torch.empty((1,) * input.dim(), dtype=torch.bool, device=input.device)
    return portable.select(input, keep, portable.survivor_scale(threshold))


def _dropout_add(dropout: _Dropout) -> Callable[..., Tensor]:
    """Return what the operator stands for, by dropout that is real or shape-only."""
    return lambda x, residual, *address: residual + dropout(x, *address)


def _batch_dropout_add(
    info: Any, in_dims: tuple[Any, ...], input: Tensor, residual: Tensor, *address: Tensor
) -> tuple[Tensor, int]:
    x, *rest = batch_first(info, (in_dims[0], *in_dims[2:]), input, *address)
    return dropout_add(x, _first(info, in_dims[1], residual), *rest), 0


def _activation_dropout(dropout: _Dropout) -> Callable[..., Tensor]:
    return lambda x, bias, activation, *address: dropout(activate(activation, x, bias), *address)


def _batch_activation_dropout(
    info: Any, in_dims: tuple[Any, ...], input: Tensor, bias: Tensor | None, activation: str, *address: Tensor
) -> tuple[Tensor, int]:
    x, *rest = batch_first(info, (in_dims[0], *in_dims[3:]), input, *address)
    return activation_dropout(*_one_bias(x, bias, in_dims[1]), activation, *rest), 0


def _activation_dropout_backward(dropout: _Dropout) -> Callable[..., Tensor]:
    return lambda grad, x, bias, name, *address: dropout(activate_backward(name, grad, x, bias), *address)


def _batch_activation_dropout_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    input: Tensor,
    bias: Tensor | None,
    activation: str,
    *address: Tensor,
) -> tuple[Tensor, int]:
    of_output, *rest = batch_first(info, (in_dims[0], *in_dims[4:]), grad, *address)
    x = _first(info, in_dims[1], input)
    return activation_dropout_backward(of_output, *_one_bias(x, bias, in_dims[2]), activation, *rest), 0


def _first(info: Any, dim: int | None, tensor: Tensor) -> Tensor:
    """Move the axis that `vmap` batches to the front of a tensor, or give it one."""
    return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _one_bias(input: Tensor, bias: Tensor | None, dim: int | None) -> tuple[Tensor, Tensor | None]:
    """Add a bias of each slice to the slices here, for an operator takes one bias for all."""
    if bias is None or dim is None:
        return input, bias
    bias = bias.movedim(dim, 0)
    return input + bias.reshape(len(bias), *(1,) * (input.dim() - bias.dim()), *bias.shape[1:]), None


for _name, _made_of, _cpu_kernel, _batch in (
    ("dropout_add", _dropout_add, native.dropout_add, _batch_dropout_add),
    ("activation_dropout", _activation_dropout, native.activation_dropout, _batch_activation_dropout),
    (
        "activation_dropout_backward",
        _activation_dropout_backward,
        native.activation_dropout_backward,
        _batch_activation_dropout_backward,
    ),
):
    _LIBRARY.impl(_name, _made_of(_dropout), "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _cpu_kernel, "CPU")
    _LIBRARY.impl(_name, gpu.served("triton_fused", _name, _made_of(_dropout)), "CUDA")
    torch.library.register_fake(f"dropkit::{_name}", _made_of(_fake_dropout), lib=_LIBRARY)
    torch.library.register_vmap(f"dropkit::{_name}", _batch, lib=_LIBRARY)
