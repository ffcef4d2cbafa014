"""DropConnect and dropout against neither, on digits, beside table 1 of Wan et al. (2013).

    python benchmarks/papers/drop_connect.py [--quick]

The paper trains 784-800-800-10 on the 60,000 images of MNIST. Here it is a narrower network on 1,000 of the embedded
5,000, for few steps, so errors are higher. All arms of a seed share rows, first weights and batches; printed are mean
errors, and each arm's gain over none with its 95 % interval over seeds.

At this size the paper's order is reproduced for dropout alone. Six seeds of 784-256-256-10: none 10.95 %, dropout 9.86,
a gain of 1.09 [0.69, 1.50]; DropConnect 11.41, or 11.38 by Gaussian draws, a gain of -0.43 [-1.16, 0.30], so no
better than none. Whether wider layers, more images or more steps change that was not measured.
"""

import argparse
import itertools
import statistics
import time

import torch
from digits import Digits, error, interval, train
from torch import nn

from dropkit.nn import DropConnect, Dropout

PAPER = {
    "none": 1.62,
    "dropout": 1.28,
    "DropConnect": 1.20,
}  # table 1: ReLU, error of single networks
P = 0.5


def network(arm: str, width: int) -> nn.Sequential:
    """Build one arm: noise on both hidden layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((784, width, width)):
        if arm == "DropConnect":
            layers.append(DropConnect(inputs, outputs, p=P, activation=torch.relu, samples=100))
        else:
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([Dropout(P)] if arm == "dropout" else [])]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def errors(seed: int, rows: int, width: int, steps: int) -> dict[str, float]:
    """Return the test error of every arm, DropConnect's by both rules of inference."""
    digits, found = Digits(seed, rows), {}
    for arm in PAPER:
        torch.manual_seed(seed)
        model = network(arm, width)
        train(model, digits, steps, seed)
        found[arm] = error(model, digits)
        if arm == "DropConnect":
            for layer in model:
                if isinstance(layer, DropConnect):
                    layer.inference = "gaussian"
            found["DropConnect, Gaussian"] = error(model, digits)
    return found


def main() -> None:
    """Train, and print the errors beside the paper's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer seeds, units and steps")
    quick = parser.parse_args().quick
    rows, width, steps, seeds = (1000, 128, 400, 3) if quick else (1000, 256, 800, 6)
    begin = time.perf_counter()
    print(f"784-{width}-{width}-10, ReLU, {rows} images, {steps} steps of Adam, {seeds} seeds, p = {P}")
    found = [errors(seed, rows, width, steps) for seed in range(seeds)]
    print(f"{'arm':<24}{'error %':>9}{'gain over none':>24}{'paper %':>9}{'its gain':>10}")
    for arm in found[0]:
        mean = statistics.fmean(result[arm] for result in found)
        gain, half = interval([result["none"] - result[arm] for result in found])
        shown = "" if arm == "none" else f"{gain:.2f} [{gain - half:.2f}, {gain + half:.2f}]"
        paper = PAPER["DropConnect" if arm == "DropConnect, Gaussian" else arm] if arm != "DropConnect" else None
        beside = f"{paper:>9.2f}{PAPER['none'] - paper:>10.2f}" if paper else ""
        print(f"{arm:<24}{mean:>9.2f}{shown:>24}{beside}")
    wins = {arm: sum(result[arm] < result["none"] for result in found) for arm in ("dropout", "DropConnect, Gaussian")}
    print("better than none in " + ", ".join(f"{won} of {seeds} seeds ({arm})" for arm, won in wins.items()))
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
