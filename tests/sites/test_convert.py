"""Placing dropout by a recipe: what the plans are, and that a model then drops where its plan says and nowhere else."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.sites import convert, find
from dropkit.sites.placing.recipes import RECIPES
from tests.sites.converted import (
    PICTURES,
    PLANS,
    ROWS,
    SEQUENCES,
    Attending,
    state,
)
from tests.sites.zoo import CASES, Model, tensors


@pytest.mark.parametrize("name", PLANS)
def test_plans_of_known_models(name: str) -> None:
    make, recipe, x, rows = PLANS[name]
    model = make()
    plan = convert(model, recipe, x)
    assert [(row.place, row.now, row.then) for row in plan] == rows
    assert {site.name: site.p for site in find(model, x) if site.in_train} == plan.rates
    assert not any(site.in_eval for site in find(model, x))


def _sites(model: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [(site.name, site.kind, site.p, site.in_train, site.in_eval, site.calls) for site in find(model, *inputs)]


def _answers(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(3)  # for models that draw in evaluation
    was, _ = model.training, model.eval()
    found = list(tensors(model(*inputs)))
    model.train(was)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_every_model_of_the_zoo(case: Model, recipe: str) -> None:
    """A recipe fits and does what its plan says, or does not fit and leaves the model alone; undoing restores it."""
    model, inputs = case.build(), case.inputs()
    before, keys, plain = state(model), list(model.state_dict()), _sites(model, inputs)
    answers = _answers(model, inputs)
    try:
        plan = convert(model, recipe, *inputs)
    except UnsupportedError:
        assert state(model) == before
        return
    assert list(model.state_dict()) == keys
    for answer, original in zip(_answers(model, inputs), answers, strict=True):
        assert torch.equal(answer, original)
    sites = [site for site in find(model, *inputs) if site.in_train and site.is_certain and site.p is not None]
    assert {site.name: site.p for site in sites if site.name != "part~0"} == plan.rates  # which is in TorchScript
    torch.compiler.reset()
    plan.undo()
    assert state(model) == before
    assert _sites(model, inputs) == plain


@pytest.mark.parametrize("name", PLANS)
def test_dry_run_apply_and_undo(name: str) -> None:
    make, recipe, x, _ = PLANS[name]
    model = make().eval()
    before, weights = state(model), copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    plan = convert(model, recipe, x, dry_run=True)
    assert not plan.is_applied
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    plan.undo()  # nothing to undo
    for _ in range(2):
        plan.apply()
        assert plan.is_applied
        assert str(model) != before["printed"]
        assert not any(module.training for module in model.modules())
        plan.undo()
        assert state(model) == before
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_keep_their_layers(name: str, copied: Any) -> None:
    make, recipe, x, _ = PLANS[name]
    model = make()
    plan = convert(model, recipe, x)
    twin = copied(model)
    assert str(twin) == str(model)
    plan.undo()
    assert {site.name: site.p for site in find(twin, x)} == plan.rates
    for module in model.modules():
        assert not any("dropout" in name for name, _ in module.named_children())
    fresh = make()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh.eval()(x), twin.eval()(x))
    twin.load_state_dict(make().state_dict())


def test_what_no_module_takes_is_said() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.relu(F.linear(x, self.first)), self.second)

    plan = convert(Bare(), "srivastava", ROWS)
    assert plan.rates == {"input_dropout": 0.2}
    assert "no module takes or gives that tensor alone" in str(plan)
    assert "nothing can be placed" in str(plan)


def test_shortcuts_with_layers_of_their_own() -> None:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.pool, self.short = nn.AvgPool2d(2), nn.Conv2d(3, width, 1)
            self.branch = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 1))

        def forward(self, x: Tensor) -> Tensor:
            out = self.branch(x)
            out += self.short(self.pool(x))
            return out

    model = nn.Sequential(Block(3), Block(4))
    assert convert(model, "vit", PICTURES).rates == {"1.branch.2.output_drop_path": 0.1}


def test_sums_that_are_no_shortcuts() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.left(x) + self.right(x) + 1)

    with pytest.raises(UnsupportedError, match="added to a shortcut"):
        convert(Sums(), "vit", ROWS)


def test_paths_of_sequences_that_have_time_first() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 2, enable_nested_tensor=False)
    convert(encoder, "vit", SEQUENCES)
    assert [site.shared for site in find(encoder, SEQUENCES)] == [(0, 2), (0, 2)]


def test_states_of_recurrent_networks_stay_whole() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.head = nn.GRU(8, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.network(x)[1][-1])

    plan = convert(Last(), "rnn", SEQUENCES)
    assert plan.rates == {"network.input_dropout": 0.25}
    assert "nothing reads them" in str(plan)


def test_dropout_that_is_wrong_is_removed() -> None:
    """Before BatchNorm, and on what is returned, whatever its shape and pointwise functions."""
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6),
        nn.Dropout(0.2), nn.Softmax(-1), nn.Unflatten(1, (2, 3)),
    )  # fmt: skip
    plan = convert(model, "srivastava", ROWS)
    assert plan.rates == {"6.input_dropout": 0.5}
    reasons = {row.place: row.why for row in plan}
    assert "BatchNorm" in reasons["2"]
    assert "after the output" in reasons["7"]
    assert (model[2].p, model[7].p) == (0.0, 0.0)


def test_attention_that_nothing_reaches_is_said() -> None:
    class Bare(Attending):
        def forward(self, x: Tensor) -> Tensor:
            weights = F.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)
            return self.head((x + self.out(weights @ self.v(x))).mean(1))

    plan = convert(Bare(), "transformer", SEQUENCES)
    assert plan.rates == {"out.output_dropout": 0.1}
    assert "attention weights: no module takes or gives" in str(plan)


def test_places_that_share_a_layer() -> None:
    """Where they need several rates, each gets a layer of its own, also what the recipe leaves as it is."""

    class Shared(Attending):
        def __init__(self, on_output: bool) -> None:
            super().__init__()
            self.table, self.drop, self.on_output = nn.Linear(8, 8), nn.Dropout(0.3), on_output

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(self.table(x))
            x = x + self.drop(self.out(self.softmax(self.q(x) @ self.k(x).transpose(-1, -2)) @ self.v(x)))
            x = self.head(x.mean(1))
            return self.drop(x) if self.on_output else x

    model = Shared(on_output=False)
    assert convert(model, "transformer", SEQUENCES).rates == {"drop": 0.1, "softmax.output_dropout": 0.1}
    model = Shared(on_output=True)
    plan = convert(model, "transformer", SEQUENCES)
    assert plan.rates == {
        "table.output_dropout": 0.3,
        "softmax.output_dropout": 0.1,
        "out.output_dropout": 0.1,
    }
    assert model.drop.p == 0.0
    assert "as it was, in a layer of its own" in str(plan)


def test_single_pictures() -> None:
    """Without the batch's axis whole channels are dropped all the same."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    convert(model, "cnn", PICTURES[0], p=0.5)
    seen = []
    model[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(PICTURES[0])
    kept = (seen[0] != 0).flatten(1).any(1)
    whole = model[1](model[0](PICTURES[0]))
    assert kept.any()
    assert not kept.all()
    assert torch.equal(seen[0][kept], 2 * whole[kept])
