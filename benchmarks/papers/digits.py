"""What the experiments on the embedded digits share: data, training, and paired differences with an interval."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from scipy.stats import t
from torch import Tensor, nn

from dropkit.study import embedded

TEST_ROWS, BATCH = 2000, 100


class Digits:
    """The 5,000 embedded images of MNIST, shuffled by a seed; the last 2,000 test."""

    def __init__(self, seed: int, rows: int) -> None:
        images, labels = embedded.mnist()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        inputs = torch.from_numpy(images).reshape(len(labels), -1).float().div_(255)[order]
        targets = torch.from_numpy(labels).long()[order]
        self.train = inputs[:rows], targets[:rows]
        self.test = inputs[-TEST_ROWS:], targets[-TEST_ROWS:]


def adam(network: nn.Module) -> torch.optim.Optimizer:
    """Return Adam at 1e-3."""
    return torch.optim.Adam(network.parameters(), lr=1e-3)


def train(
    network: nn.Module, digits: Digits, steps: int, seed: int, by: Callable[[nn.Module], torch.optim.Optimizer] = adam
) -> None:
    """Train on batches of 100, the same of the same seed, at a rate of learning that falls to 0 linearly."""
    inputs, targets = digits.train
    generator = torch.Generator().manual_seed(seed)
    optimizer = by(network)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    network.train()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
        rows, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        decay.step()
    network.eval()


@torch.no_grad()
def error(predict: Callable[[Tensor], Tensor], rows: tuple[Tensor, Tensor]) -> float:
    """Return the percentage of images that are given a wrong label."""
    inputs, targets = rows
    return 100 * float((predict(inputs).argmax(1) != targets).float().mean())


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its 95 % interval, by Student's t."""
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), float(t.ppf(0.975, len(differences) - 1)) * spread
