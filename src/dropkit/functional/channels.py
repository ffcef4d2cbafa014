"""Dropout of whole channels, and of whole features over time: plain dropout whose draws are shared along some axes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dropkit._checks import argument_error, argument_type_error
from dropkit.functional.address import check_one_draw
from dropkit.functional.dropout import drop
from dropkit.functional.overrides import overridable

__all__ = ["check_map", "dropout1d", "dropout2d", "dropout3d", "locked_dropout"]

_SHAPES = {
    1: ("(C, L) or (N, C, L)", {}),
    2: ("(N, C, H, W)", {3: "Of shape (N, C, L) it is for {}1d; of shape (C, H, W), call unsqueeze(0) first."}),
    3: ("(C, D, H, W) or (N, C, D, H, W)", {}),
}
_RANKS = {1: (2, 3), 2: (4,), 3: (4, 5)}


def check_map(where: str, name: str, dims: int, input: Tensor) -> None:
    """Raise unless an input has the axes of maps with so many dimensions, and could be read in one way only.

    Args:
        where: The function on whose behalf to check.
        name: Its name without the number of dimensions.
        dims: Number of dimensions of a map.
        input: The input; what is no tensor is left to other checks.
    """
    if isinstance(input, Tensor) and input.dim() not in _RANKS[dims]:
        shapes, remedies = _SHAPES[dims]
        shape = input.layout if input.is_nested else tuple(input.shape)
        raise argument_error(where, "input", f"of shape {shapes}", shape, remedies.get(input.dim(), "").format(name))


@overridable
def dropout1d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero whole channels of sequences with probability `p` and scale the rest by ``1 / (1 - p)``, in training.

    It is `dropout` with ``broadcast_dims=-1``: one draw for each example and channel.

    Args:
        input: Tensor of shape (C, L) or (N, C, L), of a floating or complex type; (N, C, L) may be nested.
        p: Probability of dropping a channel, as for `dropout`. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True.
        inplace: Whether to overwrite the input, as for `dropout`. Default: False.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept; of length 1 on the axes of a map, or on any
            other that shares. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the input has another number of axes, or as `dropout`.
        ArgumentTypeError: As `dropout`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.dropout1d(torch.ones(3, 4), 0.5, key=7)
        tensor([[0., 0., 0., 0.],
                [2., 2., 2., 2.],
                [0., 0., 0., 0.]])

    References:
        Tompson, Goroshin, Jain, LeCun and Bregler (2015), "Efficient object localization using convolutional networks",
        section 3.2.
    """
    return _drop_channels(
        1, input, p, training, inplace, generator=generator, key=key, mask=mask, return_mask=return_mask, stream=stream
    )


@overridable
def dropout2d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero whole channels of images with probability `p` and scale the rest by ``1 / (1 - p)``, in training.

    It is `dropout` with ``broadcast_dims=(-2, -1)``: one draw for each example and channel.

    Args:
        input: Tensor of shape (N, C, H, W), of a floating or complex type, or nested. Three axes are refused, for
            PyTorch has read them as (N, C, L) in some versions and as (C, H, W) in others.
        p: Probability of dropping a channel, as for `dropout`. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True.
        inplace: Whether to overwrite the input, as for `dropout`. Default: False.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, as for `dropout1d`. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the input has another number of axes, or as `dropout`.
        ArgumentTypeError: As `dropout`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.dropout2d(torch.ones(1, 3, 2, 2), 0.5, key=7).sum((2, 3))
        tensor([[0., 8., 0.]])

    References:
        Tompson, Goroshin, Jain, LeCun and Bregler (2015), "Efficient object localization using convolutional networks",
        section 3.2.
    """
    return _drop_channels(
        2, input, p, training, inplace, generator=generator, key=key, mask=mask, return_mask=return_mask, stream=stream
    )


@overridable
def dropout3d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero whole channels of volumes with probability `p` and scale the rest by ``1 / (1 - p)``, in training.

    It is `dropout` with ``broadcast_dims=(-3, -2, -1)``: one draw for each example and channel.

    Args:
        input: Tensor of shape (C, D, H, W) or (N, C, D, H, W), of a floating or complex type; (N, C, D, H, W) may be
            nested.
        p: Probability of dropping a channel, as for `dropout`. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True.
        inplace: Whether to overwrite the input, as for `dropout`. Default: False.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, as for `dropout1d`. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the input has another number of axes, or as `dropout`.
        ArgumentTypeError: As `dropout`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.dropout3d(torch.ones(3, 2, 2, 2), 0.5, key=7).sum((1, 2, 3))
        tensor([ 0., 16.,  0.])

    References:
        Tompson, Goroshin, Jain, LeCun and Bregler (2015), "Efficient object localization using convolutional networks",
        section 3.2.
    """
    return _drop_channels(
        3, input, p, training, inplace, generator=generator, key=key, mask=mask, return_mask=return_mask, stream=stream
    )


