"""Widening: which strengths a method gets beside its grid, and whole studies that widen."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError
from dropkit.study import BUDGETS, METHODS, Budget, Dataset
from dropkit.study.cautions import edge_of_grid
from dropkit.study.methods import Method
from dropkit.study.plan import make_plan, plan_from_json
from dropkit.study.records import CONFIRMATION, SELECTION, WIDENING
from dropkit.study.result import Result
from dropkit.study.storage import RunFolder
from dropkit.study.summary import Summary, choose, widen
from dropkit.study.widening import EXTRA, extra_strengths
from tests.helpers.studies import copy_until

pytestmark = pytest.mark.usefixtures("light_studies")

WITH_STRENGTH = [method for method in METHODS.values() if method.symbol]


@pytest.mark.parametrize(
    ("name", "tried", "best", "extra"),
    [
        ("dropout", (0.1, 0.3, 0.5, 0.65, 0.8), 0.5, (0.4, 0.57)),
        ("dropout", (0.1, 0.3, 0.5), 0.5, (0.7, 0.9)),
        ("dropout", (0.1, 0.3, 0.5), 0.1, (0.025, 0.05)),  # a step would reach 0: half-way to it
        ("dropout", (0.5, 0.65, 0.8), 0.8, (0.95, 0.97)),  # then 1.1
        ("dropout", (0.7, 0.8, 0.9), 0.9, (0.95, 0.97)),  # 0.9 + 0.1 is 1, but for rounding
        ("l1", (1e-5, 1e-4), 1e-5, (1e-7, 1e-6)),
        ("weight_decay", (0.1, 0.3, 1.0, 3.0, 10.0), 1.0, (0.55, 1.7)),
        ("weight_decay", (1.0, 3.0, 10.0), 10.0, (33.0, 110.0)),
        ("smaller_network", (0.25, 0.5), 0.5, (0.75, 0.88)),
        ("shift", (1.0, 2.0, 3.0), 3.0, (4.0, 5.0)),
        ("shift", (5.0, 6.0, 7.0), 7.0, (8.0,)),
        ("shift", (1.0, 2.0, 3.0), 1.0, ()),
        ("shift", (1.0, 2.0, 3.0), 2.0, ()),
        ("shift", (1.0, 3.0, 5.0), 3.0, (2.0, 4.0)),
        ("dropout", (0.5,), 0.5, ()),
        ("none", (0.0,), 0.0, ()),
    ],
)
def test_the_extra_strengths(name: str, tried: tuple[float, ...], best: float, extra: tuple[float, ...]) -> None:
    assert extra_strengths(METHODS[name], tried, best) == pytest.approx(extra)


@pytest.mark.parametrize("method", WITH_STRENGTH, ids=lambda method: method.name)
@pytest.mark.parametrize("count", range(2, 9))
def test_extra_strengths_are_new_and_lie_where_the_best_one_was(method: Method, count: int) -> None:
    grid = method.grid(count)
    for place, best in enumerate(grid):
        extra = extra_strengths(method, grid, best)
        assert all(method.domain.check("test", "extra", strength) == strength for strength in extra)
        assert set(extra).isdisjoint(grid)
        assert list(extra) == sorted(extra)
        if not method.whole:
            assert len(extra) == EXTRA, "every method gets as many"
        if place == 0:
            assert all(strength < grid[0] for strength in extra)
        elif place == count - 1:
            assert all(strength > grid[-1] for strength in extra)
        elif not method.whole:
            assert grid[place - 1] < extra[0] < best < extra[1] < grid[place + 1]


def test_larger_budgets_widen_and_quick_does_not(toy: Dataset) -> None:
    assert [budget.widens for budget in BUDGETS.values()] == [False, True, True]
    grids = {name: method.grid(3) for name, method in METHODS.items()}
    plain = make_plan(toy, Budget("plain", epochs=2), 0, grids)
    wide = make_plan(toy, Budget("plain", epochs=2, widens=True), 0, grids)
    assert list(plain.seeds) == [SELECTION, CONFIRMATION]
    assert list(wide.seeds) == [SELECTION, WIDENING, CONFIRMATION]
    assert wide.seeds[WIDENING] == wide.seeds[SELECTION]
    assert [pack for pack in wide.packs() if pack.phase != WIDENING] == plain.packs()
    assert plan_from_json(wide.to_json(), "plan.json") == wide


def test_the_plan_places_every_extra_trial_before_the_first_one_trains(toy: Dataset) -> None:
    budget = Budget("wide", epochs=2, widens=True, pack_size=4)
    plan = make_plan(toy, budget, 0, {name: method.grid(3) for name, method in METHODS.items()})
    trials = plan.trials(WIDENING)
    assert {trial.method for trial in trials} == {method.name for method in WITH_STRENGTH}
    assert len(trials) == len(WITH_STRENGTH) * EXTRA * budget.selection_seeds
    assert {trial.strength for trial in trials} == {None}
    packs = [pack for pack in plan.packs() if pack.phase == WIDENING]
    names = [trial.name for pack in packs for trial in pack.trials]
    assert sorted(names) == sorted({trial.name for trial in trials})
    for place in (0, 1, 2):  # whatever the selection finds, the models of a pack are of one kind
        extra = {
            name: extra_strengths(METHODS[name], grid, grid[place])
            for name, grid in plan.strengths.items()
            if len(grid) > 1
        }
        for pack in packs:
            strengths = [(trial, extra[trial.method]) for trial in pack.trials]
            kinds = {METHODS[t.method].recipe(found[t.slot]).kind for t, found in strengths if t.slot < len(found)}
            assert len(kinds) <= 1


@pytest.mark.parametrize("value", [1, 0, 2, None, "yes"])
def test_whether_a_budget_widens_is_true_or_false(value: object) -> None:
    with pytest.raises(ArgumentTypeError, match="`widens` must be True or False"):
        Budget("bad", widens=value)  # type: ignore[arg-type]


def test_one_strength_cannot_be_widened() -> None:
    with pytest.raises(ArgumentError, match="2 or more where the grid widens"):
        Budget("bad", strengths=1, widens=True)


@pytest.fixture(scope="module")
def wide(tiny: Budget) -> Budget:
    methods = ("dropout", "weight_decay", "batch_norm", "smaller_network", "linear")
    return replace(tiny, strengths=3, widens=True, methods=methods)


@pytest.fixture(scope="module")
def finished(toy: Dataset, wide: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return study.run(toy, budget=wide, seed=5, directory=tmp_path_factory.mktemp("runs") / "wide")


def test_a_study_that_widens(finished: Result) -> None:
    summary = finished.findings.summary
    with (finished.directory / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == WIDENING]
    selected = [record for record in summary.records if record.trial.phase == SELECTION]
    best = choose(summary.plan, selected)
    for name, grid in summary.plan.strengths.items():
        strength = best[name]
        assert strength is not None
        extra = extra_strengths(METHODS[name], grid, strength)
        tried = [(float(row["strength"]), int(row["seed"])) for row in rows if row["method"] == name]
        assert tried == [(strength, seed) for strength in extra for seed in (0, 1)]
        assert [arm.strength for arm in summary.grid[name]] == sorted({*grid, *extra})
        losses = {
            arm.strength: arm.spread(lambda record: record.early.validation_loss).mean for arm in summary.grid[name]
        }
        assert summary.chosen[name] == min(losses, key=losses.__getitem__)
    assert len(rows) == 4 * EXTRA * 2
    assert "batch_norm" not in [row["method"] for row in rows]
    page = finished.report.read_text()
    first, second = extra_strengths(METHODS["dropout"], summary.plan.strengths["dropout"], best["dropout"] or 0.0)
    assert f"0.3, 0.5, 0.65; then {first:g} and {second:g}" in page


def test_pictures_number_the_strengths_of_the_plan(finished: Result) -> None:
    summary = finished.findings.summary
    figure = finished.plot("loss_against_rate")
    panel = next(axes for axes in figure.axes if axes.get_xlabel() == "p (rate)")
    assert len(panel.get_xticks()) == len(summary.grid["dropout"]) == 5
    assert [label.get_text() for label in panel.get_xticklabels() if label.get_text()] == ["0.3", "0.5", "0.65"]


def test_some_method_gains_by_widening(finished: Result) -> None:
    summary = finished.findings.summary
    assert any(strength not in summary.plan.strengths[name] for name, strength in summary.chosen.items())


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.6, 0.7, 0.8])
def test_resuming_gives_the_same_results(finished: Result, toy: Dataset, tmp_path: Path, share: float) -> None:
    size = (finished.directory / "journal.log").stat().st_size
    folder = copy_until(finished.directory, tmp_path / "cut", int(size * share))
    study.resume(folder, data=toy)
    assert (folder / "results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()
    with RunFolder.open(folder) as run:
        assert len(run.records()) == len(run._study.trials) == len(finished.trials)  # no trial twice


def test_progress_counts_what_has_nothing_left_to_try(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    image = replace(toy, name="image", image_shape=(2, 3))
    seen: list[study.Progress] = []
    budget = replace(tiny, strengths=3, widens=True)
    result = study.run(image, budget=budget, methods=["shift"], directory=tmp_path / "run", progress=seen.append)
    assert [state.done for state in seen] == sorted(state.done for state in seen)
    assert seen[-1].done == seen[-1].total == (2 + 3 * 2 + 2 * 2 + 2 * 3 + 4) * tiny.epochs
    found = widen(result.findings.summary.plan, result.trials)["shift"]
    assert len([record for record in result.trials if record.trial.phase == WIDENING]) == 2 * len(found)
    notes = [state.note for state in seen if state.note.startswith("tried beside")]
    assert len(notes) == bool(found)


def test_rates_that_are_given_are_all_that_is_tried(toy: Dataset, wide: Budget, tmp_path: Path) -> None:
    result = study.run(toy, budget=wide, rates=[0.2, 0.5], methods=["dropout"], directory=tmp_path / "run")
    assert json.loads((result.directory / "plan.json").read_text())["budget"]["widens"] is False
    assert {record.strength for record in result.trials if record.trial.method == "dropout"} == {0.2, 0.5}


def losses(best: float) -> Callable[[float, int], float]:
    return lambda strength, seed: 0.25 + abs(strength - best) / 10 + seed / 1000


def test_a_widened_grid_that_still_ends_at_its_edge(made_up: Callable[..., Summary], toy: Dataset) -> None:
    budget = Budget("wide", epochs=3, widens=True, strengths=3)
    plan = make_plan(toy, budget, 0, {"none": (0.0,), "dropout": (0.1, 0.3, 0.5)})
    none: Callable[[float, int], float] = lambda _, seed: 0.3 + seed / 1000  # noqa: E731
    (text,) = edge_of_grid.check(made_up({"none": none, "dropout": losses(1.0)}, plan=plan))
    assert text.startswith(
        "The best strength of dropout, p = 0.9, is the largest that was tried, though the grid was widened to it (loss"
    )
    assert edge_of_grid.check(made_up({"none": none, "dropout": losses(0.7)}, plan=plan)) == []
    assert edge_of_grid.check(made_up({"none": none, "dropout": losses(0.3)}, plan=plan)) == []


@pytest.mark.parametrize(("best", "warns"), [(1.0, 0), (4.0, 1), (2.0, 0)])
def test_no_warning_where_nothing_lies_beyond(
    made_up: Callable[..., Summary], toy: Dataset, best: float, warns: int
) -> None:
    image = replace(toy, name="image", image_shape=(2, 3))
    plan = make_plan(image, Budget("b", epochs=3), 0, {"none": (0.0,), "shift": (1.0, 2.0, 3.0, 4.0)})
    found = made_up({"none": losses(0.0), "shift": losses(best)}, plan=plan)
    assert found.chosen["shift"] == best
    assert len(edge_of_grid.check(found)) == warns
