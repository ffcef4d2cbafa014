"""How much sooner a pack of models has trained than the same models one after another.

    python benchmarks/study_packing.py

Both sides train eight models of the quick study of MNIST, each on the split of its own seed, and score them after every
epoch on the same rows: one batched model of dropkit, and `torch.nn` modules with `torch.nn.Dropout`. Both have fused
Adam. Epochs of the two sides alternate in one process; printed are the medians in milliseconds a model and epoch, and
their ratio.
"""

import itertools
import statistics
import time

import torch
from torch import nn

from dropkit.study import BUDGETS, METHODS, SOURCES, Budget, Dataset
from dropkit.study.packed import TRAINING_ROWS_SCORED, Model, _Pack, shuffled
from dropkit.study.splits import Split, outer_split, seed_key, seed_split

MODELS, ROUNDS = 8, 5


class Alone:
    """One model, trained as most people would."""

    def __init__(self, key: int, p: float, data: Dataset, split: Split, budget: Budget) -> None:
        widths = (data.columns, *budget.hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), *([nn.Dropout(p)] if p else [])]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], data.classes))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=budget.learning_rate, fused=True)
        self.inputs, self.targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
        self.key, self.split, self.batch_size = key, split, budget.batch_size
        parts = (split.train[:TRAINING_ROWS_SCORED], split.inner, split.validation)
        self.scored = torch.cat([torch.from_numpy(part) for part in parts])

    def epoch(self, number: int) -> None:
        """Train an epoch, then score."""
        self.network.train()
        for rows in torch.from_numpy(shuffled(self.key, self.split.train, number)).split(self.batch_size):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.network(self.inputs[rows]), self.targets[rows]).backward()
            self.optimizer.step()
        self.network.eval()
        with torch.no_grad():
            nn.functional.cross_entropy(
                self.network(self.inputs[self.scored]), self.targets[self.scored], reduction="none"
            )


def compare(method: str, data: Dataset, budget: Budget) -> tuple[float, float]:
    """Return the median milliseconds a model and epoch, packed and alone."""
    recipe = METHODS[method].recipe(0.5 if method == "dropout" else 0.0)
    _, rest = outer_split(data, budget, 0)
    splits = {key: seed_split(data, rest, budget, key) for key in (seed_key(0, number) for number in range(MODELS))}
    pack = _Pack([Model(key, recipe) for key in splits], data, splits, budget)
    alone = [Alone(key, recipe.dropout, data, split, budget) for key, split in splits.items()]
    packed_times, alone_times = [], []
    for number in range(ROUNDS + 1):
        start = time.perf_counter()
        pack.train_epoch(number)
        pack.score(number)
        middle = time.perf_counter()
        for model in alone:
            model.epoch(number)
        packed_times.append((middle - start) * 1e3 / MODELS)
        alone_times.append((time.perf_counter() - middle) * 1e3 / MODELS)
    return statistics.median(packed_times[1:]), statistics.median(alone_times[1:])


def main() -> None:
    """Print the table."""
    data, budget = SOURCES["mnist"](), BUDGETS["quick"]
    widths = "-".join(str(width) for width in (data.columns, *budget.hidden, data.classes))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {MODELS} models {widths}, batches of "
          f"{budget.batch_size}, {budget.train_rows} rows, milliseconds a model and epoch")  # fmt: skip
    print(f"{'method':>14} {'packed':>8} {'alone':>8}  alone/packed")
    for method in ("none", "dropout"):
        packed, alone = compare(method, data, budget)
        print(f"{method:>14} {packed:8.1f} {alone:8.1f}  {alone / packed:12.2f}")


if __name__ == "__main__":
    main()
