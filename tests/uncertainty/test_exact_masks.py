"""All subnetworks of models whose masks are not a row for each example, or depend on more than the example."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.uncertainty import exact


class Model(nn.Module):
    """A linear layer, a dropout layer and weights, for forwards that use them."""

    def __init__(self, features: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(features, 3)
        self.weight = nn.Parameter(torch.tensor([[1.0], [2.0]]))
        self.double()


def batch(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def masks(count: int) -> Iterator[Tensor]:
    for kept in itertools.product((0.0, 1.0), repeat=count):
        yield torch.tensor(kept, dtype=torch.float64)


class SequenceFirst(Model):
    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.linear(self.drop(x.transpose(0, 1)))
        return steps.sum(0)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("examples", [1, 2])
def test_examples_may_lie_along_another_axis_of_a_mask(examples: int, length: int) -> None:
    model, x = SequenceFirst(), batch(examples, length, 4)
    found = exact(model, output="raw")(x)
    assert found.units == 4 * length
    weight, bias = model.linear.weight.detach(), model.linear.bias.detach()
    torch.testing.assert_close(found.arithmetic, x.sum(1) @ weight.T + length * bias)
    torch.testing.assert_close(found.variance, (x**2).sum(1) @ (weight**2).T)


class SharedMask(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x * F.dropout(torch.ones(1, 4).to(x), 0.5, self.training)).relu()
        return out


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_a_mask_may_be_shared_by_the_batch(examples: int) -> None:
    model, x = SharedMask(), batch(examples, 4)
    found = exact(model, output="raw")(x)
    outputs = torch.stack([model.linear(x * 2 * mask).relu() for mask in masks(4)]).detach()
    assert found.units == 4
    torch.testing.assert_close(found.arithmetic, outputs.mean(0))
    torch.testing.assert_close(found.variance, outputs.var(0, correction=0))
    torch.testing.assert_close(found.weight_scaling, model.linear(x).relu().detach())


class DroppedWeight(Model):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, 0.5, self.training))


def test_dropped_weights_have_no_examples() -> None:
    found = exact(DroppedWeight(), output="raw")(torch.ones(1, 1).double())
    assert found.units == 2
    assert found.std.tolist() == [[1.0, 2.0]]


class Mixed(Model):
    """Units of the example, of the weights, and of the example again."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.25, self.training)
        h = F.linear(x, F.dropout(self.linear.weight, 0.5, self.training)).relu()
        return F.dropout(h, 0.75, self.training).sum(-1, keepdim=True)


def test_shared_masks_and_those_of_examples_are_combined() -> None:
    model, x = Mixed(2), batch(3, 2)
    weight, total, squares = model.linear.weight.detach(), torch.zeros(3, 1), torch.zeros(3, 1)
    total, squares = total.double(), squares.double()
    for kept in masks(2 + 6 + 3):
        inputs, weights, hidden = kept[:2], kept[2:8].reshape(3, 2), kept[8:]
        chance = torch.where(inputs == 1, 0.75, 0.25).prod() * 0.5**6 * torch.where(hidden == 1, 0.25, 0.75).prod()
        h = ((x * inputs / 0.75) @ (weight * weights * 2).T).relu()
        out = (h * hidden / 0.25).sum(-1, keepdim=True)
        total += chance * out
        squares += chance * out**2
    found = exact(model, output="raw")(x)
    assert found.units == 11
    torch.testing.assert_close(found.arithmetic, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.variance, squares - total**2, rtol=1e-8, atol=1e-10)


class Reused(Model):
    """One site with another rate at each call."""

    class Drop(nn.Module):
        def forward(self, x: Tensor, p: float) -> Tensor:
            return F.dropout(x, p, self.training)

    def __init__(self) -> None:
        super().__init__()
        self.both = self.Drop()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.both(x, 0.5) + self.both(x, 0.2))
        return out


def test_each_call_has_a_rate_of_its_own() -> None:
    model, x = Reused(), batch(2, 4)
    found = exact(model, output="raw")(x)
    weight = model.linear.weight.detach()
    torch.testing.assert_close(found.variance, (x**2 * (1 + 0.25)) @ (weight**2).T, rtol=1e-8, atol=0.0)


class Windows(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.drop(x.reshape(-1, 2)).reshape(-1, 4))
        return out


