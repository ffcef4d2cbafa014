"""Dropout of blocks of neighbouring places in a map."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from dropkit.functional import drop_block1d, drop_block2d, drop_block3d
from dropkit.functional.blocks import BLOCK_SIZE
from dropkit.nn.layer import MaskMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["DropBlock1d", "DropBlock2d", "DropBlock3d"]

_ROW: dict[str, Any] = {
    "family": "activations",
    "noise": "Bernoulli, grown to blocks",
    "shared": "the places of a block; with share_channels, all channels",
    "acts_on": "activations",
    "dropped": 0.0,
    "at_one": "zeros",
    "evaluation": "identity",
    "formula": r"y = x \odot m\, \frac{|m|}{\sum m}, \quad m = 0 \text{ on blocks that begin with probability } "
    r"\gamma = p \prod_d \frac{f_d}{b_d (f_d - b_d + 1)}",
    "symbol": "keep_prob, the probability of keeping",
    "rates": (0.1, 0.2),
}


class _DropBlockNd(MaskMixin):
    """What the layers of one, two and three dimensions have in common."""

    FUNCTION: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        p: float = 0.1,
        block_size: int = 7,
        share_channels: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.block_size = BLOCK_SIZE.check(name, "block_size", block_size)
        self.share_channels = check_bool(name, "share_channels", share_channels)
        self._set_noise(p, generator)

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        options = self.block_size, self.share_channels
        return type(self).FUNCTION(input, self.rate, self.is_on, *options, **noise)

    def extra_repr(self) -> str:
        """Show the rate, the size of a block, and whether channels share blocks."""
        return self._shown("block_size", share_channels=False)


@variant(
    title="DropBlock of sequences",
    use="After convolutions over time.",
    inputs=((3, 4, 12),),
    example=lambda p: DropBlock1d(p, block_size=3),
    axes=("examples", "channels", "steps"),
    function=drop_block1d,
    **_ROW,
)
class DropBlock1d(_DropBlockNd):
    """Zero blocks of neighbouring steps, at most a fraction `p` on average in training, and scale the rest up.

    An input has shape (C, L) or (N, C, L).
    What is kept is scaled by the number of places over that of kept ones, counted over the whole tensor, the batch with
    it; `dropkit.functional.drop_block1d` says more. Blocks overlap, so less than `p` is dropped, and the larger `p`,
    the more is missing: of images of 14 x 14 with blocks of 3 x 3, 0.095 at p = 0.1, 0.258 at 0.3 and 0.391 at 0.5.

    Args:
        p: The fraction to drop, in ``[0, 1]``; the paper lets it grow linearly from 0 during training. Default: 0.1.
        block_size: Length of a block along each axis of a map, 1 or more, odd or even; a shorter map is one block.
            Default: 7.
        share_channels: Whether all channels of an example have the same blocks, which the paper found to work less
            well. Default: False.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]`` or a block has no length.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.DropBlock1d(0.25, block_size=3)(torch.ones(1, 2, 8), key=5)
        tensor([[[1.2308, 1.2308, 1.2308, 0.0000, 0.0000, 0.0000, 1.2308, 1.2308],
                 [1.2308, 1.2308, 1.2308, 1.2308, 1.2308, 1.2308, 1.2308, 1.2308]]])

    References:
        Ghiasi, Lin and Le (2018), "DropBlock: a regularization method for convolutional networks", section 3,
        algorithm 1 and equation 1, whose keep_prob is the probability of keeping.
    """

    FUNCTION = staticmethod(drop_block1d)


@variant(
    title="DropBlock of images",
    use="After convolutions of the later groups of a network for images, and in their shortcuts.",
    inputs=((3, 2, 6, 7),),
    example=lambda p: DropBlock2d(p, block_size=3),
    shown_inputs=((2, 4, 10, 10),),
    axes=("examples", "channels", "rows", "columns"),
    function=drop_block2d,
    **_ROW,
)
class DropBlock2d(_DropBlockNd):
    """Zero square blocks of pixels, at most a fraction `p` on average in training, and scale the rest up.

    An input has shape (N, C, H, W).
    What is kept is scaled by the number of places over that of kept ones, counted over the whole tensor, the batch with
    it; `dropkit.functional.drop_block1d` says more. Blocks overlap, so less than `p` is dropped, and the larger `p`,
    the more is missing: of images of 14 x 14 with blocks of 3 x 3, 0.095 at p = 0.1, 0.258 at 0.3 and 0.391 at 0.5.

    Args:
        p: The fraction to drop, in ``[0, 1]``; the paper lets it grow linearly from 0 during training. Default: 0.1.
        block_size: Length of a block along each axis of a map, 1 or more, odd or even; a shorter map is one block.
            Default: 7.
        share_channels: Whether all channels of an example have the same blocks, which the paper found to work less
            well. Default: False.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]`` or a block has no length.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.DropBlock2d(0.4, block_size=2)(torch.ones(1, 1, 3, 5), key=4)
        tensor([[[[2.1429, 0.0000, 0.0000, 2.1429, 2.1429],
                  [2.1429, 0.0000, 0.0000, 0.0000, 0.0000],
                  [2.1429, 2.1429, 2.1429, 0.0000, 0.0000]]]])

    References:
        Ghiasi, Lin and Le (2018), "DropBlock: a regularization method for convolutional networks", section 3,
        algorithm 1 and equation 1, whose keep_prob is the probability of keeping.
    """

    FUNCTION = staticmethod(drop_block2d)


@variant(
    title="DropBlock of volumes",
    use="After convolutions over volumes or films.",
    inputs=((2, 2, 4, 5, 4),),
    example=lambda p: DropBlock3d(p, block_size=3),
    shown_inputs=((1, 2, 6, 7, 7),),
    axes=("examples", "channels", "depths", "rows", "columns"),
    function=drop_block3d,
    **_ROW,
)
class DropBlock3d(_DropBlockNd):
    """Zero cubic blocks of voxels, at most a fraction `p` on average in training, and scale the rest up.

    An input has shape (C, D, H, W) or (N, C, D, H, W).
    What is kept is scaled by the number of places over that of kept ones, counted over the whole tensor, the batch with
    it; `dropkit.functional.drop_block1d` says more. Blocks overlap, so less than `p` is dropped, and the larger `p`,
    the more is missing: of images of 14 x 14 with blocks of 3 x 3, 0.095 at p = 0.1, 0.258 at 0.3 and 0.391 at 0.5.

    Args:
        p: The fraction to drop, in ``[0, 1]``; the paper lets it grow linearly from 0 during training. Default: 0.1.
        block_size: Length of a block along each axis of a map, 1 or more, odd or even; a shorter map is one block.
            Default: 7.
        share_channels: Whether all channels of an example have the same blocks, which the paper found to work less
            well. Default: False.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]`` or a block has no length.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.DropBlock3d(block_size=3)
        >>> _, mask = layer(torch.ones(2, 9, 9, 9), key=1, return_mask=True)
        >>> mask.shape, mask.double().mean().item() > 0.8
        (torch.Size([2, 9, 9, 9]), True)

    References:
        Ghiasi, Lin and Le (2018), "DropBlock: a regularization method for convolutional networks", section 3,
        algorithm 1 and equation 1, whose keep_prob is the probability of keeping.
    """

    FUNCTION = staticmethod(drop_block3d)
