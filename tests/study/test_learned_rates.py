"""Methods that learn their rates: by a row alone, each model its own, with a divergence that no score counts.

That they train as the layers do is proved with all methods, in test_packed.py.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dropkit import study
from dropkit.errors import ArgumentError
from dropkit.nn import ConcreteDropout, VariationalDropout
from dropkit.nn import variants as registry
from dropkit.nn.variants import VARIANTS, Learned
from dropkit.study import METHODS, Budget, Dataset
from dropkit.study.methods import Recipe
from dropkit.study.methods.variants import first_learned, learned_by, methods, noisy
from dropkit.study.packed import Model, train
from dropkit.study.splits import Split
from tests.helpers.studies import splits_of

NAMES = ("VariationalDropout", "ConcreteDropout")
FIRST, GOAL = 0.25, 0.75


def leave(input: Tensor, learned: Tensor, training: bool = True, *, key: Tensor | None = None) -> Tensor:
    """Noise that does nothing."""
    return input


def away(learned: Tensor, weight: Tensor) -> Tensor:
    """Half the squared distance from a goal, for each unit that the weight reads."""
    return 0.5 * weight.shape[1] * (learned - GOAL).square().sum((1, 2))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variant that has a row and nothing else: only its divergence trains what it learns."""
    list(METHODS)  # the true rows join before the made-up one is there
    learned = Learned(first=lambda p: p, rate=lambda found: found, function=leave, kl=away, highest=0.6)
    layer = type("MadeUp", (), {})
    row = replace(VARIANTS["ConcreteDropout"], title="made-up dropout", rates=(FIRST,), learned=learned, layer=layer)
    monkeypatch.setitem(registry._rows, "MadeUp", row)
    monkeypatch.setitem(METHODS, "made_up", methods()["made_up"])
    return "MadeUp"


@pytest.fixture(scope="module")
def splits(toy: Dataset, tiny: Budget) -> dict[int, Split]:
    return splits_of(toy, tiny, 3)


def models_of(splits: Sequence[int], variant: str) -> list[Model]:
    """Models of one kind, each of its own seed and rate."""
    return [
        Model(key, Recipe(dropout=rate, variant=variant)) for key, rate in zip(splits, (0.1, 0.5, 0.3), strict=True)
    ]


def test_a_row_alone_makes_a_method(made_up: str) -> None:
    method = METHODS["made_up"]
    assert method.strengths == (0.25, 0.5, 0.3, 0.1, 0.2, 0.4, 0.18, 0.39)
    assert method.grid(3) == (0.25, 0.3, 0.5)
    assert method.label(0.25) == "first p = 0.25"
    assert method.recipe(0.25) == Recipe(dropout=0.25, variant=made_up)
    assert method.on_request
    assert [method.domain.contains(p) for p in (0.0, 0.59, 0.6)] == [False, True, False]
    assert "made_up" not in methods({"MadeUp": replace(VARIANTS[made_up], learned=None)})


@pytest.mark.parametrize("name", ["variational_dropout", "concrete_dropout"])
def test_every_strength_is_a_rate_that_the_layer_begins_with(name: str) -> None:
    method = METHODS[name]
    row = VARIANTS[method.recipe(0.5).variant]
    rates = tuple(filter(method.domain.contains, row.rates))
    assert method.strengths[: len(rates)] == rates
    assert len(set(method.strengths)) == len(METHODS["dropout"].strengths)
    for p in method.strengths:
        assert method.domain.contains(p)
        assert float(row.build(p).p.mean()) == pytest.approx(p)


