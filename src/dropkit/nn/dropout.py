"""Dropout of single elements, or of whatever shares a draw."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Choice, argument_error, argument_type_error
from dropkit.functional import dropout
from dropkit.nn.layer import RateMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["Dropout"]

_SCALE_AT = Choice(("train", "eval"))


@variant(
    family="activations",
    title="dropout",
    noise="Bernoulli",
    shared="none; any axes with broadcast_dims",
    acts_on="activations",
    dropped=0.0,
    at_one="zeros",
    evaluation="identity",
    formula=r"y = \frac{z \odot x}{1 - p}, \quad z \sim \mathrm{Bernoulli}(1 - p)",
    symbol="1 - p, the probability of keeping",
    use="After the activations of fully connected layers, and on inputs at a lower rate; never on the output.",
    rates=(0.5, 0.2, 0.1),
    inputs=((4, 6),),
    takes_any_shape=True,
    function=dropout,
)
class Dropout(RateMixin, torch.nn.Dropout):
    """Zero elements with probability `p` in training and scale the rest by ``1 / (1 - p)``; do nothing in evaluation.

    A drop-in replacement for `torch.nn.Dropout`, which it subclasses: same arguments in the same order, no parameters,
    no buffers. It differs where PyTorch's has rough edges: dropped values are exactly +0 whatever they were (NaN and
    infinities too), half types are unbiased, the mask does not depend on the memory format, and a 64-bit key is
    kept for the backward pass, or a bit an element where that is faster. In a model for `torch.compile`,
    `dropkit.functional.activation_dropout` is faster than ReLU and this layer.

    Args:
        p: Probability of dropping an element, in ``[0, 1]``. Checked again whenever it is assigned. A new
            value makes `torch.compile` compile again; a rate that often changes is better moved
            by `dropkit.schedules`. Default: 0.5.
        inplace: Whether to overwrite the input, as for `dropkit.functional.dropout`. Default: False.
        broadcast_dims: Axes along which one draw is shared; negatives count from the end. ``(2, 3)`` drops whole
            channels of images, ``1`` the same features at all steps of a batch-first sequence. Default: none.
        generator: Where keys are drawn, on the input's device; eager code only, as for `dropkit.functional.dropout`.
            Copies of the layer, deep ones too, draw from the same one, as they do from PyTorch's, so that no two of
            them have the same masks; a layer that is pickled takes a generator of its own along, in the same state.
            Default: PyTorch's own generator.
        scale_at: ``"train"`` for inverted dropout; ``"eval"`` for the original form, which leaves survivors alone in
            training and multiplies by the probability of keeping, ``1 - p``, in evaluation. Default: ``"train"``.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]`` or ``scale_at`` is unknown.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.Dropout(p=0.5)
        >>> layer(torch.ones(2, 4), key=7)
        tensor([[0., 2., 2., 2.],
                [2., 0., 2., 0.]])
        >>> layer.eval()(torch.ones(4))
        tensor([1., 1., 1., 1.])
        >>> dropkit.nn.Dropout(p=0.2, broadcast_dims=(2, 3))
        Dropout(p=0.2, inplace=False, broadcast_dims=(2, 3))

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", section 4 (``scale_at="eval"``) and section 10 (``scale_at="train"``), whose p is
        the probability of keeping.
    """

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        broadcast_dims: int | Sequence[int] = (),
        generator: torch.Generator | None = None,
        scale_at: str = "train",
    ) -> None:
        PROBABILITY.check("Dropout", "p", p)
        check_bool("Dropout", "inplace", inplace)
        axes = [broadcast_dims] if isinstance(broadcast_dims, Integral) else broadcast_dims
        if not isinstance(axes, Sequence) or not all(_is_integer(axis) for axis in axes):
            raise argument_type_error(
                "Dropout", "broadcast_dims", "an integer or a sequence of integers", broadcast_dims
            )
        if len(set(axes)) != len(axes):
            raise argument_error("Dropout", "broadcast_dims", "distinct axes", broadcast_dims)
        super().__init__(p, inplace)
        self._set_noise(p, generator)
        self.broadcast_dims = tuple(map(int, axes))
        self.scale_at = _SCALE_AT.check("Dropout", "scale_at", scale_at)

    def forward(
        self,
        input: Tensor,
        *,
        key: int | Tensor | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
        stream: int | Tensor = 0,
        offset: Sequence[int] | None = None,
        full_shape: Sequence[int] | None = None,
    ) -> Any:
        """Apply dropout.

        Args:
            input: Tensor of any shape, of a floating or complex type.
            key: As for `dropkit.functional.dropout`. Default: drawn from the generator.
            mask: A bool tensor to use instead, True = kept. Default: drawn.
            return_mask: Whether to return ``(output, mask)``. Default: False.
            stream: Number of the pass. Default: 0.
            offset: Where the input begins in the tensor that it is a shard of. Default: 0.
            full_shape: Shape of that whole tensor. Default: the input's shape.

        Returns:
            A tensor of the input's shape and type; with `return_mask`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.dropout`.
            ArgumentTypeError: As `dropkit.functional.dropout`.
        """
        return dropout(
            input, self.rate, self.is_on, self.inplace, broadcast_dims=self.broadcast_dims if mask is None else (),
            generator=self._source(key, mask), key=key, mask=mask, return_mask=return_mask, stream=stream,
            offset=offset, full_shape=full_shape, scale_at=self.scale_at,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Show the rate and whatever differs from the defaults."""
        return self._shown("inplace", broadcast_dims=(), scale_at="train")


def _is_integer(axis: object) -> bool:
    return isinstance(axis, Integral) and not isinstance(axis, bool)
