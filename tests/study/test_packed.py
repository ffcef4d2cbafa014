"""Packed training against the same models trained alone by torch modules, under the same masks."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch import nn

import dropkit
from dropkit.nn import ConcreteDropout, VariationalDropout, regularization
from dropkit.nn.learned import LearnedMixin
from dropkit.nn.variants import VARIANTS
from dropkit.study import Budget, Dataset
from dropkit.study.augmentation import drawn
from dropkit.study.checkpoint import Checkpoint
from dropkit.study.methods import METHODS, Recipe
from dropkit.study.methods.variants import acts_on_weights, learned_by
from dropkit.study.network import initial_parameters
from dropkit.study.packed import Model, Training, _Pack, dropout_key, noise_key, shuffled, train
from dropkit.study.preparation import CATEGORY, Column
from dropkit.study.splits import Split, seed_key
from tests.helpers.studies import splits_of

RECIPES = (
    *(
        one.recipe(strength)
        for name, one in METHODS.items()
        if one.needs != "images" and name != "linear"
        for strength in one.grid(2)
    ),
    Recipe(variant="Dropout", dropout=0.4),
    Recipe(l1=0.01, max_norm=0.3, label_smoothing=0.2, dropout=0.3, weight_decay=2.0, noise=0.2, mixup=0.5),
)


@pytest.fixture(scope="module")
def splits(toy: Dataset, tiny: Budget) -> dict[int, Split]:
    return splits_of(toy, tiny, 3)


@pytest.fixture(scope="module")
def pack(toy: Dataset, tiny: Budget, splits: dict[int, Split]) -> dict[Model, Training]:
    """Train every recipe on every seed, all of one kind together."""
    models = sorted((Model(key, recipe) for recipe in RECIPES for key in splits), key=lambda m: str(m.recipe.kind))
    found = {}
    for _, members in itertools.groupby(models, key=lambda model: model.recipe.kind):
        together = list(members)
        found |= dict(zip(together, train(together, toy, splits, tiny), strict=True))
    return found


class MaskedByKey(nn.Module):
    """A dropout layer, or one of a variant, that takes its mask from the model's address."""

    def __init__(self, recipe: Recipe, key: int, layer: int) -> None:
        super().__init__()
        self.p, self.key, self.layer, self.step = recipe.dropout, key, layer, 0
        self.off = self.p == 0 or acts_on_weights(recipe)
        is_alone = recipe.variant and not self.off and learned_by(recipe) is None
        self.variant = VARIANTS[recipe.variant].build(self.p) if is_alone else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or self.off:
            return hidden
        key = dropout_key(self.key, self.layer, self.step)
        self.step += 1
        if isinstance(self.variant, ConcreteDropout):
            return self.variant(hidden, dropout_key=key)
        if self.variant is not None:
            return self.variant(hidden, key=key)
        return hidden * torch.from_numpy(dropkit.random.keep_mask(key, hidden.shape, self.p)) / (1 - self.p)


def learning(recipe: Recipe, layers: list[nn.Module]) -> list[MaskedByKey]:
    """Return the dropout layers; those that learn their rates now do, each in front of the layer that reads it."""
    masks = [layer for layer in layers if isinstance(layer, MaskedByKey)]
    readers = [layer for layer in layers if isinstance(layer, nn.Linear)][1:]
    for mask, reader in zip(masks, readers, strict=True):
        if recipe.variant == "VariationalDropout":
            mask.variant = VariationalDropout(reader.in_features, recipe.dropout)
        elif recipe.variant == "ConcreteDropout":
            mask.variant = ConcreteDropout(reader, recipe.dropout, wraps=False)
    return masks


class DroppedWeights(nn.Linear):
    """A linear layer; where the model's variant acts on weights, those into hidden layers drop by its address."""

    def __init__(self, inputs: int, outputs: int, bias: bool, model: Model, layer: int | None) -> None:
        super().__init__(inputs, outputs, bias)
        self.model, self.layer, self.step = model, layer, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.layer is None or not self.training or not acts_on_weights(self.model.recipe):
            return super().forward(hidden)
        key, p = dropout_key(self.model.key, self.layer, self.step), self.model.recipe.dropout
        mask = torch.from_numpy(dropkit.random.keep_mask(key, self.weight.T.shape, p))
        self.step += 1
        return hidden @ (self.weight.T * mask / (1 - p)) + self.bias


