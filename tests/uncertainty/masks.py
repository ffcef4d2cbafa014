"""Every mask of a small model, by brute force."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dropkit.sites import inject

__all__ = ["enumerated", "moments_of"]


def enumerated(
    model: nn.Module, x: Tensor, shapes: Mapping[str, tuple[int, ...]], rates: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """Return the probabilities of all masks and the outputs for one example, one mask after another."""
    units = [(name, place) for name, shape in shapes.items() for place in range(int(torch.tensor(shape).prod()))]
    probabilities, outputs = [], []
    model.train()
    for kept in itertools.product((False, True), repeat=len(units)):
        bits = dict(zip(units, kept, strict=True))
        masks, probability = {}, 1.0
        for name, shape in shapes.items():
            own = [bits[unit] for unit in units if unit[0] == name]
            masks[name] = torch.tensor(own).reshape(1, *shape)
            for bit in own:
                probability *= 1 - rates[name] if bit else rates[name]
        with torch.no_grad(), inject(model, masks):
            outputs.append(model(x))
        probabilities.append(probability)
    return torch.tensor(probabilities, dtype=torch.float64), torch.cat(outputs)


def moments_of(probabilities: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of outputs with probabilities."""
    flat = outputs.flatten(1)
    mean = probabilities @ flat
    deviations = flat - mean
    return mean.reshape(outputs.shape[1:]), deviations.T @ (probabilities[:, None] * deviations)
