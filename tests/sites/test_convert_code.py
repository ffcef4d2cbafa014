"""Placing dropout in models that have it in their code: calls of functions, masks by hand, layers of timm."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from dropkit.errors import ArgumentTypeError, UnsupportedError
from dropkit.functional import drop_path
from dropkit.sites import Plan, convert, find
from tests.sites.converted import ROWS, WORDS


class Code(nn.Module):
    """Two dense layers, and between them whatever a function does."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 8), nn.Linear(8, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x).relu()))


def by_hand(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) > 0.3) / 0.7


def in_parts(x: Tensor) -> Tensor:
    return torch.cat([F.dropout(x[:, :4], 0.3), F.dropout(x[:, 4:], 0.2)], 1)


def in_one_part(x: Tensor) -> Tensor:
    return torch.cat([F.dropout(x[:, :4], 0.3), x[:, 4:]], 1)


def placed(plan: Plan) -> dict[str, float]:
    return {name: p for name, p in plan.rates.items() if name != "first.input_dropout"}


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda x: F.dropout(x, 0.3), {"#0": 0.3}),
        (lambda x: F.dropout(x, 0.3).view(len(x), -1) * 2, {"#0": 0.3}),
        (lambda x: F.layer_norm(F.dropout(x, 0.3), (8,)), {"#0": 0.3}),
        (lambda x: F.feature_alpha_dropout(x[..., None], 0.3, True)[..., 0], {"#0": 0.3}),  # of another kind
        (in_parts, {"#0": 0.3, "#1": 0.2}),
        (in_one_part, {"#0": 0.3, "second.input_dropout": 0.5}),
        (lambda x: drop_path(x, 0.3), {"#0": 0.3, "second.input_dropout": 0.5}),  # which is for other ends
        (by_hand, {"~0": 0.3}),
        (lambda x: by_hand(x) + F.dropout(x, 0.1), {"#0": 0.1, "~0": 0.3, "second.input_dropout": 0.5}),
    ],
    ids=["call", "views", "norm", "kind", "parts", "part", "path", "mask", "sum"],
)
def test_nothing_is_placed_where_code_drops_already(between: Any, expected: dict[str, float]) -> None:
    model = Code(between)
    plan = convert(model, "srivastava", ROWS)
    assert placed(plan) == expected
    assert {site.name: site.p for site in find(model, ROWS)} == plan.rates
    assert {row.place for row in plan if row.now != "nothing"} == expected.keys() - {"second.input_dropout"}


def test_the_plan_says_why_another_kind_stays() -> None:
    plan = convert(Code(lambda x: F.feature_alpha_dropout(x[..., None], 0.3, True)[..., 0]), "srivastava", ROWS)
    [why] = [row.why for row in plan if row.place == "#0"]
    assert why == "cannot make way, for it is written into code, and stays in place of another: a hidden layer"


def test_masks_that_only_look_like_dropout_are_no_part_of_a_plan() -> None:
    model = Code(lambda x: torch.where(torch.rand_like(x) > 0.3, x, x.flip(0)))
    plan = convert(model, "srivastava", ROWS)
    assert placed(plan) == {"second.input_dropout": 0.5}
    assert [site.name for site in find(model, ROWS) if not site.is_certain] == ["~0"]


def test_layers_side_by_side_all_get_the_rate() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Dropout(0.1), nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x[:, :4]), self.right(x[:, 4:])], 1)

    plan = convert(Code(Parts()), "srivastava", ROWS)
    assert placed(plan) == {"between.left": 0.5, "between.right": 0.5}


class Locked(nn.Module):
    """Drops by hand, one mask for all steps, at the rate that it is given."""

    def forward(self, x: Tensor, p: float) -> Tensor:
        if not self.training or not p:
            return x
        return x * x.new_empty(len(x), 1, x.shape[2]).bernoulli_(1 - p) / (1 - p)


