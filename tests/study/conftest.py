"""A toy data set, a tiny budget, and studies whose numbers are made up."""

from collections.abc import Callable, Iterator, Mapping

import pytest

from dropkit import study
from dropkit.study import METHODS, Budget, Dataset
from dropkit.study.plan import Plan, make_plan
from dropkit.study.records import SELECTION, WIDENING, Record, Trial, curves
from dropkit.study.result import Result
from dropkit.study.summary import Summary, choose, summarise, widen
from tests.helpers.studies import TINY, make_toy
from tests.helpers.threads import single_thread


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="session")
def toy() -> Dataset:
    return make_toy()


@pytest.fixture(scope="session")
def tiny() -> Budget:
    return TINY


@pytest.fixture(scope="session")
def finished(toy: Dataset, tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole study; tests that open its directory do so with a copy."""
    with single_thread():  # a fixture of the session begins before `one_thread`
        return study.run(toy, budget=tiny, seed=5, directory=tmp_path_factory.mktemp("runs") / "whole")


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
