"""Dropout of blocks of neighbouring places in a map."""

import math
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import Integer, argument_type_error
from dropkit.functional import eager
from dropkit.functional.address import check_source
from dropkit.functional.channels import check_map
from dropkit.functional.examples import numbers_of, runs_of
from dropkit.functional.inputs import check_input, check_mask, is_identity, kept_by
from dropkit.functional.masked import apply_mask
from dropkit.functional.noise import noise_at
from dropkit.functional.overrides import overridable
from dropkit.kernels.blocks import grow
from dropkit.kernels.native.division import remembered
from dropkit.kernels.native.operations import keep_mask_plain

__all__ = ["BLOCK_SIZE", "drop_block1d", "drop_block2d", "drop_block3d", "seed_threshold"]

BLOCK_SIZE = Integer(1, 2**31 - 1, "[1, 2**31)", "It is the length of a block along each axis of a map.")


@overridable
def drop_block1d(
    input: Tensor,
    p: float | Tensor = 0.1,
    training: bool = True,
    block_size: int = 7,
    share_channels: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero blocks of neighbouring steps, at most a fraction `p` on average in training, and scale the rest up.

    A block begins at a place with probability ``gamma = p / b * f / (f - b + 1)``, a product over the axes of a map of
    length f, where b is `block_size`, or f if that is less; it begins only where the whole of it fits. Every example
    and channel has blocks of its own. The formula neglects that blocks overlap, so less than `p` is dropped, and the
    larger `p`, the more is missing: of maps of 14 x 14 with blocks of 3 x 3, on average over all masks, 0.095 at
    p = 0.1, 0.258 at 0.3, 0.391 at 0.5 and 0.587 at 0.9. At p = 1 everything is dropped.

    What is kept is scaled by the number of places over the number of kept ones. As in the authors' code both are
    counted over the whole tensor, the batch with it; or over each slice of axis 0, where `p`, `key` or `stream` has one
    value a slice.

    Args:
        input: Tensor of shape (C, L) or (N, C, L), of a floating or complex type.
        p: The fraction to drop, in ``[0, 1]``; or a float64 tensor, as for `dropout`. Default: 0.1.
        training: Whether to drop. If False the input itself is returned. Default: True.
        block_size: Length of a block along each axis of a map, 1 or more, odd or even. Default: 7.
        share_channels: Whether all channels of an example have the same blocks, which the paper found to work less
            well. Default: False.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key of the places where blocks begin, as for `dropout`. Default: drawn.
        mask: A bool tensor of what is kept in the end, to use instead of drawing blocks, with the input's number of
            axes and length 1 on axes that share. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the input has another number of axes, the block no length, or as `dropout`.
        ArgumentTypeError: If the input is nested, or as `dropout`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.drop_block1d(torch.ones(1, 2, 8), 0.25, block_size=3, key=5)
        tensor([[[1.2308, 1.2308, 1.2308, 0.0000, 0.0000, 0.0000, 1.2308, 1.2308],
                 [1.2308, 1.2308, 1.2308, 1.2308, 1.2308, 1.2308, 1.2308, 1.2308]]])

    References:
        Ghiasi, Lin and Le (2018), "DropBlock: a regularization method for convolutional networks", section 3,
        algorithm 1 and equation 1, whose keep_prob is the probability of keeping.
    """
    return _drop_blocks(
        1, input, p, training, block_size, share_channels, generator=generator, key=key, mask=mask,
        return_mask=return_mask, stream=stream,
    )  # fmt: skip


@overridable
def drop_block2d(
    input: Tensor,
    p: float | Tensor = 0.1,
    training: bool = True,
    block_size: int = 7,
    share_channels: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero square blocks of pixels, at most a fraction `p` on average in training, and scale the rest up.

    `drop_block1d` says how; here it is done along height and width.

    Args:
        input: Tensor of shape (N, C, H, W), of a floating or complex type.
        p: The fraction to drop, in ``[0, 1]``; or a float64 tensor, as for `dropout`. Default: 0.1.
        training: Whether to drop. If False the input itself is returned. Default: True.
        block_size: Length of a block along each axis of a map, 1 or more, odd or even. Default: 7.
        share_channels: Whether all channels of an example have the same blocks. Default: False.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key of the places where blocks begin, as for `dropout`. Default: drawn.
        mask: A bool tensor of what is kept in the end, as for `drop_block1d`. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: As `drop_block1d`.
        ArgumentTypeError: As `drop_block1d`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.drop_block2d(torch.ones(1, 1, 3, 5), 0.4, block_size=2, key=4)
        tensor([[[[2.1429, 0.0000, 0.0000, 2.1429, 2.1429],
                  [2.1429, 0.0000, 0.0000, 0.0000, 0.0000],
                  [2.1429, 2.1429, 2.1429, 0.0000, 0.0000]]]])

    References:
        Ghiasi, Lin and Le (2018), "DropBlock: a regularization method for convolutional networks", section 3,
        algorithm 1 and equation 1, whose keep_prob is the probability of keeping.
    """
    return _drop_blocks(
        2, input, p, training, block_size, share_channels, generator=generator, key=key, mask=mask,
        return_mask=return_mask, stream=stream,
    )  # fmt: skip


@overridable
def drop_block3d(
    input: Tensor,
    p: float | Tensor = 0.1,
    training: bool = True,
    block_size: int = 7,
    share_channels: bool = False,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero cubic blocks of voxels, at most a fraction `p` on average in training, and scale the rest up.

    `drop_block1d` says how; here it is done along depth, height and width.

    Args:
        input: Tensor of shape (C, D, H, W) or (N, C, D, H, W), of a floating or complex type.
        p: The fraction to drop, in ``[0, 1]``; or a float64 tensor, as for `dropout`. Default: 0.1.
        training: Whether to drop. If False the input itself is returned. Default: True.
        block_size: Length of a block along each axis of a map, 1 or more, odd or even. Default: 7.
        share_channels: Whether all channels of an example have the same blocks. Default: False.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key of the places where blocks begin, as for `dropout`. Default: drawn.
        mask: A bool tensor of what is kept in the end, as for `drop_block1d`. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: As `drop_block1d`.
        ArgumentTypeError: As `drop_block1d`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> _, mask = dropkit.functional.drop_block3d(torch.ones(2, 9, 9, 9), block_size=3, key=1, return_mask=True)
        >>> mask.shape, mask.double().mean().item() > 0.8
        (torch.Size([2, 9, 9, 9]), True)

    References:
        Ghiasi, Lin and Le (2018), "DropBlock: a regularization method for convolutional networks", section 3,
        algorithm 1 and equation 1, whose keep_prob is the probability of keeping.
    """
    return _drop_blocks(
        3, input, p, training, block_size, share_channels, generator=generator, key=key, mask=mask,
        return_mask=return_mask, stream=stream,
    )  # fmt: skip


def _drop_blocks(
    dims: int,
    input: Tensor,
    p: float | Tensor,
    training: bool,
    block_size: int,
    share_channels: bool,
    *,
    generator: torch.Generator | None,
    key: int | Tensor | None,
    mask: Tensor | None,
    return_mask: bool,
    stream: int | Tensor,
) -> Any:
    where = f"drop_block{dims}d"
    check_input(where, input, training=training, share_channels=share_channels, return_mask=return_mask)
    check_map(where, "drop_block", dims, input)
    if input.is_nested:
        raise argument_type_error(where, "input", "a dense tensor", input.layout, "Pad it, or take its parts.")
    size = BLOCK_SIZE.check(where, "block_size", block_size)
    channels, lengths = input.dim() - dims - 1, input.shape[-dims:]
    blocks = tuple(max(min(size, length), 1) for length in lengths)
    places = [length - block + 1 for length, block in zip(lengths, blocks, strict=True)]
    if mask is None and return_mask is False and eager.is_one_key(input, p, training, generator, key, stream):
        drawn, rate = eager.one_key(where, input, p, key)
        shape = (*input.shape[:channels], 1 if share_channels else input.shape[channels], *places)
        keep = grow(keep_mask_plain(shape, drawn, _seed_number(rate, lengths, blocks)), blocks)
        count = max(int(torch.count_nonzero(keep)), 1)
        return apply_mask(input, keep, 1.0 / count * keep.numel())  # rounded twice, as a number over a tensor is
    threshold, streams, keys = check_source(where, input, p, key, generator, stream)
    check_mask(where, mask, input, {"key": key, "generator": generator}, {"stream": stream})
    if is_identity(p, training, mask):
        shape = (*input.shape[:channels], 1 if share_channels else input.shape[channels], *lengths)
        kept = torch.ones(shape if mask is None else mask.shape, dtype=torch.bool, device=input.device)
        return (input, kept) if return_mask else input
    if mask is None:
        noise = noise_at(where, input, keys, streams, generator, numbers=numbers_of(key))
        shared = (channels,) if share_channels else ()
        shape = (*input.shape[:-dims], *places)
        keep = grow(noise.keep_mask(shape, seed_threshold(threshold, lengths, blocks), shared), blocks)
    else:
        keep = kept_by(mask, threshold)
    has_slices = threshold.dim() or streams.dim() or (keys is not None and keys.dim()) or runs_of(key)
    scale = _places_to_kept(keep, 1 if has_slices else 0)
    output = apply_mask(input, keep, scale)
    return (output, keep) if return_mask else output


def seed_threshold(threshold: Tensor, lengths: Any, blocks: Any) -> Tensor:
    """Return the threshold of the rate at which blocks begin, from that of the rate at which places are dropped.

    Args:
        threshold: Int64 tensor of the rate's threshold, or of one a slice.
        lengths: Lengths of a map.
        blocks: Lengths of a block, none longer than the map.
    """
    gamma = math.prod([f / (b * max(f - b + 1, 1)) for f, b in zip(lengths, blocks, strict=True)])  # at a rate of 1
    seeds = torch.floor(threshold.to(torch.float64) * gamma + 0.5).to(torch.int64)
    return torch.where(threshold < 2**32, seeds, threshold)


@remembered
def _seed_number(threshold: int, lengths: tuple[int, ...], blocks: tuple[int, ...]) -> int:
    """Return the threshold of one rate as a number."""
    return int(seed_threshold(torch.tensor(threshold, device="cpu"), lengths, blocks))


def _places_to_kept(keep: Tensor, slices: int) -> Tensor:
    """Return the number of places over that of kept ones, of no meaning where nothing is kept."""
    count = keep.sum(tuple(range(slices, keep.dim()))) if slices else torch.count_nonzero(keep)  # which is faster
    return math.prod(keep.shape[slices:]) / count.clamp(min=1).to(torch.float64)