class Regularised(nn.Module):
    """A recurrent network whose rates are attributes, for one module that drops by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.network, self.head = nn.Embedding(11, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 11)
        self.lock, self.dropouti, self.dropout = Locked(), 0.4, 0.0

    def forward(self, words: Tensor) -> Tensor:
        x, _ = self.network(self.lock(self.table(words), self.dropouti))
        return self.head(self.lock(x, self.dropout))


@pytest.mark.parametrize("p", [None, {"inputs": 0.1, "outputs": 0.3}, {"inputs": 0.0}])
def test_rates_of_masks_by_hand_are_set_where_they_are_kept(p: Any) -> None:
    model = Regularised()
    plan = convert(model, "rnn", WORDS, p=p)
    rates = {"inputs": 0.25, "outputs": 0.25, **(p or {})}
    assert (model.dropouti, model.dropout) == (rates["inputs"], rates["outputs"])
    assert plan.rates == {"lock~0": rates["inputs"] or rates["outputs"]}  # as at the first call that drops
    assert {site.name: site.p for site in find(model, WORDS)} == plan.rates
    plan.undo()
    assert (model.dropouti, model.dropout) == (0.4, 0.0)


def of_timm(name: str) -> nn.Module:
    models = peers.timm_models() or pytest.skip("needs timm")
    if name == "resnet":
        blocks = models.resnet.BasicBlock
        return models.ResNet(blocks, [1, 1, 1, 1], 3, channels=(8, 8, 8, 8), stem_width=8, drop_path_rate=0.3)
    if name == "swin":
        options: dict[str, Any] = {"window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)}
        return models.SwinTransformer(32, 2, num_classes=3, drop_path_rate=0.1, **options)
    return models.ConvNeXt(num_classes=3, depths=(1, 1, 2, 1), dims=(8, 8, 8, 8), drop_path_rate=0.3)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("resnet", "vit"), ("resnet", "cnn"), ("swin", "vit"), ("swin", "transformer"), ("convnext", "vit"),
     ("convnext", "cnn")],
)  # fmt: skip
def test_rates_of_layers_that_compute_their_masks_are_those_that_are_found(name: str, recipe: str) -> None:
    """Which are rates to what single precision resolves, also of those that a recipe leaves as they are."""
    model, x = of_timm(name), torch.randn(2, 3, 32, 32)
    plan = convert(model, recipe, x)
    assert {site.name: site.p for site in find(model, x)} == plan.rates
    assert any(name.endswith("~0") for name in plan.rates)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_a_dry_run_is_asked_for_by_a_bool(value: Any) -> None:
    model = Code(by_hand)
    with pytest.raises(ArgumentTypeError, match="convert: `dry_run` must be True or False"):
        convert(model, "srivastava", ROWS, dry_run=value)
    assert len(list(model.modules())) == 3


class Packed(nn.Module):
    """Two recurrent networks, joined by a packed sequence or not."""

    def __init__(self, lengths: str) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(4, 6, batch_first=True), nn.GRU(6, 5, batch_first=True)
        self.head, self.lengths = nn.Linear(5, 2), lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.first(x)
        if self.lengths == "none":
            return self.head(self.second(y)[0])
        known = lengths if self.lengths == "given" else torch.tensor([5, 3])
        packed = nn.utils.rnn.pack_padded_sequence(y, known, batch_first=True)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.second(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize("lengths", ["none", "given", "made"])
def test_packing_between_networks_drops_once(lengths: str) -> None:
    plan = convert(Packed(lengths), "rnn", torch.ones(2, 5, 4), torch.tensor([5, 3]))
    assert plan.rates == {"first.input_dropout": 0.25, "second.input_dropout": 0.25, "second.output_dropout": 0.25}


class Fixed(nn.Module):
    """Attends by a function that is given no rate."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), x, self.value(x)) + x


def test_attention_without_a_rate_has_a_row() -> None:
    plan = convert(Fixed(), "transformer", torch.ones(2, 5, 8), dry_run=True)
    row = next(row for row in plan if row.place == "#0")
    assert (row.now, row.then) == ("nothing", "nothing")
    assert row.why == (
        "cannot be had: the code of the model calls scaled_dot_product_attention with no rate from an attribute"
    )


class Shared(nn.Module):
    """Applies one layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x).relu()
        return self.head(x)


def test_a_rate_that_a_shared_layer_cannot_have_has_a_row() -> None:
    plan = convert(Shared(), "srivastava", torch.ones(2, 4))
    assert plan.rates == {"layer.input_dropout": 0.5, "head.input_dropout": 0.5}
    assert [row.why for row in plan if row.place == "layer.input_dropout"] == [
        "a hidden layer",
        "the input: 0.2 cannot be had, for other runs of the module want 0.5",
    ]


class Stepping(nn.Module):
    """Runs a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        state: Tensor = self.cell(x)[0]
        return state


def test_cells_are_told_what_to_use() -> None:
    with pytest.raises(UnsupportedError, match=r"no recurrent network\. Its cells run a step at a time: use torch\.nn"):
        convert(Stepping(), "rnn", torch.ones(2, 4))
