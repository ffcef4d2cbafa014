"""Packed training against the same models trained alone by torch modules, under the same masks."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import dropkit
from dropkit.study import Budget, Dataset
from dropkit.study.methods import Recipe
from dropkit.study.network import initial_parameters
from dropkit.study.packed import Model, Training, dropout_key, shuffled, train
from dropkit.study.preparation import CATEGORY, Column
from dropkit.study.splits import Split, outer_split, seed_key, seed_split

RECIPES = (Recipe(), Recipe(dropout=0.2), Recipe(dropout=0.6), Recipe(weight_decay=3.0), Recipe(0.4, 1.0))


@pytest.fixture(scope="module")
def splits(toy: Dataset, tiny: Budget) -> dict[int, Split]:
    _, rest = outer_split(toy, tiny, 0)
    return {seed_key(0, number): seed_split(toy, rest, tiny, seed_key(0, number)) for number in range(3)}


@pytest.fixture(scope="module")
def pack(toy: Dataset, tiny: Budget, splits: dict[int, Split]) -> dict[Model, Training]:
    models = [Model(key, recipe) for recipe in RECIPES for key in splits]
    return dict(zip(models, train(models, toy, splits, tiny), strict=True))


class MaskedByKey(nn.Module):
    """A dropout layer that takes its mask from the model's address."""

    def __init__(self, p: float, key: int, layer: int) -> None:
        super().__init__()
        self.p, self.key, self.layer, self.step = p, key, layer, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return hidden
        mask = torch.from_numpy(
            dropkit.random.keep_mask(dropout_key(self.key, self.layer, self.step), hidden.shape, self.p)
        )
        self.step += 1
        return hidden * mask / (1 - self.p)


def train_alone(model: Model, data: Dataset, split: Split, budget: Budget) -> tuple[list[list[float]], nn.Module]:
    """The obvious training loop: torch modules, AdamW with its own decay, one model."""
    widths = (data.columns, *budget.hidden, data.classes)
    layers: list[nn.Module] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs))
        if layer < len(budget.hidden):
            layers += [nn.ReLU(), MaskedByKey(model.recipe.dropout, model.key, layer)]
    network = nn.Sequential(*layers)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    first = initial_parameters([model.key], widths)
    with torch.no_grad():
        for linear, weight, bias in zip(linears, first[::2], first[1::2], strict=True):
            linear.weight.copy_(weight[0].T)
            linear.bias.copy_(bias[0, 0])
    groups = [
        {"params": [linear.weight for linear in linears], "weight_decay": model.recipe.weight_decay},
        {"params": [linear.bias for linear in linears], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=budget.learning_rate, fused=False)
    prepared = data.prepared(split.train)
    inputs, targets = torch.from_numpy(prepared.inputs), torch.from_numpy(prepared.targets)
    history = []
    for epoch in range(budget.epochs):
        network.train()
        for rows in torch.from_numpy(shuffled(model.key, split.train, epoch)).split(budget.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            parts = [split.train, split.inner, split.validation]
            history.append([float(nn.functional.cross_entropy(network(inputs[p]), targets[p])) for p in parts])
            accuracy = (network(inputs[split.validation]).argmax(1) == targets[split.validation]).double().mean()
            history[-1].append(float(accuracy))
    return history, network


def as_rows(training: Training) -> list[list[float]]:
    found = training.curves
    columns = (found.training_loss, found.inner_loss, found.validation_loss, found.accuracy)
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_equals_alone(
    recipe: Recipe, pack: dict[Model, Training], toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    model = Model(seed_key(0, 1), recipe)
    alone, network = train_alone(model, toy, splits[model.key], tiny)
    np.testing.assert_allclose(as_rows(pack[model]), alone, rtol=0, atol=2e-5)
    if pack[model].curves.early_epoch == tiny.epochs:
        for mine, theirs in zip(pack[model].parameters[::2], list(network.parameters())[::2], strict=True):
            np.testing.assert_allclose(mine, theirs.detach().numpy().T, rtol=0, atol=2e-5)


def test_each_model_sees_the_table_as_its_own_training_rows_prepare_it(tiny: Budget) -> None:
    rng = np.random.default_rng(3)
    table = np.stack([rng.normal(50, 9, 500), rng.integers(0, 3, 500)], axis=1)
    table[::9, 0] = np.nan
    schema = (Column("age"), Column("colour", CATEGORY, ("blue", "green", "red")))
    data = Dataset("table", "Table", table, (table[:, 1] + rng.integers(0, 2, 500) > 1).astype(int), schema=schema)
    _, rest = outer_split(data, tiny, 0)
    splits = {seed_key(0, number): seed_split(data, rest, tiny, seed_key(0, number)) for number in range(2)}
    models = [Model(key, Recipe()) for key in splits]
    for model, training in zip(models, train(models, data, splits, tiny), strict=True):
        alone, _ = train_alone(model, data, splits[model.key], tiny)
        np.testing.assert_allclose(as_rows(training), alone, rtol=0, atol=2e-5)


def test_the_others_of_a_pack_do_not_matter(
    pack: dict[Model, Training], toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    chosen = [Model(seed_key(0, 2), Recipe(dropout=0.6)), Model(seed_key(0, 0), Recipe())]
    for model, training in zip(chosen, train(chosen, toy, splits, tiny), strict=True):
        np.testing.assert_allclose(as_rows(training), as_rows(pack[model]), rtol=0, atol=2e-5)


def test_methods_differ_and_so_do_seeds(pack: dict[Model, Training]) -> None:
    losses = [training.curves.validation_loss[-1] for training in pack.values()]
    assert len(set(losses)) == len(losses)


def test_training_is_deterministic(
    pack: dict[Model, Training], toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    again = train(list(pack), toy, splits, tiny)
    for training, before in zip(again, pack.values(), strict=True):
        assert training.curves == before.curves
        assert all((a == b).all() for a, b in zip(training.parameters, before.parameters, strict=True))


def test_a_model_that_diverges_leaves_the_others_alone(toy: Dataset, tiny: Budget, splits: dict[int, Split]) -> None:
    key = seed_key(0, 0)
    good = [Model(key, Recipe(weight_decay=1.0)), Model(key, Recipe())]
    alone = train(good, toy, splits, tiny)
    bad, *others = train([Model(key, Recipe(weight_decay=1e12)), *good], toy, splits, tiny)
    assert bad.diverged_at == 1
    assert bad.curves.epochs == 0
    for training, before in zip(others, alone, strict=True):
        assert training.diverged_at is None
        np.testing.assert_allclose(as_rows(training), as_rows(before), rtol=0, atol=2e-5)


def test_parameters_are_those_of_the_early_epoch(toy: Dataset, splits: dict[int, Split], tiny: Budget) -> None:
    from dataclasses import replace

    from dropkit.study.network import row_scores

    budget = replace(tiny, epochs=12, learning_rate=0.02)  # over-fits soon
    key = seed_key(0, 0)
    (training,) = train([Model(key, Recipe())], toy, splits, budget)
    found = training.curves
    assert found.early_epoch < 12
    rows = splits[key].validation
    stacked = [torch.from_numpy(array[None]) for array in training.parameters]
    inputs, targets = torch.from_numpy(toy.inputs[rows]), torch.from_numpy(toy.targets[rows])
    losses, _ = row_scores(stacked, [inputs], [targets])
    assert float(losses.mean()) == pytest.approx(found.validation_loss[found.early_epoch - 1], abs=1e-6)
    assert float(losses.mean()) != pytest.approx(found.validation_loss[-1], abs=1e-3)
