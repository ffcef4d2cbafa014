"""The plan: decided before the first trial, the same every time, and refused when it is not whole."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dropkit.errors import ArgumentError, ArgumentTypeError, RunError
from dropkit.study import BUDGETS, METHODS, Budget, Dataset
from dropkit.study.plan import Plan, make_plan, plan_from_json
from dropkit.study.records import CONFIRMATION, SELECTION


def test_every_method_gets_as_many_chances() -> None:
    assert METHODS["none"].strengths == (0.0,)
    with_strength = [method for method in METHODS.values() if method.symbol]
    for count in (1, 4, 5, 8):
        assert {len(method.grid(count)) for method in with_strength} == {count}
    assert {method.name: method.strengths for method in METHODS.values() if not method.symbol} == {
        "none": (0.0,),
        "batch_norm": (0.0,),
        "flip": (0.0,),
    }
    for method in METHODS.values():
        assert list(method.grid(8)) == sorted(set(method.strengths))
        assert all(method.domain.check("test", method.name, strength) == strength for strength in method.strengths)


def test_the_trials_of_a_plan_and_the_numbers_of_quick(plan: Plan) -> None:
    assert [len(plan.trials(phase)) for phase in (SELECTION, CONFIRMATION)] == [(1 + 5 + 5) * 2, 3 * 8]
    assert set(plan.seeds[SELECTION]).isdisjoint(plan.seeds[CONFIRMATION])
    quick = BUDGETS["quick"]
    assert (quick.selection_seeds, quick.confirmation_seeds, quick.rows) == (2, 8, 5000)


def test_packs_hold_every_trial_once_and_one_kind_of_model(plan: Plan, toy: Dataset) -> None:
    plan = make_plan(toy, plan.budget, 0, {name: method.grid(4) for name, method in METHODS.items()})
    packs = plan.packs()
    names = [trial.name for pack in packs for trial in pack.trials]
    assert sorted(names) == sorted(trial.name for phase in (SELECTION, CONFIRMATION) for trial in plan.trials(phase))
    assert len({pack.name for pack in packs}) == len(packs)
    for pack in packs:
        assert len(pack.trials) <= plan.budget.pack_size
        assert len({trial.phase for trial in pack.trials}) == 1
        assert len({METHODS[trial.method].recipe(trial.strength or 0.5).kind for trial in pack.trials}) == 1
    phases = [pack.phase for pack in packs]
    assert phases == sorted(phases, key=[SELECTION, CONFIRMATION].index)


def test_larger_budgets_have_more_of_everything() -> None:
    quick, standard, thorough = BUDGETS.values()
    for less, more in ((quick, standard), (standard, thorough)):
        for name in ("epochs", "selection_seeds", "confirmation_seeds", "strengths"):
            assert getattr(less, name) < getattr(more, name)
        assert set(less.methods) <= set(more.methods)
    assert set(standard.methods) == {name for name, method in METHODS.items() if not method.on_request} - {"none"}


def test_what_a_plan_leaves_out_is_named(toy: Dataset) -> None:
    plan = make_plan(toy, BUDGETS["quick"], 0, {name: METHODS[name].grid(4) for name in BUDGETS["quick"].methods})
    assert "max-norm" in plan.budget.leaves_out
    assert "random shifts" not in plan.budget.leaves_out, "a table cannot be shifted"
    whole = make_plan(toy, BUDGETS["standard"], 0, {name: method.grid(4) for name, method in METHODS.items()})
    assert whole.budget.leaves_out == ""


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("methods", "dropout", "sequence"), ("methods", ("magic",), "'dropout'"), ("strengths", 0, "strengths")],
)
def test_unfit_methods_of_a_budget_are_refused(field: str, value: object, error: str) -> None:
    with pytest.raises(ArgumentError, match=error):
        Budget("bad", **{field: value})


def test_a_plan_is_the_same_every_time_and_reads_back(plan: Plan, toy: Dataset) -> None:
    again = make_plan(toy, plan.budget, plan.seed, plan.strengths)
    assert again.to_json() == plan.to_json()
    assert plan_from_json(plan.to_json(), "plan.json") == plan
    assert replace(plan, seed=1).checksum != plan.checksum


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"sha256": 1}', "\x00\x01", '{"sha256": "", "seed": 0, "budget": 3}']
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(RunError, match=r"runs/x/plan.json is damaged.*Start a new run"):
        plan_from_json(text, "runs/x/plan.json")


def test_a_plan_that_was_changed_is_refused(plan: Plan) -> None:
    content = json.loads(plan.to_json())
    content["seed"] = 7
    with pytest.raises(RunError, match="was changed after the study began"):
        plan_from_json(json.dumps(content), "plan.json")


def test_a_plan_of_another_version_is_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropkit.study.plan.__version__", "0.0.1")
    text = plan.to_json()
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"made by dropkit 0\.0\.1"):
        plan_from_json(text, "plan.json")


def test_a_plan_of_another_format_is_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropkit.study.plan.FORMAT", 1)
    text = plan.to_json()
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"plan.json has format 1, this dropkit reads format \d\. Start a new run"):
        plan_from_json(text, "plan.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", ()), ("hidden", (0,)), ("hidden", 8), ("epochs", 0), ("batch_size", -1), ("learning_rate", 0.0),
        ("learning_rate", float("nan")), ("test_rows", 0), ("selection_seeds", 1), ("confirmation_seeds", 1),
        ("pack_size", 0),
    ],
)  # fmt: skip
def test_unfit_budgets_are_refused(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=name):
        Budget("bad", **{name: value})


def test_a_count_is_an_integer() -> None:
    with pytest.raises(ArgumentTypeError, match="epochs"):
        Budget("bad", epochs=1.5)


@pytest.mark.parametrize("name", [None, 3])
def test_the_name_of_a_budget_is_a_string(name: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^Budget: `name` must be a string"):
        Budget(name)
