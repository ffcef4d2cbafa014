"""DropConnect and dropout against neither, on digits, beside table 1 of Wan et al. (2013).

    python benchmarks/papers/drop_connect.py [--quick] [--adam]

The paper trains 784-800-800-10 on the 60,000 images of MNIST. Here it is a narrower network on 1,000 of the embedded
5,000, so errors are higher; the optimiser is the paper's, SGD at 0.1 with momentum 0.9, its rate falling to 0 linearly
instead of in steps. All arms of a seed share rows, first weights and batches; printed are mean errors, and each arm's
gain over none with its 95 % interval over seeds. A DropConnect step takes 80 ms on one thread: the whole some ten
minutes on a machine that does nothing else, `--quick` one or two.

Six seeds of 1,200 steps: none 10.78 %, dropout 8.41, a gain of 2.37 [2.00, 2.75]; DropConnect 9.31, or 9.50 by Gaussian
draws, a gain of 1.28 [0.97, 1.60]. Both beat none; the better of the two is dropout here, and DropConnect in the paper.

The optimiser decides. By Adam at 1e-3, 800 steps of six seeds gave dropout a gain of 1.09 [0.69, 1.50], and DropConnect
one of -0.43 [-1.16, 0.30], though every arm named all training rows rightly. What was tried besides, with
DropConnect's noise drawn as Gaussian, on three other splits of the same images and judged on validation rows: Adam lost
0.4 after 800 and after 3,000 steps; SGD gained at rates of 0.01, 0.03 and 0.1 (0.4, 0.9 and 0.7 to 1.4 points; 0.1, the
paper's, is none's best too), from the paper's initial weights, N(0, 0.01), as from PyTorch's, and with 2,000 images.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from digits import Digits, adam, error, interval, train
from torch import nn

from dropkit.nn import DropConnect, Dropout

PAPER = {
    "none": 1.62,
    "dropout": 1.28,
    "DropConnect": 1.20,
}  # table 1: ReLU, error of single networks
P, ROWS = 0.5, 1000


def network(arm: str, width: int) -> nn.Sequential:
    """Build one arm: noise on both hidden layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((784, width, width)):
        if arm == "DropConnect":
            layers.append(DropConnect(inputs, outputs, p=P, activation=torch.relu, samples=100))
        else:
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([Dropout(P)] if arm == "dropout" else [])]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """Return the paper's optimiser."""
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)


def errors(seed: int, width: int, steps: int, by: Callable[[nn.Module], torch.optim.Optimizer]) -> dict[str, float]:
    """Return the test error of every arm, DropConnect's by both rules of inference."""
    digits, found = Digits(seed, ROWS), {}
    for arm in PAPER:
        torch.manual_seed(seed)
        model = network(arm, width)
        train(model, digits, steps, seed, by)
        found[arm] = error(model, digits.test)
        of_training = error(model, digits.train)
        print(f"  seed {seed}  {arm:<12}{found[arm]:>6.2f} %, of training rows {of_training:.2f} %", flush=True)
        if arm == "DropConnect":
            for layer in model:
                if isinstance(layer, DropConnect):
                    layer.inference = "gaussian"
            found["DropConnect, Gaussian"] = error(model, digits.test)
    return found


def main() -> None:
    """Train, and print the errors beside the paper's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer seeds, units and steps")
    parser.add_argument("--adam", action="store_true", help="train by Adam at 1e-3")
    options = parser.parse_args()
    width, steps, seeds = (128, 600, 3) if options.quick else (256, 1200, 6)
    begin = time.perf_counter()
    by, name = (adam, "Adam at 0.001") if options.adam else (sgd, "SGD at 0.1 with momentum")
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"784-{width}-{width}-10, ReLU, {ROWS:,} images, {steps:,} steps of {name}, {seeds} seeds, p = {P}")
    found = [errors(seed, width, steps, by) for seed in range(seeds)]
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