def mean_loss(found: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    if found.shape[1] == 1:
        return nn.functional.mse_loss(found[:, 0], targets)
    return nn.functional.cross_entropy(found, targets, label_smoothing=smoothing)


def train_alone(model: Model, data: Dataset, split: Split, budget: Budget) -> tuple[list[list[float]], nn.Module]:
    """The obvious training loop: torch modules, AdamW with its own decay, one model."""
    recipe = model.recipe
    hidden = [max(1, round(width * recipe.width)) for width in budget.hidden]
    widths = (data.columns, *hidden, data.outputs)
    layers: list[nn.Module] = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        bias = not recipe.batch_norm or layer == len(hidden)
        layers.append(DroppedWeights(inputs, outputs, bias, model, layer if layer < len(hidden) else None))
        if layer < len(hidden):
            dropout = MaskedByKey(recipe, model.key, layer)
            norm = [nn.BatchNorm1d(outputs)] if recipe.batch_norm else []
            layers += [dropout, *norm, nn.ReLU()] if recipe.dropout_before_norm else [*norm, nn.ReLU(), dropout]
    network = nn.Sequential(*layers)
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    masks = learning(recipe, layers)
    first = initial_parameters([model.key], widths)
    with torch.no_grad():
        for linear, weight, bias in zip(linears, first[::2], first[1::2], strict=True):
            linear.weight.copy_(weight[0].T)
            if linear.bias is not None:
                linear.bias.copy_(bias[0, 0])
    norms = [parameter for layer in layers if isinstance(layer, nn.BatchNorm1d) for parameter in layer.parameters()]
    groups = [
        {"params": [linear.weight for linear in linears], "weight_decay": recipe.weight_decay},
        {"params": [linear.bias for linear in linears if linear.bias is not None] + norms, "weight_decay": 0.0},
        {"params": [parameter for mask in masks for parameter in mask.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=budget.learning_rate, fused=False)
    prepared = data.prepared(split.train)
    inputs, targets = torch.from_numpy(prepared.inputs), torch.from_numpy(prepared.targets)
    step, history, is_class = 0, [], data.is_classification
    for epoch in range(budget.epochs):
        network.train()
        order = torch.from_numpy(shuffled(model.key, split.train, epoch))
        shares = drawn(model.key, recipe, len(order), epoch).get("mixup", np.ones(len(order)))
        batches = [part.split(budget.batch_size) for part in (order, torch.from_numpy(shares).float())]
        for rows, share in zip(*batches, strict=True):
            optimizer.zero_grad()
            noise = dropkit.random.normal(noise_key(model.key, step), inputs[rows].shape, dtype=np.float32)
            seen = inputs[rows] + recipe.noise * torch.from_numpy(noise)
            partner = torch.tensor([*range(1, len(rows)), 0])
            found = network(share[:, None] * seen + (1 - share[:, None]) * seen[partner])
            penalty = recipe.l1 * sum(linear.weight.abs().sum() for linear in linears)
            if is_class:
                wanted = nn.functional.one_hot(targets[rows], data.classes).float()
                wanted = share[:, None] * wanted + (1 - share[:, None]) * wanted[partner]
            else:
                wanted = share * targets[rows] + (1 - share) * targets[rows][partner]
            penalty = penalty + regularization(network, len(split.train))
            (mean_loss(found, wanted, recipe.label_smoothing) + penalty).backward()
            optimizer.step()
            with torch.no_grad():
                for linear in linears[:-1]:
                    longest = min(recipe.max_norm, 1e9)
                    linear.weight.copy_(torch.renorm(linear.weight, p=2, dim=0, maxnorm=longest))
            step += 1
        network.eval()
        with torch.no_grad():
            parts = [split.train, split.inner, split.validation]
            history.append([float(mean_loss(network(inputs[p]), targets[p])) for p in parts])
            found, true = network(inputs[split.validation]).double(), targets[split.validation]
            if is_class:
                shown = found.softmax(1)[:, 1] if data.classes == 2 else found.softmax(1)
                right = (found.argmax(1) == true).double().mean()
                history[-1] += [float(right), roc_auc_score(true, shown, multi_class="ovr")]
            else:
                history[-1] += [math.sqrt(history[-1][-1]) * prepared.target_scale, r2_score(true, found)]
    return history, network


def as_rows(training: Training) -> list[list[float]]:
    found = training.curves
    columns = (found.training_loss, found.inner_loss, found.validation_loss)
    columns += tuple(found.metrics.values())[:2]
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_equals_alone(
    recipe: Recipe, pack: dict[Model, Training], toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    model = Model(seed_key(0, 1), recipe)
    alone, network = train_alone(model, toy, splits[model.key], tiny)
    np.testing.assert_allclose(as_rows(pack[model]), alone, rtol=0, atol=2e-5)
    if pack[model].curves.early_epoch == tiny.epochs and not recipe.batch_norm:
        weights = [layer.weight.detach().numpy().T for layer in network.modules() if isinstance(layer, nn.Linear)]
        for mine, theirs in zip(pack[model].parameters[::2], weights, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)
        learned = [float(layer.p.mean()) for layer in network.modules() if isinstance(layer, LearnedMixin)]
        assert pack[model].learned_rates == pytest.approx(learned, abs=2e-6)
        assert len(learned) == (len(tiny.hidden) if learned_by(recipe) else 0)


def test_each_model_sees_the_table_as_its_own_training_rows_prepare_it(tiny: Budget) -> None:
    rng = np.random.default_rng(3)
    table = np.stack([rng.normal(50, 9, 500), rng.integers(0, 3, 500)], axis=1)
    table[::9, 0] = np.nan
    schema = (Column("age"), Column("colour", CATEGORY, ("blue", "green", "red")))
    data = Dataset("table", "Table", table, (table[:, 1] + rng.integers(0, 2, 500) > 1).astype(int), schema=schema)
    splits = splits_of(data, tiny, 2)
    models = [Model(key, Recipe()) for key in splits]
    for model, training in zip(models, train(models, data, splits, tiny), strict=True):
        alone, _ = train_alone(model, data, splits[model.key], tiny)
        np.testing.assert_allclose(as_rows(training), alone, rtol=0, atol=2e-5)


def test_the_others_of_a_pack_do_not_matter(
    pack: dict[Model, Training], toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    for model in (Model(seed_key(0, number), recipe) for number, recipe in enumerate(RECIPES[:3])):
        (training,) = train([model], toy, splits, tiny)
        np.testing.assert_allclose(as_rows(training), as_rows(pack[model]), rtol=0, atol=2e-5)


def test_methods_differ_and_so_do_seeds(pack: dict[Model, Training]) -> None:
    loose = METHODS["dropout_max_norm"].recipe(0.5).max_norm  # so few epochs do not reach it
    losses = [training.curves.validation_loss[-1] for model, training in pack.items() if model.recipe.max_norm != loose]
    assert len(set(losses)) == len(losses)


def test_training_is_deterministic(
    pack: dict[Model, Training], toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    for kind in {model.recipe.kind for model in pack}:
        models = [model for model in pack if model.recipe.kind == kind]
        check_same(train(models, toy, splits, tiny), [pack[model] for model in models])


def check_same(again: list[Training], first: list[Training]) -> None:
    for training, before in zip(again, first, strict=True):
        assert training.curves == before.curves
        assert training.learned_rates == before.learned_rates
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


def test_shifts_move_images_and_leave_black(tiny: Budget) -> None:
    rng = np.random.default_rng(5)
    images = rng.uniform(0.1, 1, size=(500, 4, 5)).astype(np.float32)
    data = Dataset("images", "Images", images.reshape(500, 20), rng.integers(0, 2, 500), image_shape=(4, 5))
    ((key, split),) = (splits := splits_of(data, tiny, 1)).items()
    models = [Model(key, Recipe(shift=1)), Model(key, Recipe(shift=3))]
    pack = _Pack(models, data, splits, tiny)
    rows = torch.from_numpy(np.stack([shuffled(key, split.train, 7)] * 2))
    moves = np.stack([drawn(key, model.recipe, rows.shape[1], 7)["shift"] for model in models]).astype(int)
    assert [set(np.unique(one)) for one in moves] == [set(range(-1, 2)), set(range(-3, 4))]
    found = pack._batch(rows, pack._drawn(rows.shape[1], 7)).reshape(2, -1, 4, 5).numpy()
    for model in range(2):
        for row, (down, right), image in zip(rows[model], moves[model], found[model], strict=True):
            expected = np.zeros((12, 15), np.float32)
            expected[4 + down : 8 + down, 5 + right : 10 + right] = images[row]
            np.testing.assert_array_equal(image, expected[4:8, 5:10])
    assert all(training.diverged_at is None for training in train(models, data, splits, tiny))


def test_pairs_are_their_halves_where_the_other_half_does_nothing(
    toy: Dataset, tiny: Budget, splits: dict[int, Split]
) -> None:
    image = replace(toy, image_shape=(1, toy.columns))
    nothing = 1e-12  # rounds to a rate of 0: every unit is kept
    for pair, half in (("dropout_shift", "shift"), ("dropout_noise", "input_noise")):
        strength = METHODS[half].strengths[0]
        recipes = [METHODS[pair].recipe(nothing), METHODS[half].recipe(strength), METHODS[pair].recipe(0.5)]
        alike, alone, dropped = (
            as_rows(train([Model(seed_key(0, 1), recipe)], image, splits, tiny)[0]) for recipe in recipes
        )
        np.testing.assert_allclose(alike, alone, rtol=0, atol=2e-5)
        assert dropped != alone
        assert METHODS[pair].recipe(0.5).dropout == 0.5


def test_max_norm_bounds_hidden_units_alone(pack: dict[Model, Training]) -> None:
    bound = {model: training for model, training in pack.items() if model.recipe.max_norm < math.inf}
    assert bound
    for model, training in bound.items():
        for weight in training.parameters[:-2:2]:
            assert np.linalg.norm(weight, axis=0).max() <= model.recipe.max_norm * (1 + 1e-6)
    output = [np.linalg.norm(t.parameters[-2], axis=0).max() for m, t in bound.items() if m.recipe.max_norm <= 0.5]
    assert max(output) > 0.5


def test_numbers_are_predicted_too(tiny: Budget) -> None:
    rng = np.random.default_rng(6)
    inputs = rng.normal(size=(500, 4))
    targets = 40 + 8 * inputs[:, 0] + rng.normal(size=500)
    data = Dataset("line", "Line", inputs, targets, task="regression")
    ((key, split),) = (splits := splits_of(data, tiny, 1)).items()
    model = Model(key, Recipe(dropout=0.2, mixup=1.0))
    (training,) = train([model], data, splits, tiny)
    alone, _ = train_alone(model, data, split, tiny)
    np.testing.assert_allclose(as_rows(training), alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(dropout=0.3),
        Recipe(batch_norm=True, max_norm=0.5),
        *(Recipe(dropout=0.3, variant=name) for name in ("VariationalDropout", "ConcreteDropout")),
    ],
)
def test_a_checkpoint_is_the_whole_state(
    recipe: Recipe, toy: Dataset, tiny: Budget, splits: dict[int, Split], tmp_path: Path
) -> None:
    models = [Model(key, recipe) for key in splits]
    whole = train(models, toy, splits, tiny)

    def interrupt() -> None:
        raise KeyboardInterrupt

    for _ in range(tiny.epochs):
        with pytest.raises(KeyboardInterrupt):
            train(models, toy, splits, tiny, interrupt, Checkpoint(tmp_path / "kept", "one"))
    check_same(train(models, toy, splits, tiny, checkpoint=Checkpoint(tmp_path / "kept", "one")), whole)
    assert Checkpoint(tmp_path / "kept", "another").load() is None
