"""Layers that learn their noise, and the term that their priors add to a loss."""

import torch
from torch import Tensor

from dropkit._checks import Integer, argument_type_error
from dropkit.nn.layer import NoiseMixin

__all__ = ["LearnedMixin", "regularization"]

_ROWS = Integer(1, 2**63 - 1, "[1, 2**63)", "It is the number of rows of the training data, not of a batch.")


class LearnedMixin(NoiseMixin):
    """A module whose noise is learned, against a prior."""

    def kl(self) -> Tensor:
        """Return how far the noisy weights are from their prior, in nats, summed over the layer.

        It belongs to the whole training set: a loss takes it once, or divided by the number of rows at every step.
        """
        raise NotImplementedError  # each class has its own prior


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