def test_examples_with_several_rows_of_a_mask_are_refused() -> None:
    shapes = r"of shape \(6, 2\) for 3 examples and \(12, 2\) for 6"
    with pytest.raises(UnsupportedError, match=f"exact: a mask of site 'drop' is {shapes}, so that no axis"):
        exact(Windows())(batch(3, 4))


class AlwaysOn(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(F.dropout(x, 0.5))
        return out


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("seed", [1, 2])
def test_weight_scaling_drops_nothing_where_dropout_is_always_on(seed: int, training: bool) -> None:
    model, x = AlwaysOn().train(training), batch(3, 4)
    torch.manual_seed(seed)
    found = exact(model)(x)
    torch.testing.assert_close(found.weight_scaling, model.linear(x).softmax(-1).detach(), rtol=0.0, atol=1e-15)
    assert [each.coincide for each in found.differences] == [False, True, False]


class Named(Model):
    def forward(self, *, x: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.linear(self.drop(x) * scale)
        return out


def test_inputs_may_be_given_by_name() -> None:
    model, x = Named(), batch(3, 4)
    found = exact(model, output="raw")(x=x, scale=2.0)
    torch.testing.assert_close(found.variance, (4 * x**2) @ (model.linear.weight.detach() ** 2).T)
    with pytest.raises(ArgumentError, match="exact: `inputs` must be tensors with an axis 0 of examples"):
        exact(model)(scale=2.0)


def test_a_callable_runs_batches_of_other_sizes() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).double()
    predict, x = exact(model), batch(5, 4)
    both = torch.cat([predict(part).arithmetic for part in (x[:2], x[2:])])
    torch.testing.assert_close(both, predict(x).arithmetic)


class MoreOften(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.drop(self.drop(x)) if len(x) > 9 else self.drop(x))
        return out


class LessOften(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x if len(x) > 9 else self.drop(x))
        return out


class OtherShape(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.drop(x[:, None])[:, 0] if len(x) > 9 else self.drop(x))
        return out


class ByValue(Model):
    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        out: Tensor = self.linear(self.drop(x) if bool(x[0, 0] == 0) else x)
        return out


@pytest.mark.parametrize("build", [MoreOften, LessOften, OtherShape, ByValue])
def test_calls_that_depend_on_the_data_are_refused(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(UnsupportedError, match=r"exact: how often 'drop' drops.* depends on .*uncertainty\.mc"):
        exact(model)(batch(2, 4))
    assert all(module.training for module in model.modules())
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


class Coupled(Model):
    def __init__(self, couple: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.couple = couple

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.couple(self.drop(x)))
        return out


@pytest.mark.parametrize(
    ("couple", "examples"),
    [
        pytest.param(lambda h: h - h.mean(0), 1, id="mean_of_one"),
        pytest.param(lambda h: h - h.mean(0), 3, id="mean"),
        pytest.param(lambda h: h / h.abs().amax(0), 3, id="largest"),
        pytest.param(lambda h: h.roll(1, 0), 1, id="neighbour"),
        pytest.param(lambda h: F.batch_norm(h, None, None, training=True), 3, id="batch_norm"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_examples_that_depend_on_each_other_are_refused(
    couple: Callable[[Tensor], Tensor], examples: int, dtype: torch.dtype
) -> None:
    model, x = Coupled(couple).to(dtype), (batch(examples, 4).abs() + 1).to(dtype)
    with pytest.raises(UnsupportedError, match="exact: what this model gives for an example depends on what runs with"):
        exact(model, output="raw")(x)


class CoupledBetween(nn.Module):
    """Examples that meet between two layers of dropout, of which the second alone has more subnetworks than a chunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 14), nn.Linear(14, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.dropout(x, 0.5, self.training))
        out: Tensor = self.second(F.dropout(h - h.mean(0), 0.5, self.training))
        return out


def test_examples_that_depend_on_each_other_between_sites_are_refused() -> None:
    model = CoupledBetween().double()
    for each in (model, nn.Sequential(nn.Dropout(0.5), nn.Linear(14, 3), model).double()):
        x = batch(2, 3 if each is model else 14)
        with pytest.raises(UnsupportedError, match="depends on what runs with it"):
            exact(each, limit=2**40)(x)


class Gated(nn.Module):
    """Examples that meet where all of some paths are open, and behind those alone."""

    def __init__(self, gates: int, couple: Callable[[Tensor], Tensor], *, is_shared: bool = False) -> None:
        super().__init__()
        self.gates = nn.Sequential(*[dropkit.nn.DropPath(0.5) for _ in range(gates)])
        self.couple, self.is_shared = couple, is_shared

    def forward(self, x: Tensor) -> Tensor:
        out = self.couple(self.gates(x))
        return out * F.dropout(torch.ones(1, 1).to(x), 0.5, self.training) if self.is_shared else out


@pytest.mark.parametrize(
    "model",
    [
        Gated(2, lambda h: h * h.mean(0)),
        Gated(1, lambda h: h * h.mean(0), is_shared=True),
        nn.Sequential(Gated(1, lambda h: h - h.mean(0)), Gated(1, lambda h: h)),
    ],
    ids=["both_open", "shared_open", "one_open"],
)
def test_examples_that_meet_in_some_subnetworks_alone_are_refused(model: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="depends on what runs with it"):
        exact(model, output="raw")(batch(1, 4))


class Rare(nn.Module):
    """Examples that meet in few subnetworks alone: those whose output is among the largest."""

    def __init__(self, threshold: float, *, is_coupled: bool) -> None:
        super().__init__()
        self.threshold, self.is_coupled = threshold, is_coupled

    def forward(self, x: Tensor) -> Tensor:
        out = F.dropout(x, 0.5, self.training).sum(-1, keepdim=True) / 8
        is_large = out > self.threshold
        return torch.where(is_large.any() if self.is_coupled else is_large, out.tanh(), out)


def test_examples_that_meet_in_few_subnetworks_are_refused() -> None:
    """Of 2**15 subnetworks, which are not run in one forward, those that keep 14 units or more are 16."""
    x = torch.ones(1, 15).double()
    found = exact(Rare(27 / 8, is_coupled=False), output="raw")(x)
    counts = torch.arange(16).double()
    chances = torch.tensor([math.comb(15, kept) / 2**15 for kept in range(16)]).double()
    outputs = torch.where(counts > 13, (counts / 4).tanh(), counts / 4)
    torch.testing.assert_close(found.arithmetic, (chances * outputs).sum().reshape(1, 1))
    with pytest.raises(UnsupportedError, match="depends on what runs with it"):
        exact(Rare(27 / 8, is_coupled=True), output="raw")(x)


class CentredInputs(Model):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.drop(x - x.mean(0)))
        return out


def test_what_comes_before_dropout_may_depend_on_the_batch() -> None:
    model, x = CentredInputs(), batch(3, 4)
    found = exact(model, output="raw")(x)
    torch.testing.assert_close(found.variance, ((x - x.mean(0)) ** 2) @ (model.linear.weight.detach() ** 2).T)


def test_units_that_fall_together_are_refused() -> None:
    model = nn.Sequential(dropkit.nn.DropBlock2d(0.3, block_size=2), nn.Flatten(), nn.Linear(16, 2)).double()
    with pytest.raises(UnsupportedError, match="exact: the noise of site '0' is no mask that is drawn unit by unit"):
        exact(model)(batch(2, 1, 4, 4))


class Attention(Model):
    """Attention of one head, sequence first, whose weights drop."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, dropout=0.5).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        found: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return found.transpose(0, 1)


def test_attention_weights_are_units() -> None:
    model, x = Attention(), batch(2, 2, 4)
    inner = model.attention
    found = exact(model, output="raw")(x)
    with torch.no_grad():
        query, key, value = (x @ inner.in_proj_weight.T + inner.in_proj_bias).chunk(3, -1)
        weights = (query @ key.mT / 2).softmax(-1)
        outputs = torch.stack([inner.out_proj((weights * 2 * mask.reshape(2, 2)) @ value) for mask in masks(4)])
    assert found.units == 4
    torch.testing.assert_close(found.arithmetic, outputs.mean(0))
    torch.testing.assert_close(found.variance, outputs.var(0, correction=0))


def test_inputs_of_any_structure() -> None:
    class Taking(Model):
        def forward(self, given: dict[str, Any]) -> Tensor:
            out: Tensor = self.linear(self.drop(given["x"])) * given["scale"]
            return out

    model, x = Taking(), batch(3, 4)
    found = exact(model, output="raw")({"x": x, "scale": torch.tensor(3.0)})
    torch.testing.assert_close(found.variance, 9 * (x**2) @ (model.linear.weight.detach() ** 2).T)
