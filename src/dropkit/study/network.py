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

__all__ = ["initial_parameters", "logits", "row_losses", "row_scores"]


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


def _rectify(hidden: Tensor, layer: int) -> Tensor:
    return hidden.relu_()


def logits(
    parameters: Sequence[Tensor], inputs: Tensor, activate: Callable[[Tensor, int], Tensor] = _rectify
) -> Tensor:
    """Return the outputs, of shape (models, rows, outputs); `activate(hidden, layer)` acts on every hidden layer."""
    hidden = inputs
    last = len(parameters) // 2 - 1
    for layer, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        hidden = torch.baddbmm(bias, hidden, weight)
        if layer < last:
            hidden = activate(hidden, layer)
    return hidden


def row_losses(found: Tensor, targets: Tensor, smoothing: Tensor | None = None) -> Tensor:
    """Return the loss of every row: log loss for classes, squared error for numbers.

    Args:
        found: Outputs, of shape (models, rows, outputs).
        targets: Classes (int64) or standardised numbers (float32), of shape (models, rows).
        smoothing: For each model, the share of the target that goes to all classes alike. Default: nothing.
    """
    if targets.is_floating_point():
        return (found[..., 0] - targets).square()
    if smoothing is None or not smoothing.any():
        return F.cross_entropy(found.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    logs = F.log_softmax(found, dim=-1)
    own, all_alike = logs.gather(-1, targets[..., None])[..., 0], logs.mean(-1)
    return -torch.lerp(own, all_alike, smoothing[:, None].expand_as(own))


@torch.no_grad()
def row_scores(
    parameters: Sequence[Tensor], inputs: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return every model's loss on every row, float64 of shape (models, rows), and its outputs, dropout off.

    Inputs and targets are those of each model, prepared on its own training rows.
    """
    losses, outputs = [], []
    for model in range(len(parameters[0])):  # one large product after another is faster here than a batched one
        one = [parameter[model : model + 1] for parameter in parameters]
        found = logits(one, inputs[model][None])
        losses.append(row_losses(found, targets[model][None])[0])
        outputs.append(found[0])
    return torch.stack(losses).double(), torch.stack(outputs)
