"""Dropout of the same features at every step of a sequence."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional import locked_dropout
from dropkit.nn.layer import MaskMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["LockedDropout"]


@variant(
    family="sequences",
    title="locked dropout",
    noise="Bernoulli",
    shared="the steps of a sequence: one draw for each example and feature",
    acts_on="activations",
    dropped=0.0,
    at_one="zeros",
    evaluation="identity",
    formula=r"y_{ntc} = \frac{z_{nc}\, x_{ntc}}{1 - p}, \quad z_{nc} \sim \mathrm{Bernoulli}(1 - p)",
    symbol="the probability of dropping",
    use="On the inputs and outputs of recurrent layers, and between them.",
    rates=(0.5, 0.4, 0.2),
    inputs=((3, 5, 4),),
    shown_inputs=((3, 8, 12),),
    axes=("examples", "steps", "features"),
    function=locked_dropout,
)
class LockedDropout(MaskMixin):
    """Zero the same features at all steps of a sequence, with probability `p`, and scale the rest, in training.

    An input has shape (N, L, C), or (L, N, C) without `batch_first`; sequences of one batch have masks of their own.

    Args:
        p: Probability of dropping a feature, in ``[0, 1]``. Default: 0.5.
        batch_first: Whether examples are along axis 0 and time along axis 1. The recurrent layers of PyTorch have it
            the other way round unless told otherwise: give False beside them. A wrong choice would share the mask over
            the batch and vary it over time. Default: True.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.LockedDropout(0.5)(torch.ones(1, 3, 4), key=7)
        tensor([[[0., 2., 2., 2.],
                 [0., 2., 2., 2.],
                 [0., 2., 2., 2.]]])

    References:
        Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks",
        section 4; the name is that of the layer in the code of Merity, Keskar and Socher (2018), "Regularizing and
        optimizing LSTM language models", section 4.2.
    """

    def __init__(self, p: float = 0.5, batch_first: bool = True, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.batch_first = check_bool("LockedDropout", "batch_first", batch_first)
        self._set_noise(p, generator)

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        return locked_dropout(input, self.rate, self.is_on, self.batch_first, **noise)

    def extra_repr(self) -> str:
        """Show the rate and the order of the axes."""
        return self._shown("batch_first")
