"""Gradient variance: how much the gradient of a mini-batch varies with its rows and its noise."""

import numpy as np
import torch
from torch import Tensor

from dropkit.functional import dropout
from dropkit.random import call_key, keep_mask, normal, uniform32
from dropkit.study.augmentation import changed, drawn
from dropkit.study.measures.measure import Measure, Trained, Values
from dropkit.study.methods.variants import acts_on_weights, learned_by, noisy
from dropkit.study.network import logits, row_losses

__all__ = ["BATCH_SIZES", "DRAWS", "MEASURE", "batch_gradient", "gradient_variance"]

BATCH_SIZES = (16, 64, 256)
DRAWS = 16


def gradient_variance(model: Trained, draws: int = DRAWS) -> Values:
    """Return the trace of the covariance of the mini-batch gradient at the trained weights, by batch size.

    Every draw takes fresh training rows, without replacement as an epoch does, and fresh noise of the model's own
    recipe. The trace is not divided by the squared mean gradient: where training ends that may be close to zero, and
    the quotient would be noise. Batches that are larger than the training set are left out.
    """
    sizes = [size for size in BATCH_SIZES if size <= len(model.train)]
    return Values({float(size): _trace(model, size, draws) for size in sizes})


def _trace(model: Trained, size: int, draws: int) -> float:
    """Return the unbiased estimate from independent gradients, with one gradient in memory at a time."""
    total = torch.zeros(sum(parameter.numel() for parameter in model.parameters), dtype=torch.float64)
    squares = 0.0
    for draw in range(draws):
        gradient = batch_gradient(model, size, draw)
        total += gradient
        squares += float(gradient.square().sum())
    return max(squares - float(total.square().sum()) / draws, 0.0) / (draws - 1)


def batch_gradient(model: Trained, size: int, draw: int) -> Tensor:
    """Return the gradient of one mini-batch's mean training loss, as one vector in float64."""
    recipe, shape = model.recipe, (len(model.train),)
    on_weights = acts_on_weights(recipe)
    order = np.argsort(uniform32(_key(model, size, "rows", draw), shape), kind="stable")
    rows = torch.from_numpy(model.train[order[:size]])

    def activate(hidden: Tensor, layer: int) -> Tensor:
        hidden = hidden.relu()
        if not recipe.dropout or on_weights:
            return hidden
        if recipe.variant:
            return noisy(hidden, recipe, recipe.dropout, _key(model, size, f"hidden {layer}", draw))
        mask = keep_mask(_key(model, size, f"hidden {layer}", draw), tuple(hidden.shape[1:]), recipe.dropout)
        return dropout(hidden, recipe.dropout, mask=torch.from_numpy(mask)[None])

    parameters = [parameter.detach().requires_grad_() for parameter in model.parameters]
    noised = list(parameters)
    for layer in range(len(parameters) // 2 - 1 if on_weights else 0):
        key = _key(model, size, f"hidden {layer}", draw)
        noised[2 * layer] = noisy(parameters[2 * layer], recipe, recipe.dropout, key)
    found = logits(noised, _inputs(model, rows, draw)[None], activate)
    loss = row_losses(found, model.targets[rows][None], torch.tensor([recipe.label_smoothing])).mean()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]).double()


def _inputs(model: Trained, rows: Tensor, draw: int) -> Tensor:
    """Return a batch's inputs, changed by the recipe's own augmentation or noise."""
    inputs, recipe, size = model.inputs[rows], model.recipe, len(rows)
    changes = drawn(_key(model, size, "augmentation", draw), recipe, size, 0)
    if changes:
        images = inputs.unflatten(1, model.image_shape or (1, inputs.shape[1]))
        return changed(images, {name: torch.from_numpy(values) for name, values in changes.items()}).flatten(1)
    if recipe.noise:
        noise = normal(_key(model, size, "noise", draw), tuple(inputs.shape), dtype=np.float32)
        return inputs + recipe.noise * torch.from_numpy(noise)
    return inputs


def _key(model: Trained, size: int, place: str, draw: int) -> int:
    return call_key(model.key, f"gradient of {size} rows, {place}", draw)


MEASURE = Measure(
    "gradient_variance",
    "rows a batch",
    gradient_variance,
    # Training normalises over the batch and drops in front of it: the folded network has other gradients. Mixup has a
    # loss of two targets. And models do not keep the rates that they learned, which only training needs.
    fits=lambda recipe: not recipe.batch_norm and not recipe.mixup and learned_by(recipe) is None,
)
