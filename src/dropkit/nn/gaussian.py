"""Gaussian dropout as a layer."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional import gaussian_dropout
from dropkit.functional.gaussian import RATE
from dropkit.nn.layer import RateMixin
from dropkit.nn.variants import variant

__all__ = ["GaussianDropout"]


@variant(
    family="activations",
    title="Gaussian dropout",
    noise="Gaussian",
    shared="none",
    acts_on="activations",
    dropped="mean",
    at_one="refused",
    evaluation="identity",
    formula=r"y = \xi \odot x, \quad \xi \sim \mathcal{N}\left(1, \frac{p}{1 - p}\right)",
    symbol="1 - p, the probability of keeping in dropout of the same variance",
    use="In the place of dropout, where noise of the same mean and variance should leave no unit out.",
    rates=(0.5, 0.2, 0.1),
    inputs=((4, 6),),
    takes_any_shape=True,
    function=gaussian_dropout,
)
class GaussianDropout(RateMixin):
    """Multiply elements by normal noise of mean 1 and variance ``p / (1 - p)`` in training; do nothing in evaluation.

    The noise has the mean and the variance of dropout at the same rate. It is drawn again for the backward pass, for
    which a 64-bit key is kept.

    Args:
        p: The rate of the dropout whose variance the noise has, in ``[0, 1)``. Checked again whenever it is assigned.
            Default: 0.5.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1)``.
        ArgumentTypeError: If the generator is no torch.Generator.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.GaussianDropout(p=0.2)
        >>> bool(torch.equal(layer(torch.ones(4), key=7), layer(torch.ones(4), key=7)))
        True
        >>> layer.eval()(torch.ones(4))
        tensor([1., 1., 1., 1.])

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", section 10, whose p is the probability of keeping.
    """

    RATE = RATE

    def __init__(self, p: float = 0.5, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self._set_noise(p, generator)

    def forward(
        self,
        input: Tensor,
        *,
        key: int | Tensor | None = None,
        noise: Tensor | None = None,
        return_noise: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Apply Gaussian dropout.

        Args:
            input: Tensor of any shape, of a floating or complex type.
            key: As for `dropkit.functional.gaussian_dropout`. Default: drawn from the generator.
            noise: What to multiply by instead of drawing it. Default: drawn.
            return_noise: Whether to return ``(output, noise)``. Default: False.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of the input's shape and type; with `return_noise`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.gaussian_dropout`.
            ArgumentTypeError: As `dropkit.functional.gaussian_dropout`.
        """
        return gaussian_dropout(
            input, self.rate, self.is_on, generator=self._source(key, noise), key=key, noise=noise,
            return_noise=return_noise, stream=stream,
        )  # fmt: skip
