"""Is dropout useless on small data? Its gain at 100, 300, 1,000 and 3,000 images, beside figure 10 of Srivastava et al.

    python benchmarks/papers/data_size.py [--quick]

The paper trains 784-1024-1024-2048-10, keeping inputs with 0.8 and hidden units with 0.5, on 100 to 50,000 images:
it gains nothing at 100 and 500, and more and then less from 1,000 on (read from its figure, so without numbers). Here
the two hidden layers are narrower, and a milder rate is tried beside the paper's. All arms of a seed share images,
first weights and batches; a gain is the error of no dropout less that of dropout, with its 95 % interval.

Eight seeds of 512 units and 3,000 steps: at the paper's rates 0.95 [-0.12, 2.02] points are gained at 100 images, 1.40
[0.98, 1.82] at 300, 2.41 [1.83, 2.98] at 1,000 and 1.93 [1.50, 2.35] at 3,000. So on these images dropout is of use
under 1,000 rows as well, and at 100 nothing is settled. The milder rate gains 0.1 to 0.6. Every arm names all training
rows rightly; one seed trained three times as long at 3,000 images gained as much. The whole takes some 40 minutes of
one thread; `--quick`, one or two, leaves dropout at 3,000 images under-trained.
"""

import argparse
import statistics
import time

import torch
from digits import Digits, error, interval, train
from torch import nn

from dropkit.nn import Dropout

SIZES = (100, 300, 1000, 3000)
ARMS = {"none": (0.0, 0.0), "0.2 / 0.5": (0.2, 0.5), "0 / 0.2": (0.0, 0.2)}  # rates of inputs / hidden units


def network(width: int, of_inputs: float, of_hidden: float) -> nn.Sequential:
    """Build a network of two hidden layers."""
    return nn.Sequential(
        Dropout(of_inputs), nn.Linear(784, width), nn.ReLU(), Dropout(of_hidden),
        nn.Linear(width, width), nn.ReLU(), Dropout(of_hidden), nn.Linear(width, 10),
    )  # fmt: skip


def errors(seed: int, rows: int, width: int, steps: int) -> dict[str, tuple[float, float]]:
    """Return the errors of every arm on the test rows and on the training rows, both without noise."""
    digits, found = Digits(seed, rows), {}
    for arm, rates in ARMS.items():
        torch.manual_seed(seed)
        model = network(width, *rates)
        train(model, digits, steps, seed)
        found[arm] = error(model, digits.test), error(model, digits.train)
    return found


def main() -> None:
    """Train, and print the gains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer seeds, steps and units")
    width, steps, seeds = (128, 1000, 4) if parser.parse_args().quick else (512, 3000, 8)
    begin = time.perf_counter()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"784-{width}-{width}-10, {steps:,} steps of Adam, {seeds} seeds; rates of inputs / hidden units")
    print(f"{'images':>6}  {'rates':<11}{'error %':>7}{'of training rows':>18}{'gain over none':>22}")
    for rows in SIZES:
        found = [errors(seed, rows, width, steps) for seed in range(seeds)]
        for arm in ARMS:
            tested, fitted = (statistics.fmean(values) for values in zip(*(each[arm] for each in found), strict=True))
            gain, half = interval([each["none"][0] - each[arm][0] for each in found])
            shown = "" if arm == "none" else f"{gain:.2f} [{gain - half:.2f}, {gain + half:.2f}]"
            print(f"{rows:>6,}  {arm:<11}{tested:>7.2f}{fitted:>18.2f}{shown:>22}", flush=True)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
