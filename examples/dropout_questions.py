"""Four questions about dropout that are often answered wrongly, answered by enumeration and measurement.

1. Is the full network the average of its 2**n subnetworks?
2. What does dropout on a sigmoid output do?
3. What goes wrong between dropout and BatchNorm?
4. Does scaling in training rather than at evaluation bring training and evaluation closer together?
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dropkit.numpy import dropout_forward

Array = npt.NDArray[np.float64]

ROWS = 200_000


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(logits: Array) -> Array:
    raised: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total: Array = raised.sum(axis=-1, keepdims=True)
    return raised / total


# 1. Subnetworks


class Average(NamedTuple):
    """A network with nothing dropped, and the averages of the outputs of all its subnetworks."""

    full: Array
    arithmetic: Array
    geometric: Array


def subnetworks(network: Callable[[Array], Array], x: Array, p: float) -> Average:
    """Drop the inputs of a network in all 2**n ways and average its outputs, weighted by how likely each way is.

    The geometric mean is renormalised to sum to 1. It has a meaning for probabilities alone: NaN for other outputs.
    """
    masks = np.array(list(itertools.product((False, True), repeat=len(x))))
    chances = np.where(masks, 1 - p, p).prod(axis=1)
    outputs = np.array([network(dropout_forward(x, p, mask=mask)[0]) for mask in masks])
    arithmetic = chances @ outputs
    if (outputs <= 0).any():
        return Average(network(x), arithmetic, np.full_like(arithmetic, np.nan))
    geometric = np.exp(chances @ np.log(outputs))
    return Average(network(x), arithmetic, geometric / geometric.sum())


def networks() -> dict[str, Callable[[Array], Array]]:
    """Return networks of four inputs and three outputs: two linear layers, one softmax layer, and each with a ReLU."""
    rng = np.random.default_rng(0)
    w1, w2, w = rng.normal(size=(4, 5)), rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    return {
        "two linear layers": lambda x: x @ w1 @ w2,
        "linear, ReLU, linear": lambda x: relu(x @ w1) @ w2,
        "one softmax layer": lambda x: softmax(x @ w),
        "linear, ReLU, softmax": lambda x: softmax(relu(x @ w1) @ w2),
    }


# 2. A sigmoid output


def cross_entropy(probability: Array, label: float) -> Array:
    """Return the loss of predicted probabilities, as libraries take it: with probabilities kept 1e-7 off 0 and 1."""
    kept_off = np.clip(probability, 1e-7, 1 - 1e-7)
    return -label * np.log(kept_off) - (1 - label) * np.log(1 - kept_off)


def sigmoid(logit: Array) -> Array:
    return 1 / (1 + np.exp(-logit))


def outcomes(logit: float) -> dict[str, tuple[float, float, float]]:
    """Return the output when the unit is dropped and when it is kept (p = 0.5), and at test time."""
    both, kept = np.full(2, logit), np.array([False, True])
    after, _ = dropout_forward(sigmoid(both), 0.5, mask=kept)
    before = sigmoid(dropout_forward(both, 0.5, mask=kept)[0])
    test = float(sigmoid(both)[0])
    return {"after": (*after.tolist(), test), "before": (*before.tolist(), test)}


def learned_prediction(share: float, where: str) -> float:
    """Return what a constant predictor with dropout p = 0.5 on its output says at test time, once trained.

    Its labels are 1 for this share of the rows. Training minimises the loss expected over rows and masks; one parameter
    (the logit) leaves nothing to an optimiser, so it is searched on a fine grid.
    """
    logits = np.linspace(-8, 8, 160_001)
    loss = np.zeros_like(logits)
    for mask in (np.zeros(logits.shape, np.bool_), np.ones(logits.shape, np.bool_)):
        if where == "after":
            output = dropout_forward(sigmoid(logits), 0.5, mask=mask)[0]
        else:
            output = sigmoid(dropout_forward(logits, 0.5, mask=mask)[0])
        loss += 0.5 * (share * cross_entropy(output, 1.0) + (1 - share) * cross_entropy(output, 0.0))
    return float(sigmoid(logits[loss.argmin()]))


# 3. BatchNorm


def variance_ratio(p: float) -> float:
    """Return the variance of dropout(relu(z)) with dropout on, over that with dropout off, for a standard normal z.

    relu(z) has the mean square 1/2 and the mean c = 1/sqrt(2 pi), so its variance is 1/2 - c**2. Dropout keeps the
    mean and divides the mean square by 1 - p: the ratio is (pi / (1 - p) - 1) / (pi - 1).
    """
    return (math.pi / (1 - p) - 1) / (math.pi - 1)


ORDERS = (
    ("ReLU", "dropout", "BatchNorm"),
    ("ReLU", "dropout", "linear", "BatchNorm"),
    ("BatchNorm", "ReLU", "dropout"),
)


def batchnorm_input(order: tuple[str, ...], z: Array, p: float, training: bool) -> Array:
    """Run the layers before the BatchNorm on z and return what reaches it."""
    weights = np.random.default_rng(1).normal(size=(z.shape[1], z.shape[1]))
    layers: dict[str, Callable[[Array], Array]] = {
        "ReLU": relu,
        "dropout": lambda x: dropout_forward(x, p, training, rng=0)[0],
        "linear": lambda x: x @ weights,
    }
    for layer in order[: order.index("BatchNorm")]:
        z = layers[layer](z)
    return z


def measured_ratio(order: tuple[str, ...], p: float) -> float:
    """Measure how many times larger the variance of a BatchNorm's input is with dropout on than off."""
    z = np.random.default_rng(0).normal(size=(ROWS, 8))
    on, off = (batchnorm_input(order, z, p, training).var(axis=0) for training in (True, False))
    return float((on / off).mean())


