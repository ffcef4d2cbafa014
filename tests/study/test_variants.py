"""A row of the registry that fits the study's network is a method, on request; its noise is its layer's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dropkit import study
from dropkit.errors import ArgumentError
from dropkit.functional import drop_connect, dropout
from dropkit.nn import variants as registry
from dropkit.nn.variants import VARIANTS
from dropkit.study import BUDGETS, METHODS, Budget, Dataset
from dropkit.study.measures.gradient_variance import batch_gradient
from dropkit.study.methods import Recipe
from dropkit.study.methods.variants import acts_on_weights, learned_by, methods, noisy
from dropkit.study.plan import make_plan
from tests.study.test_measures import model

FOUND = methods()


def plain(input: Tensor, p: Any, training: bool = True, *, key: Any = None) -> Any:
    """Dropout by another name."""
    return dropout(input, p, training, key=key)


@pytest.fixture
def new_row(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variant that has a row and nothing else; its method, by the row alone."""
    row = replace(
        VARIANTS["Dropout"], title="plain dropout", rates=(0.25, 0.5), function=plain, layer=type("Plain", (), {})
    )
    monkeypatch.setitem(registry._rows, "Plain", row)
    monkeypatch.setitem(METHODS, "plain", methods()["plain"])
    return "plain"


def test_rows_that_fit_are_methods_by_their_names() -> None:
    fixed = {"dropout", "gaussian_dropout", "alpha_dropout", "weight_drop"}
    assert fixed | {"variational_dropout", "concrete_dropout"} == FOUND.keys()
    assert FOUND.keys() <= METHODS.keys()
    assert METHODS["dropout"].recipe(0.5) == Recipe(dropout=0.5), "the study's own stays"
    for name, method in FOUND.items():
        row = VARIANTS[method.recipe(0.5).variant]
        assert name == row.name.lower() or name.replace("_", "") == row.name.lower()
        assert row.function is not None


def test_a_new_row_is_a_method_with_its_rates_first(new_row: str) -> None:
    method = METHODS[new_row]
    assert method.strengths == (0.25, 0.5, 0.3, 0.65, 0.1, 0.8, 0.2, 0.4)
    assert (method.title, method.label(0.25), method.on_request) == ("plain dropout", "p = 0.25", True)
    assert method.recipe(0.25) == Recipe(dropout=0.25, variant="Plain")
    assert method.recipe(0.0) == Recipe()


@pytest.mark.parametrize(
    "change",
    [
        {"function": None},
        {"function": drop_connect},
        {"acts_on": "states"},
        {"evaluation": "scaled"},
        {"takes_any_shape": False},
    ],
)
def test_a_row_that_does_not_fit_is_none(change: dict[str, Any]) -> None:
    row = replace(VARIANTS["Dropout"], inputs=((2, 3, 4, 5),))
    assert list(methods({"Dropout": row})) == ["dropout"]
    assert methods({"Dropout": replace(row, **change)}) == {}


def test_nothing_changes_for_those_who_do_not_ask(new_row: str, toy: Dataset, tiny: Budget) -> None:
    on_request = {name for name, method in METHODS.items() if method.on_request}
    assert on_request == (FOUND.keys() | {new_row}) - {"dropout"}
    assert not any(on_request & set(budget.methods) for budget in BUDGETS.values())
    plan = make_plan(toy, tiny, 0, {"none": (0.0,), "dropout": (0.5,)})
    loaded = Dataset.from_loader("a", "A", load=lambda batches, _: batches, targets=np.arange(9) % 2)
    for name in on_request:
        assert METHODS[name].title not in plan.budget.leaves_out
        assert METHODS[name].title not in str(loaded.description)
        assert METHODS[name].fits(toy)
        assert not METHODS[name].fits_any_network


RECIPES = {name: method.recipe(0.5) for name, method in FOUND.items()}
UNITS = [name for name, one in RECIPES.items() if not acts_on_weights(one) and learned_by(one) is None]


@pytest.mark.parametrize("name", UNITS)
def test_models_of_a_pack_have_each_the_noise_of_its_own_rate_and_key(name: str) -> None:
    recipe = FOUND[name].recipe(0.5)
    row = VARIANTS[recipe.variant]
    hidden, rates, keys = torch.randn(3, 5, 7), torch.tensor([0.1, 0.5, 0.25]).double(), torch.tensor([5, 2**60, -9])
    found = noisy(hidden, recipe, rates, keys)
    for one, x, p, key in zip(found, hidden, rates.tolist(), keys.tolist(), strict=True):
        torch.testing.assert_close(one, row.build(p)(x, key=key % 2**64))
    assert not torch.equal(found, hidden)


@pytest.mark.usefixtures("light_study")
def test_a_study_of_a_new_row_is_a_study_of_its_noise(new_row: str, toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    """Under another name the same masks, rates and losses as dropout, from the plan to the saved model."""
    budget = replace(tiny, strengths=2)
    result = study.run(toy, budget=budget, methods=["dropout", new_row], rates=[0.25, 0.5], directory=tmp_path / "run")
    arms = result.findings.summary.arms
    assert arms[new_row].strength == arms["dropout"].strength
    for mine, theirs in zip(arms[new_row].records, arms["dropout"].records, strict=True):
        assert mine.early.validation_loss == pytest.approx(theirs.early.validation_loss, abs=2e-5)
        assert mine.last.training_loss == pytest.approx(theirs.last.training_loss, abs=2e-5)
    assert "plain dropout" in result.report.read_text()
    variance = result.findings.measures["gradient_variance"]
    assert variance[new_row].mean[16] == pytest.approx(variance["dropout"].mean[16], rel=1e-4)
    again = study.resume(tmp_path / "run", data=toy)
    assert again.table() == result.table()


@pytest.mark.parametrize("variant", ["Dropout", "WeightDrop"])
def test_gradients_vary_with_the_variants_noise(variant: str) -> None:
    trained = model((3, 5, 4), 16, Recipe(dropout=0.5, variant=variant))
    one, again, other = (batch_gradient(trained, 16, draw) for draw in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    nothing = replace(trained, recipe=Recipe(dropout=1e-12, variant=variant))
    torch.testing.assert_close(batch_gradient(nothing, 16, 0), batch_gradient(replace(trained, recipe=Recipe()), 16, 0))


def test_a_network_of_ones_own_has_its_own_layers(new_row: str, toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"methods that fit a network of your own, got \['plain'\]"):
        study.run(
            toy, budget=tiny, methods=["dropout", new_row], directory=tmp_path / "own",
            network=lambda p: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(p), torch.nn.Linear(4, 3)),
        )  # fmt: skip
