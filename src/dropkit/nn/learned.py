"""Layers that learn their noise, and the term that their priors add to a loss."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from dropkit._checks import Integer, Number, argument_type_error
from dropkit.functional import local_reparameterization
from dropkit.nn.layer import NoiseMixin

__all__ = ["FEATURES", "RATE", "GaussianWeightsMixin", "LearnedMixin", "regularization", "shown_rate"]

RATE = Number(
    0.0, 1.0, open_low=True, open_high=True, remedy="It is the rate at the start; 0 and 1 could not be learned."
)
FEATURES = Integer(1, 2**31 - 1, "[1, 2**31)")
_ROWS = Integer(1, 2**63 - 1, "[1, 2**63)", "It is the number of rows of the training data, not of a batch.")


class LearnedMixin(NoiseMixin):
    """A module whose noise is learned, against a prior."""

    def kl(self) -> Tensor:
        """Return how far the noisy weights are from their prior, in nats, summed over the layer.

        It belongs to the whole training set: a loss takes it once, or divided by the number of rows at every step.
        """
        raise NotImplementedError  # each class has its own prior


class GaussianWeightsMixin(LearnedMixin):
    """A PyTorch layer, beside this class, whose weights are independent Gaussians; it learns one parameter more."""

    LEARNED: ClassVar[str]  # the parameter's name

    weight: Tensor
    bias: Any  # a tensor or None, which PyTorch's layers declare in different ways

    def _set_learned(self, shape: tuple[int, ...], first: float, generator: torch.Generator | None) -> None:
        """Set what the layer has more, once the PyTorch layer has been set up."""
        self._set_source(generator)
        self._first = first
        setattr(self, self.LEARNED, torch.nn.Parameter(self.weight.new_full(shape, first)))

    def reset_parameters(self) -> None:
        """Draw new weights, and set what is learned of their noise back."""
        super().reset_parameters()  # type: ignore[misc]  # that of the PyTorch layer
        if self.LEARNED in self._parameters:  # not while that layer is being built
            torch.nn.init.constant_(getattr(self, self.LEARNED), self._first)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean of the weights, and their variance in float32 or wider."""
        raise NotImplementedError  # each class learns its own

    def _operate(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(input, weight, bias)

    def forward(self, input: Tensor, *, key: int | Tensor | None = None, stream: int | Tensor = 0) -> Tensor:
        """Apply the layer.

        Args:
            input: Tensor as the PyTorch layer takes it.
            key: As for `dropkit.functional.local_reparameterization`. Default: drawn from the generator.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor as the PyTorch layer gives it.

        Raises:
            ArgumentError: As `dropkit.functional.local_reparameterization`.
            ArgumentTypeError: As `dropkit.functional.local_reparameterization`.
        """
        return local_reparameterization(
            self._operate, input, *self._moments(), self.bias, self.is_on,
            generator=self._source(key), key=key, stream=stream,
        )  # fmt: skip


def shown_rate(p: Tensor) -> str:
    """Return the mean of learned rates as a representation shows it; tensors without data have none."""
    return "p=?" if p.is_meta or not p.numel() else f"p={float(p.mean()):.3g}"


def regularization(model: torch.nn.Module, rows: int) -> Tensor:
    """Sum what all layers with learned noise add to the loss of one row.

    The objective of a training set of N rows is the sum of their negative log-likelihoods plus every layer's `kl()`. At
    each step add to the *mean* negative log-likelihood of a batch, in nats (`torch.nn.functional.cross_entropy` is
    one), this: the sum of `kl()` over N. Where the loss is the mean squared error, which is the likelihood of noise of
    precision tau times 2 / tau, multiply this by 2 / tau as well; to warm up, multiply it by a factor that grows to 1.

    Args:
        model: A model, or one layer. A layer that several places of it share counts once.
        rows: How many rows the training data have, 1 or more.

    Returns:
        A tensor without axes; 0 if no layer learns its noise.

    Raises:
        ArgumentError: If `rows` is below 1.
        ArgumentTypeError: If `model` is no module or `rows` no integer.

    Examples:
        >>> import torch, dropkit
        >>> model = torch.nn.Sequential(dropkit.nn.VariationalDropout(784, p=0.2), torch.nn.Linear(784, 10))
        >>> dropkit.nn.regularization(model, rows=60_000)
        tensor(0.0147, grad_fn=<DivBackward0>)
    """
    if not isinstance(model, torch.nn.Module):
        raise argument_type_error("regularization", "model", "a torch.nn.Module", model)
    rows = _ROWS.check("regularization", "rows", rows)
    terms = [module.kl() for module in model.modules() if isinstance(module, LearnedMixin)]
    if not terms:
        return torch.zeros(())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() / rows
