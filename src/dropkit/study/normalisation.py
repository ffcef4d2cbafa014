"""Batch normalisation of many models side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BatchNorm", "folded"]

_EPSILON = 1e-5  # of `torch.nn.BatchNorm1d`, and so is the momentum
_MOMENTUM = 0.1


class BatchNorm:
    """The normalisation of one hidden layer: gain and offset are trained, the running moments serve evaluation.

    Args:
        models: Models of the pack.
        width: Units of the layer.

    References:
        Ioffe and Szegedy (2015), "Batch normalization", algorithms 1 and 2.
    """

    def __init__(self, models: int, width: int) -> None:
        shape = (models, 1, width)
        self.gain, self.offset = torch.ones(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
        self.mean, self.variance = torch.zeros(shape), torch.ones(shape)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Normalise over the rows of a batch, model by model."""
        variance, mean = torch.var_mean(hidden, 1, correction=0, keepdim=True)
        with torch.no_grad():
            rows = hidden.shape[1]
            self.mean.lerp_(mean, _MOMENTUM)
            self.variance.lerp_(variance * (rows / max(rows - 1, 1)), _MOMENTUM)
        return (hidden - mean) * ((variance + _EPSILON).rsqrt() * self.gain) + self.offset


@torch.no_grad()
def folded(parameters: Sequence[Tensor], norms: Sequence[BatchNorm]) -> list[Tensor]:
    """Return weights and biases of the plain network that equals the normalised one in evaluation."""
    found = [parameter.detach() for parameter in parameters]
    for layer, norm in enumerate(norms):
        scale = norm.gain * (norm.variance + _EPSILON).rsqrt()
        found[2 * layer] = found[2 * layer] * scale
        found[2 * layer + 1] = (found[2 * layer + 1] - norm.mean) * scale + norm.offset
    return found
