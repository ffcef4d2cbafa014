"""Graceful degradation: the validation loss when a share of the hidden units is removed after training."""

import numpy as np
import numpy.typing as npt
import torch

from dropkit.random import call_key, uniform32
from dropkit.study.measures.measure import Measure, Trained, Values
from dropkit.study.network import logits, row_losses

__all__ = ["DRAWS", "MEASURE", "SHARES", "degradation", "removal_order"]

SHARES = tuple(tenth / 10 for tenth in range(10))
DRAWS = 5


@torch.no_grad()
def degradation(model: Trained) -> Values:
    """Return the validation loss against the share of all hidden units that is set to zero, a mean over draws.

    A draw removes units of all hidden layers in one random order, so a larger share removes the units of a smaller one
    and others. The units that are left are not rescaled.
    """
    rows = torch.from_numpy(model.validation)
    targets = model.targets[rows][None]
    # The units are removed behind the first product, which is the largest, so it is the same for every draw and share.
    first = torch.baddbmm(model.parameters[1], model.inputs[rows][None], model.parameters[0]).relu_()
    orders = [removal_order(model.key, sum(model.widths), draw) for draw in range(DRAWS)]
    found = {}
    for share in SHARES:
        removed = round(share * sum(model.widths))
        # Without removal every draw is the same.
        losses = [_loss(model, first, targets, order[:removed]) for order in (orders if removed else orders[:1])]
        found[share] = float(np.mean(losses))
    return Values(found)


def removal_order(key: int, units: int, draw: int) -> npt.NDArray[np.int64]:
    """Return the order in which a draw removes the hidden units, which are counted through all layers."""
    return np.argsort(uniform32(call_key(key, "removed units", draw), (units,)), kind="stable")


def _loss(model: Trained, first: torch.Tensor, targets: torch.Tensor, removed: npt.NDArray[np.int64]) -> float:
    keep = torch.ones(sum(model.widths))
    keep[torch.from_numpy(removed)] = 0
    own = keep.split(list(model.widths))
    found = logits(model.parameters[2:], first * own[0], lambda hidden, layer: hidden.relu_() * own[layer + 1])
    return float(row_losses(found, targets).double().mean())


MEASURE = Measure("degradation", "share of hidden units removed", degradation)