@overridable
def locked_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    batch_first: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero the same features at all steps of a sequence, with probability `p`, and scale the rest, in training.

    It is `dropout` with the axis of time in ``broadcast_dims``: one draw for each example and feature.

    Args:
        input: Tensor of shape (N, L, C), or (L, N, C) without `batch_first`, of a floating or complex type; (N, L, C)
            may be nested.
        p: Probability of dropping a feature, as for `dropout`. Default: 0.5.
        training: Whether to drop. If False the input itself is returned. Default: True.
        batch_first: Whether examples are along axis 0 and time along axis 1, rather than the other way round, as
            PyTorch's recurrent layers have it by default. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`; one a slice only with `batch_first`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept; of length 1 on the axis of time. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the input has another number of axes, or as `dropout`.
        ArgumentTypeError: As `dropout`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.locked_dropout(torch.ones(1, 3, 4), 0.5, key=7)
        tensor([[[0., 2., 2., 2.],
                 [0., 2., 2., 2.],
                 [0., 2., 2., 2.]]])

    References:
        Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks",
        section 4; the name is that of the layer in the code of Merity, Keskar and Socher (2018), "Regularizing and
        optimizing LSTM language models", section 4.2.
    """
    where = "locked_dropout"
    if not isinstance(batch_first, bool):
        raise argument_type_error(where, "batch_first", "True or False", batch_first)
    if isinstance(input, PackedSequence):
        remedy = "Call torch.nn.utils.rnn.pad_packed_sequence on it first, and pack the result again."
        raise argument_type_error(where, "input", "a torch.Tensor", type(input), remedy)
    if isinstance(input, Tensor) and input.dim() != 3:
        rule, axis = ("(N, L, C)", 0) if batch_first else ("(L, N, C)", 1)
        remedy = f"Of one sequence of shape (L, C), call unsqueeze({axis}) first." if input.dim() == 2 else ""
        shape = input.layout if input.is_nested else tuple(input.shape)
        raise argument_error(where, "input", f"of shape {rule}", shape, remedy)
    if not batch_first and mask is None:
        if isinstance(input, Tensor) and input.is_nested:
            remedy = "Its sequences lie along axis 0."
            raise argument_error(where, "batch_first", "True where the input is nested", batch_first, remedy)
        check_one_draw(where, key, stream, "batch_first is False")
    shared = (1 if batch_first else 0,) if mask is None else ()
    return drop(
        where, input, p, training, broadcast_dims=shared, generator=generator, key=key, mask=mask,
        return_mask=return_mask, stream=stream,
    )  # fmt: skip


def _drop_channels(
    dims: int, input: Tensor, p: float | Tensor, training: bool, inplace: bool, *, mask: Tensor | None, **noise: Any
) -> Any:
    """Drop channels of maps with so many dimensions."""
    where = f"dropout{dims}d"
    check_map(where, "dropout", dims, input)
    shared = tuple(range(-dims, 0)) if mask is None else ()
    return drop(where, input, p, training, inplace, broadcast_dims=shared, mask=mask, **noise)
