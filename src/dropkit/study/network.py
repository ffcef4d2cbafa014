"""The network of a study: fully connected, rectified, many models of one shape side by side.

Parameters are a list (weight, bias, weight, bias, ...). A weight has the shape (models, inputs, outputs) and a bias
(models, 1, outputs), so one batched product serves all models.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit.random import call_key, uniform

__all__ = ["initial_parameters", "logits", "row_scores"]


def initial_parameters(keys: Sequence[int], widths: Sequence[int]) -> list[Tensor]:
    """Draw the first weights of one model a key, from the distribution that `torch.nn.Linear` starts with."""
    drawn = {key: _draw(key, widths) for key in set(keys)}
    return [torch.from_numpy(np.stack(arrays)) for arrays in zip(*(drawn[key] for key in keys), strict=True)]


def _draw(key: int, widths: Sequence[int]) -> list[np.ndarray]:
    arrays = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        bound = 1 / math.sqrt(inputs)
        for part, shape in (("weight", (inputs, outputs)), ("bias", (1, outputs))):
            field = uniform(call_key(key, f"{part} {layer}", 0), shape, dtype=np.float32)
            arrays.append((2 * field - 1) * np.float32(bound))
    return arrays


def logits(parameters: Sequence[Tensor], inputs: Tensor, drop: Callable[[Tensor, int], Tensor] | None = None) -> Tensor:
    """Return the logits, of shape (models, rows, classes); `drop(hidden, layer)` acts on every hidden layer."""
    hidden = inputs
    last = len(parameters) // 2 - 1
    for layer, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        hidden = torch.baddbmm(bias, hidden, weight)
        if layer < last:
            hidden = hidden.relu_()
            if drop is not None:
                hidden = drop(hidden, layer)
    return hidden


@torch.no_grad()
def row_scores(
    parameters: Sequence[Tensor], inputs: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return every model's log loss and correctness on every row, float64 of shape (models, rows), dropout off.

    Inputs and targets are those of each model, prepared on its own training rows.
    """
    losses, correct = [], []
    for model in range(len(parameters[0])):  # one large product after another is faster here than a batched one
        one = [parameter[model : model + 1] for parameter in parameters]
        found = logits(one, inputs[model][None])[0]
        losses.append(F.cross_entropy(found, targets[model], reduction="none"))
        correct.append(found.argmax(1) == targets[model])
    return torch.stack(losses).double(), torch.stack(correct).double()
