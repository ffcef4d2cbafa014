"""A toy data set, a tiny budget, and studies whose numbers are made up."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch

from dropkit.study import METHODS, Budget, Dataset
from dropkit.study.plan import Plan, make_plan
from dropkit.study.records import SELECTION, WIDENING, Record, Trial, curves
from dropkit.study.summary import Summary, choose, summarise, widen


def make_toy(name: str = "toy") -> Dataset:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 6)).astype(np.float32)
    targets = (inputs[:, 0] + rng.normal(size=500) > 0).astype(np.int64) + (inputs[:, 1] > 1)
    return Dataset(name, "Toy points", inputs, targets)


TINY = Budget(
    "tiny", hidden=(16, 8), epochs=3, batch_size=32, test_rows=100, train_rows=200, inner_rows=60, validation_rows=100,
    confirmation_seeds=3, pack_size=6,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, and threads that wait for each other crawl on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy() -> Dataset:
    return make_toy()


@pytest.fixture(scope="session")
def tiny() -> Budget:
    return TINY


@pytest.fixture(scope="session")
def plan(toy: Dataset) -> Plan:
    """The plan of a study of usual size, over the toy data."""
    budget = Budget("made up", epochs=3)
    return make_plan(toy, budget, 0, {name: METHODS[name].grid(5) for name in ("none", *budget.methods)})


Loss = Callable[[float, int], float]


@pytest.fixture(scope="session")
def made_up(plan: Plan) -> Callable[..., Summary]:
    """Build a summary from made-up losses: `early[method](strength, seed)`, and the last epoch's on top of it."""

    def record(trial: Trial, early: float, last: float, training: float, diverged: bool) -> Record:
        if diverged:
            return Record(trial, curves(training_loss=[1], inner_loss=[1], validation_loss=[1], accuracy=[0]), 2)
        found = curves(
            training_loss=[1, training, training / 2], inner_loss=[2, 1, 3], validation_loss=[2, early, last],
            accuracy=[0.5, 0.9, 0.9],
        )  # fmt: skip
        return Record(trial, found)

    def build(
        early: Mapping[str, Loss],
        *,
        last: float = 0.08,
        training: float = 0.05,
        diverged: Callable[[Trial], bool] = lambda _: False,
        plan: Plan = plan,
    ) -> Summary:
        records = []
        for phase in plan.seeds:
            settled = settle(plan, records, phase)
            for trial in plan.trials(phase):
                own = (trial.strength,) if phase == SELECTION else settled[trial.method]
                strength = own[trial.slot] if trial.slot < len(own) else None
                if strength is not None:
                    run, loss = trial.with_strength(strength), early[trial.method](strength, trial.seed)
                    records.append(record(run, loss, loss + last, training, diverged(run)))
        return summarise(plan, records)

    return build


def settle(plan: Plan, records: list[Record], phase: str) -> Mapping[str, tuple[float | None, ...]]:
    """Return the strengths of the slots of a phase."""
    if phase == WIDENING:
        return widen(plan, records)
    return {name: (strength,) for name, strength in choose(plan, records).items()} if records else {}
