"""Dropout of inputs as a penalty: exact for least squares, near for logistic regression.

    python benchmarks/papers/ridge.py

Expectations are over all masks of the inputs, enumerated and given to `dropkit.functional.dropout`, each with its
probability, so nothing is drawn. For least squares the expected loss is that of ridge regression whose penalty weighs
each input by its sum of squares (Srivastava et al., 2014, section 9.1). For a logistic model what it has more than
the loss without dropout is nearly the quadratic penalty of Wager, Wang and Liang (2013), "Dropout training as adaptive
regularization", the nearer the smaller the weights.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkit import random
from dropkit.functional import dropout

ROWS, INPUTS = 40, 6
RATES = (0.1, 0.3, 0.5)
MASKS = torch.tensor(list(itertools.product((False, True), repeat=INPUTS)))


def expected(loss: Tensor, p: float) -> Tensor:
    """Average a loss of every mask (axis 0) over all masks."""
    drop = random.threshold(p) / 2**32  # the rate as it is realised
    chance = torch.tensor([drop, 1 - drop], dtype=torch.float64)[MASKS.long()].prod(1)
    return chance @ loss


def scores(inputs: Tensor, weights: Tensor, p: float) -> Tensor:
    """Return inputs times weights under every mask, which all rows share: expectations are sums over rows."""
    each = inputs.expand(len(MASKS), -1, -1)
    return dropout(each, p, mask=MASKS[:, None, :]) @ weights


def least_squares(inputs: Tensor, targets: Tensor, weights: Tensor, p: float) -> tuple[float, float]:
    """Return by how much loss and minimiser differ from ridge regression's, relative to these."""
    odds = random.threshold(p) / (2**32 - random.threshold(p))
    found = expected((scores(inputs, weights, p) - targets).square().sum(1), p)
    gram = inputs.T @ inputs
    ridge = (inputs @ weights - targets).square().sum() + odds * weights @ (gram.diag() * weights)
    minimiser = minimise(lambda w: expected((scores(inputs, w, p) - targets).square().sum(1), p))
    closed = torch.linalg.solve(gram + odds * gram.diag().diag(), inputs.T @ targets)
    return float((found / ridge - 1).abs()), float((minimiser - closed).norm() / closed.norm())


def minimise(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the minimiser of a quadratic function, by one step of Newton."""
    start = torch.zeros(INPUTS, dtype=torch.float64)
    gradient, hessian = torch.func.grad(loss)(start), torch.func.hessian(loss)(start)
    return start - torch.linalg.solve(hessian, gradient)


def logistic(inputs: Tensor, weights: Tensor, p: float) -> float:
    """Return by how much the excess of the expected loss differs from the penalty, relative to it; labels cancel."""
    odds = random.threshold(p) / (2**32 - random.threshold(p))
    plain = inputs @ weights
    excess = expected(F.softplus(scores(inputs, weights, p)).sum(1), p) - F.softplus(plain).sum()
    chance = torch.sigmoid(plain)
    penalty = odds / 2 * (chance * (1 - chance)) @ (inputs.square() @ weights.square())
    return float(excess / penalty - 1)


def main() -> None:
    """Print how far off the equivalences are."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, INPUTS, dtype=torch.float64, generator=generator)
    weights = torch.randn(INPUTS, dtype=torch.float64, generator=generator)
    targets = inputs @ weights + torch.randn(ROWS, dtype=torch.float64, generator=generator)
    print("least squares: expected loss and minimiser, against ridge regression (exact in theory)")
    for p in RATES:
        loss, minimiser = least_squares(inputs, targets, 0.7 * weights, p)
        exact = max(loss, minimiser) < 1e-10
        print(f"  p = {p}: loss off by {loss:.1e}, minimiser by {minimiser:.1e}; both below 1e-10: {exact}")
    print("logistic regression: excess of the expected loss over the penalty, by the norm of the weights")
    for norm in (0.1, 0.2, 1.0):
        gaps = [logistic(inputs, weights * norm / weights.norm(), p) for p in RATES]
        shown = ", ".join(f"{100 * gap:+.3f} % at p = {p}" for gap, p in zip(gaps, RATES, strict=True))
        print(f"  |w| = {norm}: {shown}; all within 1 %: {max(map(abs, gaps)) < 0.01}")


if __name__ == "__main__":
    main()
