"""Placing dropout beside layers that are shared, parallel, or correct the weights of others."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.sites import convert, find


class Positions(nn.Module):
    """One dropout layer on the output and on something that does not come from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.first, self.last = nn.Dropout(0.1), nn.Linear(16, 16), nn.Linear(16, 3)
        self.register_buffer("positions", torch.randn(7, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.last(self.first(x + self.drop(self.positions)).relu()))


def test_a_layer_that_also_drops_from_what_no_module_made_is_said_to_stop() -> None:
    model, x = Positions(), torch.randn(4, 7, 16)
    plan = convert(model, "srivastava", x)
    assert {site.name: site.p for site in find(model, x)} == plan.rates
    assert plan.rates == {"first.input_dropout": 0.2, "last.input_dropout": 0.5}
    assert [(row.then, row.why) for row in plan if row.place == "drop"] == [
        ("nothing", "it shares its layer with places of other rates, and no module makes what it drops from"),
        ("nothing", "nothing comes after the output to make up for it"),
    ]
    plan.undo()
    assert model.drop.p == 0.1


class Corrected(nn.Module):
    """A linear layer with a product of two beside it, as LoRA has it."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.base, self.drop = of, nn.Dropout(0.2)
        self.down, self.up = nn.Linear(of.in_features, 2, bias=False), nn.Linear(2, of.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base(x)
        return output + self.up(self.down(self.drop(x))) * 0.5


class Block(nn.Module):
    """A block of a transformer, some of whose layers are corrected."""

    def __init__(self, *corrected: str) -> None:
        super().__init__()
        sizes = {"query": (8, 8), "key": (8, 8), "value": (8, 8), "out": (8, 8), "widen": (8, 16), "narrow": (16, 8)}
        for name, (inputs, outputs) in sizes.items():
            layer = nn.Linear(inputs, outputs)
            self.add_module(name, Corrected(layer) if name in corrected else layer)

    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), dropout_p=0.0)
        x = x + self.out(attended)
        return x + self.narrow(F.gelu(self.widen(x)))


@pytest.mark.parametrize(
    "corrected", [(), ("query", "value"), ("query", "key", "value", "out", "widen", "narrow")], ids=len
)
@pytest.mark.parametrize("recipe", ["transformer", "vit"])
def test_what_corrects_a_layer_is_neither_a_feed_forward_nor_a_sub_layer(
    recipe: str, corrected: tuple[str, ...]
) -> None:
    x = torch.randn(2, 5, 8)
    model = nn.Sequential(Block(*corrected), Block(*corrected), nn.Linear(8, 3))
    plan, plain = convert(model, recipe, x), convert(nn.Sequential(Block(), Block(), nn.Linear(8, 3)), recipe, x)
    own = {f"{block}.{name}.drop": 0.2 for block in (0, 1) for name in corrected}
    inner = {f"{name}.{part}" for name in corrected for part in ("up", "down", "drop")}
    placed = {site: p for site, p in plan.rates.items() if site not in own}
    assert not any(part in site for site in placed for part in inner)
    assert {site: plan.rates[site] for site in own} == own
    # Inside of the feed-forward, where two layers read a tensor, it is dropped for both.
    moved = {site.replace("narrow.input", "narrow.base.input") for site in plain.rates}
    assert len(placed) == len(plain.rates)
    assert set(placed) <= {*plain.rates, *moved}
    assert {site.name: site.p for site in find(model, x)} == plan.rates


class Parallel(nn.Module):
    """Convolutions side by side, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 6, 1)
        self.side = nn.ModuleList([nn.Conv1d(6, 6, length, padding="same") for length in (1, 3, 5)])
        self.joint, self.head = nn.Conv1d(18, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = torch.cat([side(x).relu() for side in self.side], 1)
        return self.head(self.joint(x).relu().amax(-1))


def test_rates_grow_with_depth_and_are_equal_side_by_side() -> None:
    plan = convert(Parallel(), "cnn", torch.randn(3, 4, 9))
    rates = dict(plan.rates)
    assert rates.pop("head.input_dropout") == 0.5
    assert sorted(set(rates.values())) == [0.1, 0.25]
    assert {site.split(".")[0] for site, p in rates.items() if p == 0.1} <= {"first", "side"}
    assert [site for site, p in rates.items() if p == 0.25] == ["joint.input_dropout"]
