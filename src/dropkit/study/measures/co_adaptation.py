"""Co-adaptation: how strongly the hidden units of a layer are correlated over the validation rows."""

import math

import torch
from torch import Tensor

from dropkit.study.measures.measure import Measure, Trained, Values
from dropkit.study.network import logits

__all__ = ["MEASURE", "co_adaptation", "mean_correlation"]


@torch.no_grad()
def co_adaptation(model: Trained) -> Values:
    """Return the mean absolute correlation between two units of a hidden layer, dropout off, by layer from 1.

    Units that never vary over the rows have no correlation; they are left out and counted.
    """
    layers: list[Tensor] = []

    def keep(hidden: Tensor, layer: int) -> Tensor:
        layers.append(hidden.relu_()[0])
        return hidden

    logits(model.parameters, model.inputs[torch.from_numpy(model.validation)][None], keep)
    found = [mean_correlation(hidden) for hidden in layers]
    return Values(
        {float(number): value for number, (value, _) in enumerate(found, start=1)}, sum(count for _, count in found)
    )


def mean_correlation(hidden: Tensor) -> tuple[float, int]:
    """Return the mean absolute correlation between two columns, NaN if fewer than two vary, and how many do not."""
    varying = hidden[:, hidden.amax(0) > hidden.amin(0)].double()
    units, left_out = varying.shape[1], hidden.shape[1] - varying.shape[1]
    if units < 2:
        return math.nan, left_out
    centred = varying - varying.mean(0)
    scaled = centred / centred.norm(dim=0)
    total = float((scaled.T @ scaled).abs().sum())
    return (total - units) / (units * (units - 1)), left_out  # a unit's correlation with itself, 1, does not count


MEASURE = Measure("co_adaptation", "hidden layer", co_adaptation)
