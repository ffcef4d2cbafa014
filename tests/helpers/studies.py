"""Toy data and a tiny budget, with which a whole study takes seconds, their splits, and a run as a kill leaves it."""

from pathlib import Path

import numpy as np

from dropkit.study import Budget, Dataset
from dropkit.study.splits import Split, outer_split, seed_key, seed_split

TINY = Budget(
    "tiny", hidden=(16, 8), epochs=3, batch_size=32, test_rows=100, train_rows=200, inner_rows=60, validation_rows=100,
    confirmation_seeds=3, pack_size=6,
)  # fmt: skip


def make_toy(name: str = "toy") -> Dataset:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 6)).astype(np.float32)
    targets = (inputs[:, 0] + rng.normal(size=500) > 0).astype(np.int64) + (inputs[:, 1] > 1)
    return Dataset(name, "Toy points", inputs, targets)


def splits_of(data: Dataset, budget: Budget, seeds: int) -> dict[int, Split]:
    """Split the data as a study of seed 0 does, for its first seeds; by their keys."""
    _, rest = outer_split(data, budget, 0)
    keys = [seed_key(0, number) for number in range(seeds)]
    return {key: seed_split(data, rest, budget, key) for key in keys}


def copy_until(source: Path, target: Path, journal_bytes: int) -> Path:
    """Copy a run as a kill would leave it: the plan and the first bytes of the journal, without models."""
    (target / "models").mkdir(parents=True)
    (target / "plan.json").write_bytes((source / "plan.json").read_bytes())
    (target / "journal.log").write_bytes((source / "journal.log").read_bytes()[:journal_bytes])
    return target
