"""Dropout of whole channels of maps, as PyTorch's classes of these names have it."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY
from dropkit.functional import dropout1d, dropout2d, dropout3d
from dropkit.nn.layer import MaskMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["Dropout1d", "Dropout2d", "Dropout3d"]

_ROW: dict[str, Any] = {
    "family": "activations",
    "noise": "Bernoulli",
    "shared": "the places of a map: one draw for each example and channel",
    "acts_on": "activations",
    "dropped": 0.0,
    "at_one": "zeros",
    "evaluation": "identity",
    "formula": r"y_{nc\cdot} = \frac{z_{nc}\, x_{nc\cdot}}{1 - p}, \quad z_{nc} \sim \mathrm{Bernoulli}(1 - p)",
    "symbol": "the probability of dropping",
    "rates": (0.5, 0.2, 0.1),
}


class _DropoutNd(MaskMixin):
    """What the layers of one, two and three dimensions have in common."""

    FUNCTION: ClassVar[Callable[..., Any]]
    inplace: bool

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: torch.Generator | None = None) -> None:
        name = type(self).__name__
        PROBABILITY.check(name, "p", p)
        check_bool(name, "inplace", inplace)
        super().__init__(p, inplace)
        self._set_noise(p, generator)

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        return type(self).FUNCTION(input, self.rate, self.is_on, self.inplace, **noise)

    def extra_repr(self) -> str:
        """Show the rate and whether the input is overwritten."""
        return self._shown("inplace")


@variant(
    title="channel dropout of sequences",
    use="Between convolutions over time, where neighbouring steps are so alike that single ones are not missed.",
    inputs=((4, 6, 5),),
    axes=("examples", "channels", "steps"),
    function=dropout1d,
    **_ROW,
)
class Dropout1d(_DropoutNd, torch.nn.Dropout1d):
    """Zero whole channels of sequences with probability `p` in training and scale the rest by ``1 / (1 - p)``.

    A drop-in replacement for `torch.nn.Dropout1d`, which it subclasses. An input has shape (C, L) or (N, C, L).

    Args:
        p: Probability of dropping a channel, in ``[0, 1]``. Default: 0.5.
        inplace: Whether to overwrite the input, as for `dropkit.functional.dropout`. Default: False.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.Dropout1d(0.5)(torch.ones(3, 4), key=7)
        tensor([[0., 0., 0., 0.],
                [2., 2., 2., 2.],
                [0., 0., 0., 0.]])

    References:
        Tompson, Goroshin, Jain, LeCun and Bregler (2015), "Efficient object localization using convolutional networks",
        section 3.2.
    """

    FUNCTION = staticmethod(dropout1d)


@variant(
    title="channel dropout of images",
    use="Between convolutions over images, where neighbouring pixels are so alike that single ones are not missed.",
    inputs=((3, 4, 3, 5),),
    axes=("examples", "channels", "rows", "columns"),
    function=dropout2d,
    **_ROW,
)
class Dropout2d(_DropoutNd, torch.nn.Dropout2d):
    """Zero whole channels of images with probability `p` in training and scale the rest by ``1 / (1 - p)``.

    A drop-in replacement for `torch.nn.Dropout2d`, which it subclasses. An input has shape (N, C, H, W). Three axes are
    refused, for PyTorch has read them as (N, C, L) in some versions and as (C, H, W) in others.

    Args:
        p: Probability of dropping a channel, in ``[0, 1]``. Default: 0.5.
        inplace: Whether to overwrite the input, as for `dropkit.functional.dropout`. Default: False.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.Dropout2d(0.5)(torch.ones(1, 3, 2, 2), key=7).sum((2, 3))
        tensor([[0., 8., 0.]])

    References:
        Tompson, Goroshin, Jain, LeCun and Bregler (2015), "Efficient object localization using convolutional networks",
        section 3.2.
    """

    FUNCTION = staticmethod(dropout2d)


@variant(
    title="channel dropout of volumes",
    use="Between convolutions over volumes or films, where neighbouring voxels are alike.",
    inputs=((3, 4, 2, 3, 2),),
    axes=("examples", "channels", "depths", "rows", "columns"),
    function=dropout3d,
    **_ROW,
)
class Dropout3d(_DropoutNd, torch.nn.Dropout3d):
    """Zero whole channels of volumes with probability `p` in training and scale the rest by ``1 / (1 - p)``.

    A drop-in replacement for `torch.nn.Dropout3d`, which it subclasses. An input has shape (C, D, H, W) or
    (N, C, D, H, W).

    Args:
        p: Probability of dropping a channel, in ``[0, 1]``. Default: 0.5.
        inplace: Whether to overwrite the input, as for `dropkit.functional.dropout`. Default: False.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.Dropout3d(0.5)(torch.ones(3, 2, 2, 2), key=7).sum((1, 2, 3))
        tensor([ 0., 16.,  0.])

    References:
        Tompson, Goroshin, Jain, LeCun and Bregler (2015), "Efficient object localization using convolutional networks",
        section 3.2.
    """

    FUNCTION = staticmethod(dropout3d)
