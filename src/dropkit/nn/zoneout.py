"""Zoneout as a layer of its own, between the steps of any recurrent network."""

from typing import Any

import torch
from torch import Tensor

from dropkit.functional import zoneout
from dropkit.nn.layer import RateMixin
from dropkit.nn.variants import variant

__all__ = ["Zoneout"]


@variant(
    family="sequences",
    title="zoneout",
    noise="Bernoulli",
    shared="none",
    acts_on="states",
    dropped="old state",
    at_one="old state",
    evaluation="expectation",
    formula=r"s_t = m \odot \tilde s_t + (1 - m) \odot s_{t-1}, \quad m \sim \mathrm{Bernoulli}(1 - p)",
    symbol="z, the probability that the old state stays",
    use="In a recurrent network of your own, after each step, with another key at every step.",
    rates=(0.15, 0.05, 0.5),
    inputs=((4, 6), (4, 6)),
    takes_any_shape=True,
    function=zoneout,
)
class Zoneout(RateMixin):
    """Leave each unit at its old state with probability `p` in training, and mix both states by `p` in evaluation.

    In a mask True takes the new state and False leaves the old one, which is what is drawn with probability `p`: `p` is
    the probability that the step is dropped. Nothing is zeroed or scaled. For whole networks with zoneout, see
    `dropkit.nn.LSTM` and `dropkit.nn.GRU`.

    Args:
        p: Probability that the old state stays, in ``[0, 1]``. Checked again whenever it is assigned. Default: 0.15.
        generator: Where keys are drawn, as for `dropkit.nn.Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]``.
        ArgumentTypeError: If the generator is no torch.Generator.

    Examples:
        >>> import torch, dropkit
        >>> layer, old, new = dropkit.nn.Zoneout(p=0.5), torch.zeros(4), torch.ones(4)
        >>> layer(new, old, mask=torch.tensor([True, False, False, True]))
        tensor([1., 0., 0., 1.])
        >>> layer.eval()(new, old)
        tensor([0.5000, 0.5000, 0.5000, 0.5000])

    References:
        Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville and Pal (2017), "Zoneout: regularizing
        RNNs by randomly preserving hidden activations", section 3, whose z is p.
    """

    def __init__(self, p: float = 0.15, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self._set_noise(p, generator)

    def forward(
        self,
        new: Tensor,
        old: Tensor,
        *,
        key: int | Tensor | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Choose between a new and an old state.

        Args:
            new: The state that a step has computed.
            old: The state before that step, of the same shape and type.
            key: As for `dropkit.functional.zoneout`. Default: drawn from the generator.
            mask: A bool tensor to use instead, True = new value. Default: drawn.
            return_mask: Whether to return ``(output, mask)``. Default: False.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of the states' shape and type; with `return_mask`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.zoneout`.
            ArgumentTypeError: As `dropkit.functional.zoneout`.
        """
        return zoneout(
            new, old, self.rate, self.is_on, generator=self._source(key, mask), key=key, mask=mask,
            return_mask=return_mask, stream=stream,
        )  # fmt: skip
