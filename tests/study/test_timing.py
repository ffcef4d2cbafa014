"""A study of one's own data is fitted to its budget's time: epochs first, then methods, never seeds."""

import itertools
from dataclasses import replace

import pytest

from dropkit.study import METHODS, Budget, Dataset, api
from dropkit.study.plan import make_plan
from dropkit.study.progress import Progress
from dropkit.study.timing import LEAST_EPOCHS, fit_to_time, measure_epochs

pytestmark = pytest.mark.usefixtures("light_studies")

METHODS_COMPARED = ("dropout", "weight_decay", "l1")
GRIDS = {name: METHODS[name].grid(2) for name in ("none", *METHODS_COMPARED)}


def clock(seconds):
    """Every measurement takes so many seconds: the clock is read before and after each."""
    count = itertools.count()
    return lambda: (next(count) + 1) // 2 * seconds


@pytest.fixture(scope="module")
def budget(tiny: Budget) -> Budget:
    return replace(tiny, epochs=40, methods=METHODS_COMPARED, strengths=2, minutes=1e5)


def estimate(plan, seconds: float) -> float:
    """Seconds of a plan whose packs each took so long for an epoch of their first."""
    first = {}
    for pack in plan.packs():
        kind = METHODS[pack.trials[0].method].recipe(pack.trials[0].strength or 0.5).kind
        first.setdefault(kind, seconds / len(pack.trials))
    return plan.budget.epochs * sum(
        first[METHODS[trial.method].recipe(trial.strength or 0.5).kind]
        for pack in plan.packs()
        for trial in pack.trials
    )


def fitted(toy: Dataset, budget: Budget, share: float, **options):
    """Fit to a share of what the whole plan would take at ten seconds a measurement."""
    whole = estimate(make_plan(toy, budget, 0, GRIDS), 10.0)
    return fit_to_time(toy, replace(budget, minutes=share * whole / 60), 0, GRIDS, clock=clock(10.0), **options)


def test_each_kind_is_measured_by_the_models_of_its_first_pack(toy: Dataset, budget: Budget) -> None:
    plan = make_plan(toy, budget, 0, GRIDS)
    packs = {METHODS[p.trials[0].method].recipe(p.trials[0].strength or 0.0).kind: p for p in reversed(plan.packs())
             if p.phase == "selection"}  # fmt: skip
    assert measure_epochs(plan, toy, clock(6.0)) == {kind: 6.0 / len(pack.trials) for kind, pack in packs.items()}


def test_the_time_of_a_fit_is_spread_over_the_epochs(toy: Dataset, budget: Budget) -> None:
    names = ("none", "dropout", "linear")
    plan = make_plan(toy, budget, 0, {name: METHODS[name].grid(3) for name in names})
    found = measure_epochs(plan, toy, clock(6.0))
    assert found[METHODS["linear"].recipe(1.0).kind] == 6.0 / (3 * 2) / 40  # three strengths on two seeds


def test_measuring_stops_after_a_tenth_of_the_time_and_takes_the_slowest_kind(toy: Dataset, budget: Budget) -> None:
    plan = make_plan(toy, replace(budget, minutes=1.0), 0, GRIDS)
    found = measure_epochs(plan, toy, clock(7.0))
    assert len(found) == 3
    assert len(set(found.values())) == 1


def test_what_fits_is_left_as_it_is(toy: Dataset, budget: Budget) -> None:
    reduced, grids = fitted(toy, budget, 1.01)
    assert grids == GRIDS
    assert replace(reduced, fitted="", minutes=budget.minutes) == budget
    assert "instead" not in reduced.fitted


def test_epochs_go_first(toy: Dataset, budget: Budget) -> None:
    reduced, grids = fitted(toy, budget, 0.55)
    assert (reduced.epochs, grids) == (22, GRIDS)
    assert "22 epochs instead of 40" in reduced.fitted


def test_then_methods_from_the_back_but_neither_dropout_nor_a_seed(toy: Dataset, budget: Budget) -> None:
    reduced, grids = fitted(toy, budget, 0.2)
    assert reduced.epochs == LEAST_EPOCHS
    assert tuple(grids) == ("none", "dropout", "weight_decay")
    assert "without L1" in reduced.fitted
    assert reduced.confirmation_seeds == budget.confirmation_seeds
    reduced, grids = fitted(toy, budget, 0.01)
    assert tuple(grids) == ("none", "dropout")
    assert reduced.confirmation_seeds == budget.confirmation_seeds
    assert "more than the budget's" in reduced.fitted


def test_what_the_user_wants_is_kept(toy: Dataset, budget: Budget) -> None:
    reduced, grids = fitted(toy, budget, 0.2, keep_epochs=True)
    assert reduced.epochs == 40
    assert tuple(grids) == ("none", "dropout")
    reduced, grids = fitted(toy, budget, 0.2, keep_methods=True)
    assert (reduced.epochs, grids) == (LEAST_EPOCHS, GRIDS)


def test_a_budget_without_a_time_measures_nothing(toy: Dataset, budget: Budget) -> None:
    alone = replace(budget, minutes=None)
    assert fit_to_time(toy, alone, 0, GRIDS, clock=lambda: pytest.fail("the clock was read")) == (alone, GRIDS)


def test_a_run_says_and_freezes_what_was_measured(toy: Dataset, budget: Budget, tmp_path, monkeypatch) -> None:
    said: list[str] = []

    def listen(progress: Progress) -> None:
        said.append(progress.note)

    small = replace(budget, epochs=2)
    result = api.run(toy, budget=small, methods=["dropout"], directory=tmp_path / "run", progress=listen)
    words = result.findings.summary.plan.budget.fitted
    assert words.startswith("an epoch of one network took")
    assert f"time: {words}" in said
    assert words.replace("'", "&#39;") in result.report.read_text(encoding="utf-8")
    before = (tmp_path / "run" / "plan.json").read_bytes()
    monkeypatch.setattr("dropkit.study.timing.measure_epochs", lambda *_: pytest.fail("a resumed run measured"))
    api.resume(tmp_path / "run", data=toy)
    assert (tmp_path / "run" / "plan.json").read_bytes() == before


def test_minutes_are_checked() -> None:
    for wrong in (0, -1, float("nan"), "3"):
        with pytest.raises((ValueError, TypeError), match="minutes"):
            Budget("wrong", minutes=wrong)  # type: ignore[arg-type]