def test_the_divergence_trains_and_is_no_part_of_a_score(
    made_up: str, toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    (key, split), *_ = splits.items()
    budget = replace(tiny, epochs=12, learning_rate=0.02)  # over-fits soon
    (learning,) = train([Model(key, Recipe(dropout=FIRST, variant=made_up))], toy, splits, budget)
    (plain,) = train([Model(key, Recipe())], toy, splits, budget)
    assert learning.curves.early_epoch < budget.epochs
    assert learning.curves == plain.curves
    assert all((a == b).all() for a, b in zip(learning.parameters, plain.parameters, strict=True))
    for units, rate in zip(budget.hidden, learning.learned_rates, strict=True):
        expected = torch.tensor(FIRST, requires_grad=True)
        optimizer = torch.optim.Adam([expected], lr=budget.learning_rate)
        for _ in range(learning.curves.early_epoch * math.ceil(len(split.train) / budget.batch_size)):
            optimizer.zero_grad()
            (0.5 * units * (expected - GOAL).square() / len(split.train)).backward()
            optimizer.step()
        assert rate == pytest.approx(float(expected.detach()), abs=1e-5)
        assert rate > FIRST + 0.1
    assert plain.learned_rates == ()


@pytest.mark.parametrize("variant", NAMES)
def test_models_of_a_pack_learn_each_its_own(
    variant: str, toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    models = models_of(list(splits), variant)
    together = train(models, toy, splits, tiny)
    for model, found in zip(models, together, strict=True):
        (alone,) = train([model], toy, splits, tiny)
        assert found.learned_rates == pytest.approx(alone.learned_rates, abs=2e-6)
        np.testing.assert_allclose(found.curves.validation_loss, alone.curves.validation_loss, rtol=0, atol=2e-5)
        assert len(found.learned_rates) == len(tiny.hidden)
        assert all(1e-4 < abs(rate - model.recipe.dropout) < 0.05 for rate in found.learned_rates)


@pytest.mark.parametrize("variant", NAMES)
def test_one_that_diverges_leaves_the_others_alone(
    variant: str, toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    good = models_of(list(splits), variant)
    bad, *others = train(
        [replace(good[0], recipe=replace(good[0].recipe, weight_decay=1e12)), *good], toy, splits, tiny
    )
    assert bad.diverged_at == 1
    for found, before in zip(others, train(good, toy, splits, tiny), strict=True):
        assert found.diverged_at is None
        assert found.learned_rates == pytest.approx(before.learned_rates, abs=2e-6)
        np.testing.assert_allclose(found.curves.validation_loss, before.curves.validation_loss, rtol=0, atol=2e-5)


def learned_form(variant: str) -> Learned:
    form = learned_by(Recipe(dropout=0.3, variant=variant))
    assert form is not None
    return form


@pytest.mark.parametrize("variant", NAMES)
def test_what_is_learned_begins_at_each_models_rate(variant: str) -> None:
    form, rates = learned_form(variant), (0.1, 0.5, 0.25)
    found = first_learned([Recipe(dropout=rate, variant=variant) for rate in rates], (7, 4))
    assert [tuple(one.shape) for one in found] == [(3, 1, units if form.per_unit else 1) for units in (7, 4)]
    for one in found:
        torch.testing.assert_close(form.rate(one), torch.tensor(rates)[:, None, None].expand_as(one))
    assert first_learned([Recipe(dropout=0.5)], (7, 4)) == []


@pytest.mark.parametrize("variant", NAMES)
def test_noise_and_divergence_are_the_layers_own(variant: str) -> None:
    """Beyond the bound of alpha too, where the divergence has no gradient."""
    form, generator = learned_form(variant), torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    learned = torch.randn(3, 1, 6 if form.per_unit else 1, **draw).requires_grad_()
    weight = 1e4 * torch.randn(3, 6, 4, **draw)  # the inverse of the prior's length scale
    hidden, keys = torch.randn(3, 5, 6, **draw), torch.tensor([5, 2**60, -9])
    noised = noisy(hidden, Recipe(dropout=0.3, variant=variant), learned, keys)
    divergence = form.kl(learned, weight)
    (gradient,) = torch.autograd.grad(divergence.sum(), learned)
    for model in range(3):
        layer, key = layer_of(variant, learned[model].detach(), weight[model]), int(keys[model]) % 2**64
        named = {"dropout_key" if variant == "ConcreteDropout" else "key": key}
        torch.testing.assert_close(noised[model], layer(hidden[model], **named))
        torch.testing.assert_close(divergence[model], layer.kl())
        torch.testing.assert_close(form.rate(learned)[model].detach().squeeze(), layer.p.squeeze())
        (own,) = torch.autograd.grad(layer.kl(), next(layer.parameters()))
        torch.testing.assert_close(gradient[model].flatten(), own.flatten())
        assert own.abs().max() > 1e-3


def layer_of(variant: str, learned: Tensor, weight: Tensor) -> torch.nn.Module:
    """A layer in front of one with the weight, with what it has learned."""
    reader = torch.nn.Linear(*weight.shape, dtype=torch.float64)
    alone = variant == "ConcreteDropout"
    layer = ConcreteDropout(reader, wraps=False) if alone else VariationalDropout(len(weight), dtype=torch.float64)
    with torch.no_grad():
        reader.weight.copy_(weight.T)
        parameter = next(layer.parameters())
        parameter.copy_(learned.reshape(parameter.shape))
    return layer


@pytest.mark.parametrize("variant", NAMES)
def test_the_divergences_gradient(variant: str) -> None:
    form, generator = learned_form(variant), torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    learned = -torch.rand(3, 1, 5 if form.per_unit else 1, **draw) - 0.1  # below the bound of alpha
    weight = 1e3 * torch.randn(3, 5, 4, **draw)
    assert torch.autograd.gradcheck(form.kl, (learned.requires_grad_(), weight.requires_grad_()))


@pytest.mark.usefixtures("light_study")
def test_a_study_tells_the_rates(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    names = ["variational_dropout", "concrete_dropout"]
    budget = replace(tiny, strengths=2)
    result = study.run(toy, budget=budget, methods=names, directory=tmp_path / "run")
    arms = result.findings.summary.arms
    written = json.loads((tmp_path / "run" / "results.json").read_text())["methods"]
    for name in names:
        records = arms[name].records
        layers = list(zip(*(record.learned_rates for record in records), strict=True))
        assert len(layers) == len(tiny.hidden)
        assert written[name]["learned_rates"] == pytest.approx([np.mean(layer) for layer in layers])
        assert name not in result.findings.measures["gradient_variance"]
    assert "learned_rates" not in written["none"]
    report = result.report.read_text()
    assert "The rates that were learned are" in report
    assert "saved networks keep no learned rates" in report
    again = study.resume(tmp_path / "run", data=toy)
    assert again.table() == result.table()
    assert again.findings.summary.arms == arms


def test_a_row_that_does_not_fit_is_no_method(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"concrete_dropout.*got 'variational_linear'"):
        study.run(toy, budget=tiny, methods=["variational_linear"], directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
