"""Alpha dropout, of single elements and of whole channels, as layers."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY
from dropkit.functional import alpha_dropout, feature_alpha_dropout
from dropkit.functional.alpha import MEAN, SATURATION, VARIANCE
from dropkit.nn.layer import MaskMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["AlphaDropout", "FeatureAlphaDropout"]

_FORMULA = (
    r"y = A \, (z \odot x + (1 - z) \, \alpha') + B, \quad z \sim \mathrm{Bernoulli}(1 - p), \quad "
    r"A = \left((1 - p) (1 + p \, \alpha'^2)\right)^{-1/2}, \quad B = -A \, p \, \alpha', \quad "
    r"\alpha' = -\lambda \alpha = -1.7581"
)


class _FixedPointMixin(MaskMixin):
    """A layer that keeps a mean and a variance."""

    FUNCTION: ClassVar[Callable[..., Any]]
    inplace: bool

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        mean: float = 0.0,
        variance: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        name = type(self).__name__
        PROBABILITY.check(name, "p", p)
        super().__init__(p, check_bool(name, "inplace", inplace))
        self.mean, self.variance = MEAN.check(name, "mean", mean), VARIANCE.check(name, "variance", variance)
        self._set_noise(p, generator)

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        fixed_point = {"mean": self.mean, "variance": self.variance}
        return type(self).FUNCTION(input, self.rate, self.is_on, self.inplace, **fixed_point, **noise)

    def extra_repr(self) -> str:
        """Show the rate and whatever differs from the defaults."""
        return self._shown("inplace", mean=0.0, variance=1.0)


@variant(
    family="activations",
    title="alpha dropout",
    noise="Bernoulli",
    shared="none",
    acts_on="activations",
    dropped=SATURATION,
    at_one="zeros",
    evaluation="identity",
    formula=_FORMULA,
    symbol="1 - q, the probability of dropping",
    use="After SELU in self-normalising networks, with standardised inputs and LeCun's normal initialisation.",
    rates=(0.05, 0.1),
    inputs=((4, 6),),
    takes_any_shape=True,
    function=alpha_dropout,
)
class AlphaDropout(_FixedPointMixin, torch.nn.AlphaDropout):
    """Set elements to SELU's negative saturation with probability `p` in training and restore mean and variance.

    SELU saturates at -1.7581, and mean and variance are restored by one affine step for all elements, so what is
    dropped leaves as -0.7792 at p = 0.5 and as -1.4577 at p = 0.1. In evaluation nothing is done. A drop-in replacement
    for `torch.nn.AlphaDropout`, which it subclasses: same arguments in the same order, no parameters, no buffers. It
    differs where PyTorch's has rough edges: what is dropped has no influence whatever it was (NaN and infinities too),
    half types are rounded once, and only a 64-bit key is kept for the backward pass.

    Args:
        p: Probability of dropping an element, in ``[0, 1]``. Checked again whenever it is assigned. Default: 0.5.
        inplace: Whether to overwrite the input, as for `dropkit.functional.dropout`; PyTorch's layer takes it and does
            not. Default: False.
        mean: The mean to keep, a finite number. Default: 0.
        variance: The variance to keep, a finite number above 0. Default: 1.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``, or `mean` or `variance` is out of range.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.AlphaDropout(p=0.5)
        >>> layer(torch.ones(4), key=7)
        tensor([-0.7792,  1.6656,  1.6656,  1.6656])
        >>> layer.eval()(torch.ones(4))
        tensor([1., 1., 1., 1.])

    References:
        Klambauer, Unterthiner, Mayr and Hochreiter (2017), "Self-normalizing neural networks", section "New dropout
        technique", whose 1 - q is the probability of dropping.
    """

    FUNCTION = staticmethod(alpha_dropout)


@variant(
    family="activations",
    title="feature alpha dropout",
    noise="Bernoulli",
    shared="places of a feature map",
    acts_on="activations",
    dropped=SATURATION,
    at_one="zeros",
    evaluation="identity",
    formula=_FORMULA,
    symbol="1 - q, the probability of dropping",
    use="After SELU in convolutional self-normalising networks, whose neighbouring activations are alike.",
    rates=(0.05, 0.1),
    inputs=((3, 5, 2, 4),),
    shown_inputs=((4, 8, 3, 4),),
    axes=("examples", "channels", "rows", "columns"),
    function=feature_alpha_dropout,
)
class FeatureAlphaDropout(_FixedPointMixin, torch.nn.FeatureAlphaDropout):
    """Set channels to SELU's negative saturation with probability `p` in training and restore mean and variance.

    It is `AlphaDropout` with one draw for each example and channel, axes 0 and 1 of the input whatever its rank, as in
    `torch.nn.FeatureAlphaDropout`, which it subclasses: same arguments in the same order, no parameters, no buffers.

    Args:
        p: Probability of dropping a channel, in ``[0, 1]``. Checked again whenever it is assigned. Default: 0.5.
        inplace: Whether to overwrite the input, as for `dropkit.functional.dropout`; PyTorch's layer takes it and does
            not. Default: False.
        mean: The mean to keep, a finite number. Default: 0.
        variance: The variance to keep, a finite number above 0. Default: 1.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``, or `mean` or `variance` is out of range.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.FeatureAlphaDropout(p=0.5)
        >>> layer(torch.ones(1, 2, 3), key=7)
        tensor([[[-0.7792, -0.7792, -0.7792],
                 [ 1.6656,  1.6656,  1.6656]]])
        >>> layer.eval()(torch.ones(1, 4))
        tensor([[1., 1., 1., 1.]])

    References:
        Klambauer, Unterthiner, Mayr and Hochreiter (2017), "Self-normalizing neural networks", section "New dropout
        technique", whose 1 - q is the probability of dropping; Tompson, Goroshin, Jain, LeCun and Bregler (2015),
        "Efficient object localization using convolutional networks", section 3.2, for whole feature maps.
    """

    FUNCTION = staticmethod(feature_alpha_dropout)
