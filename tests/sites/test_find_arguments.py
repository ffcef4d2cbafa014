"""What a search prints, marks and refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.sites import Sites, address, find, record, switch
from tests.helpers.ids import by_name
from tests.sites import networks
from tests.sites.zoo import MODELS


def test_the_table() -> None:
    model = nn.Sequential(networks.Ungated(), nn.Unflatten(1, (8, 1, 1)), nn.Dropout2d(0.25))
    head, first, second = str(find(model, torch.ones(5, 8))).splitlines()
    assert head.split() == ["site", "kind", "p", "train", "eval", "calls", "shape", "shared", "where"]
    assert first.split()[:-1] == ["0#0", "dropout", "0.4", "on", "ON", "1", "5x8", "-"]
    assert first.split()[-1].startswith(f"{Path(networks.__file__).name}:")
    assert second.split()[:-1] == ["2", "dropout2d", "0.25", "on", "off", "1", "5x8x1x1", "2,3"]
    assert str(find(nn.Linear(2, 2), torch.ones(2))) == "no site: nothing in this model draws dropout"


def test_some_of_the_sites_are_a_table_too() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout(0.3))
    found = find(model, torch.ones(5, 8))
    assert [line.split()[0] for line in str(found[1:]).splitlines()] == ["site", "1", "2"]
    assert isinstance(found[:0], Sites)
    assert str(found[:0]) == "no site: nothing in this model draws dropout"
    assert found[-1].p == 0.3


def test_native_dropout_without_a_mode_drops() -> None:
    """As PyTorch reads it."""

    class Native(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.native_dropout(x, 0.5, None)[0]

    model, x = Native(), torch.ones(20, 20)
    [site] = find(model, x)
    assert (site.kind, site.p, site.in_train, site.in_eval) == ("dropout", 0.5, True, True)
    assert (model(x) == 0).any()
    with switch(model, "off"):
        assert torch.equal(model(x), x)


class Call(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Draw(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > 0.5) * 2


@pytest.mark.parametrize(("sign", "other"), [("#", Call), ("~", Draw)])
def test_two_sites_of_one_name_are_refused(sign: str, other: type[nn.Module]) -> None:
    name = f"x{sign}0"

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({name: nn.Dropout(0.5), "x": other()})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[name](x) + self.parts["x"](x)

    model, x, message = Both(), torch.ones(3, 4), f"the dropout layer 'parts.{name}' and a call in the module 'parts.x'"
    with pytest.raises(ArgumentError, match=message):
        find(model, x)
    with pytest.raises(ArgumentError, match=message), record(model):
        model(x)
    handle = address(model)
    with pytest.raises(ArgumentError, match=message):
        model(x)
    handle.close()
    with pytest.raises(ArgumentError, match=message), switch(model, "off"):
        model(x)


def test_what_only_looks_like_dropout_and_what_cannot_be_rewritten_is_marked() -> None:
    class Labels(nn.Module):
        """Drops the labels of some examples, as guidance without a classifier needs it."""

        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(len(x), 1) > 0.1)

    model, x = nn.Sequential(Labels(), MODELS["scripted"].build()), torch.randn(6, 8)
    perhaps, fixed, plain = find(model, x)
    assert (perhaps.name, perhaps.kind, round(perhaps.p, 6), perhaps.is_certain) == ("0~0", "mask", 0.1, False)
    assert [site.is_certain for site in (fixed, plain)] == [True, True]
    assert [site.is_rewritable for site in (fixed, plain)] == [False, True]
    _, *rows, first, second = str(find(model, x)).splitlines()
    assert [row.split()[1] for row in rows] == ["mask?", "dropout!", "dropout"]
    assert (first[:3], second[:3]) == ("?  ", "!  ")


def test_one_mask_on_two_tensors_is_one_draw() -> None:
    class Tied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                mask = (torch.rand_like(x) > 0.5) / 0.5
                x = x * mask + x.sin() * mask
            return x

    assert [(site.name, site.calls) for site in find(Tied(), torch.ones(8, 8))] == [("~0", 1), ("~1", 1)]


def test_rates_of_zero_and_networks_with_nothing_between_layers_are_no_sites() -> None:
    model = nn.Sequential(nn.Dropout(0.0), dropkit.nn.Dropout(0.0), dropkit.nn.LSTM(4, 4), networks.First())
    assert find(model, torch.ones(2, 3, 4)) == []


@pytest.mark.parametrize("model", [None, torch.relu, nn.Linear], ids=by_name)
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"find: `model` must be a torch\.nn\.Module"):
        find(model, torch.ones(2))


def test_weights_without_a_shape_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Dropout(0.5))
    with pytest.raises(UnsupportedError, match=r"'0\.weight' has no shape before the model's first forward"):
        find(model, torch.ones(2, 4))
    assert isinstance(model[0], nn.LazyLinear)


def test_wrong_calls_raise_what_the_function_raises() -> None:
    class Wrong(nn.Module):
        def forward(self, x: str) -> Tensor:
            return F.dropout(x, 0.5)

    with pytest.raises(TypeError, match=r"must be Tensor, not str"):
        find(Wrong(), "x")


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_a_forward_raises_goes_on_as_it_is(error: type[BaseException]) -> None:
    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(error):
        find(Raising(), torch.ones(2))


def test_wrong_inputs_raise_what_the_model_raises() -> None:
    model = networks.mlp().eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        find(model, torch.ones(2, 5))
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_objects_that_a_forward_writes_into_are_not_touched() -> None:
    class Cache:
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []
            self.own = self

    class Caching(nn.Module):
        def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
            assert cache.own is cache
            cache.seen.append(x)
            return nn.functional.dropout(x, 0.5, self.training) * len(cache.seen)

    model, cache, x = Caching().eval(), Cache(), torch.ones(3)
    assert len(find(model, x, cache)) == 1
    assert cache.seen == []
    with dropkit.sites.switch(model, "off"):
        assert torch.equal(model(x, cache), x)
    assert len(cache.seen) == 1