# 4. Scaling in training or at evaluation


class Spread(NamedTuple):
    """The variance of a layer's outputs over rows and masks, in training and at evaluation."""

    training: float
    evaluation: float


def spreads(p: float) -> dict[str, Spread]:
    """Measure both forms of dropout on relu(z) for a standard normal z, under the same mask."""
    a = relu(np.random.default_rng(0).normal(size=8 * ROWS))
    inverted, mask = dropout_forward(a, p, rng=0)
    return {
        "in training": Spread(float(inverted.var()), float(a.var())),
        "at evaluation": Spread(float(np.where(mask, a, 0).var()), float(((1 - p) * a).var())),
    }


def main() -> None:
    print("1. the full network and the mean of its 16 subnetworks, p = 0.5: largest difference")
    print(f"   {'':22}   arithmetic   geometric")
    for name, network in networks().items():
        full, *means = subnetworks(network, np.array([0.9, -0.4, 0.7, 0.2]), 0.5)
        arithmetic, geometric = (f"{np.abs(full - mean).max():.6f}" for mean in means)
        print(f"   {name:22} {arithmetic:>12} {geometric:>11}")

    print("\n2. dropout with p = 0.5 on an output whose sigmoid is 0.8")
    for where, (dropped, kept, test) in outcomes(math.log(4)).items():
        print(f"   {where:6} the sigmoid: {dropped:.2f} or {kept:.2f} in training, {test:.2f} at test time")
    for where in ("after", "before"):
        print(f"   trained on 90 % ones, dropout {where} the sigmoid: predicts {learned_prediction(0.9, where):.2f}")

    print("\n3. variance of a BatchNorm's input, dropout on / off")
    titles = ["closed form", *(", ".join(order) for order in ORDERS)]
    print("   p     " + "   ".join(titles))
    for p in (0.1, 0.2, 0.3, 0.5):
        ratios = [variance_ratio(p), *(measured_ratio(order, p) for order in ORDERS)]
        cells = (f"{ratio:{len(title)}.2f}" for ratio, title in zip(ratios, titles, strict=True))
        print(f"   {p}   " + "   ".join(cells))

    print("\n4. variance over rows and masks")
    print("   p     scaled          training   evaluation   difference   ratio")
    for p in (0.1, 0.3, 0.5):
        for form, (training, evaluation) in spreads(p).items():
            off, ratio = training - evaluation, training / evaluation
            print(f"   {p}   {form:14} {training:9.4f} {evaluation:12.4f} {off:12.4f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
