"""Nothing that computes with a random tensor passes the rules unseen, and what is not random works as it does."""

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.uncertainty import Moments, moments
from tests.uncertainty.written import Written, drop

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def scripted(function: Any) -> Any:
    return torch.jit.script(function)


def traced(function: Any) -> Any:
    return torch.jit.trace(function, torch.randn(2, 4))


def head(run: Callable[[nn.Module, Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    """Return what builds a model that gives a function its layer, its input, and that after dropout."""
    return lambda: Written(lambda self, x: run(self.layers[0], x, drop(self, x, 0.5)), nn.Linear(4, 3))


def then(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Written(lambda self, x: function(drop(self, x, 0.5)))


class Counted(nn.Module):
    """A model that adds what it drops to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.total.view(2, 4).add_(drop(self, x, 0.5))
        return 2 * self.total


def sliced(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    total = x.new_zeros(2, 4)
    total[:, :].add_(h)
    return layer(total)


def through_data(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    total = torch.zeros(2, 4)
    total.data.add_(h)
    return layer(total)


def caught(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    with suppress(UnsupportedError):
        F.layer_norm(h, (4,))
    return layer(h)


BELOW: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "traced_layer": (lambda: nn.Sequential(nn.Dropout(0.5), traced(nn.Linear(4, 3))), "aten.addmm.* module '1'"),
    "scripted_layer": (lambda: nn.Sequential(nn.Dropout(0.5), scripted(nn.Linear(4, 3))), "aten.addmm.* module '1'"),
    "traced_function": (lambda: then(traced(swish)), "aten.sigmoid.* TorchScript"),
    "beside_a_branch": (head(lambda layer, x, h: layer(h + scripted(swish)(h))), "aten.sigmoid.* TorchScript"),
    "vmap": (head(lambda layer, x, h: torch.func.vmap(layer)(h)), "torch.func.vmap"),
    "jacobian": (head(lambda layer, x, h: torch.func.jacrev(layer)(h)), "torch.func.vmap"),
    "data": (head(lambda layer, x, h: layer(h.data)), "data.__get__ has no rule"),
    "set_data": (head(lambda layer, x, h: setattr(torch.zeros(2, 4), "data", h)), "data.__set__ has no rule"),
    "numpy": (head(lambda layer, x, h: layer(torch.from_numpy(h.numpy()))), "numpy has no rule"),
    "pointer": (head(lambda layer, x, h: h.data_ptr()), "data_ptr has no rule"),
    "buffer": (Counted, "from outside of the pass, as buffers are"),
    "a_view": (head(sliced), "of a view of what was overwritten in place"),
    "data_of_a_total": (head(through_data), "of a view of what was overwritten in place"),
    "shape_in_place": (head(lambda layer, x, h: layer(h.unsqueeze_(1))), "changes a shape in place"),
    "out": (head(lambda layer, x, h: torch.add(h, h, out=torch.empty(2, 4))), "with these arguments has no rule"),
}


@pytest.mark.parametrize("name", BELOW)
def test_what_reaches_a_random_tensor_below_the_rules_is_an_error(name: str) -> None:
    build, message = BELOW[name]
    model = build()
    with pytest.raises(UnsupportedError, match=message) as found:
        moments(model)(torch.randn(2, 4))
    assert str(found.value).endswith("Sample instead: dropkit.uncertainty.mc.")
    if isinstance(model, Counted):
        assert torch.equal(model.total, torch.zeros(2, 4))


def totals(start: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def run(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        total = start(h)
        total.add_(h)
        total += h
        return layer(total)

    return run


STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda h: torch.zeros(len(h), 4),
    "new_zeros": lambda h: h.new_zeros(len(h), 4),
    "zeros_like": torch.zeros_like,
    "full_like": lambda h: torch.full_like(h, 0.0),
    "filled": lambda h: torch.empty_like(h).zero_(),
    "arithmetic": lambda h: 0 * torch.ones(4).expand(len(h), 4).clone(),
}


@pytest.mark.parametrize("name", STARTS)
def test_what_is_made_in_the_pass_can_become_random_in_place(name: str) -> None:
    model = head(totals(STARTS[name]))()
    x, layer = torch.randn(2, 4), model.layers[0]
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, layer(2 * x).detach())
    torch.testing.assert_close(found.variance, (4 * x**2 @ (layer.weight**2).T).detach())


def test_in_place_work_leaves_what_was_added_as_it_is() -> None:
    def run(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        total = torch.zeros(2, 4)
        total.add_(h)
        return torch.cat([layer(h), total], 1)

    model, x = head(run)(), torch.randn(2, 4)
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, torch.cat([model.layers[0](x).detach(), x], 1))
    torch.testing.assert_close(found.variance[:, 3:], x**2)


class Cached(nn.Module):
    """A model that keeps what it has made of its shapes, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.positions = nn.Linear(4, 3), None

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.arange(4.0).cos()
        return self.layer(drop(self, x * self.positions, 0.5))


def test_what_a_model_keeps_is_none_of_the_pass() -> None:
    model, x = Cached(), torch.randn(2, 4)
    found = moments(model)(x)
    assert model.positions is None
    assert type(model.eval()(x)) is Tensor
    torch.testing.assert_close(found.mean, model(x).detach())


def test_what_is_not_random_may_run_anywhere() -> None:
    def run(self: Written, x: Tensor) -> Tensor:
        x = x.clone().unsqueeze_(0).squeeze_(0)
        start = torch.func.vmap(self.layers[0])(scripted(swish)(torch.as_tensor(x.numpy())))
        self.layers[1](x).data.zero_()
        return self.layers[2](drop(self, start, 0.5)) * scripted(swish)(x[:, :1])

    model = Written(run, nn.Linear(4, 4), traced(nn.Linear(4, 4)), nn.Linear(4, 3))
    x = torch.randn(2, 4)
    h, gate = model.layers[0](swish(x)).detach(), swish(x[:, :1])
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, model.layers[2](h).detach() * gate)
    torch.testing.assert_close(found.variance, (h**2 @ (model.layers[2].weight ** 2).T).detach() * gate**2)


def test_metadata_are_those_of_the_tensor() -> None:
    seen = []

    def run(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        narrow = h.to(torch.bfloat16)
        seen.extend([h.shape, h.dtype, h.device, len(h), h.stride(), narrow.dtype, (narrow * 2).dtype, layer(h).shape])
        return layer(h)

    moments(head(run)())(torch.randn(2, 4))
    assert seen[-8:] == [(2, 4), torch.float32, torch.device("cpu"), 2, (4, 1), torch.bfloat16, torch.bfloat16, (2, 3)]


@dataclass
class Both:
    logits: Any
    hidden: Any = None


Pair = namedtuple("Pair", ["logits", "hidden"])


class Opaque:
    def __init__(self, logits: Tensor) -> None:
        self.logits = [logits]


class Slotted:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("kind", [Both, Pair])
def test_outputs_of_any_class_keep_it(kind: Any) -> None:
    model, x = head(lambda layer, x, h: kind(layer(h), {"h": h, "n": 3}))(), torch.randn(2, 4)
    found = moments(model)(x)
    assert type(found) is kind
    assert isinstance(found.logits, Moments)
    torch.testing.assert_close(found.hidden["h"].std, x.abs())
    assert found.hidden["n"] == 3


def test_inputs_of_any_class_are_looked_into() -> None:
    model = Written(lambda self, both: self.layers[0](drop(self, both.logits, 0.5)), nn.Linear(4, 3))
    x = torch.randn(2, 4)
    torch.testing.assert_close(moments(model)(Both(x)).mean, model.layers[0](x).detach())


@pytest.mark.parametrize("kind", [Opaque, Slotted])
def test_an_output_that_cannot_be_opened_is_named(kind: Any) -> None:
    model = head(lambda layer, x, h: {"a": kind(layer(h))})()
    with pytest.raises(UnsupportedError, match=rf"output.a is a {kind.__name__}, which holds tensors and cannot be op"):
        moments(model)(torch.randn(2, 4))


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 500.0), (torch.float16, 1e-4), (torch.bfloat16, 1e19)])
def test_variances_do_not_overflow_in_half_precision(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(10, 3)).to(dtype)
    x = (scale * torch.randn(4, 10)).to(dtype)
    expected = (x.double() ** 2 @ (model[1].weight.double() ** 2).T).sqrt().detach()
    found = moments(model)(x)
    assert found.variance.dtype == found.covariance.dtype == torch.float32
    torch.testing.assert_close(found.std.double(), expected, rtol=1e-5, atol=0)


def test_automatic_types_do_not_round_variances() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    x = torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = torch.relu(model[0](x)).float().detach()
        found = moments(model)(x)
    torch.testing.assert_close(found.variance, (h**2 @ (model[3].weight ** 2).T).detach())


def test_a_site_that_is_gone_is_not_missed() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3), nn.Dropout(0.5))
    propagate, x = moments(model), torch.randn(2, 4)
    before = propagate(x).variance
    del model[2]
    torch.testing.assert_close(propagate(x).variance, (x**2 @ (model[1].weight ** 2).T).detach())
    assert (before > propagate(x).variance).all()


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Dropout(0.5), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        (nn.Unflatten(1, (1, 2, 2)), nn.Dropout2d(0.5), nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Flatten()),
        (nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 40, 1), nn.Dropout(0.5), nn.Conv1d(40, 40, 1), nn.ReLU(), nn.Flatten()),
    ],
    ids=["dense", "channels", "many"],
)
def test_no_examples_have_no_moments(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers)
    found = moments(model)(torch.randn(0, 4))
    size = model(torch.randn(1, 4)).shape[1]
    assert found.mean.shape == found.std.shape == (0, size)
    assert found.covariance.shape == (0, size, size)


def test_moments_are_compared_by_identity() -> None:
    propagate, x = moments(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))), torch.randn(2, 4)
    one = propagate(x)
    assert one == one
    assert one != propagate(x)


def repickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, repickled])
@pytest.mark.parametrize("last", [nn.Linear(8, 3), nn.Identity()], ids=["linear", "fresh"])
def test_moments_and_what_gives_them_are_copied(copied: Callable[[Any], Any], last: nn.Module) -> None:
    propagate, x = moments(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), last)), torch.randn(2, 4)
    found = propagate(x)
    assert torch.equal(copied(found).covariance, found.covariance)
    assert torch.equal(copied(propagate)(x).covariance, found.covariance)


@pytest.mark.parametrize("power", [0.5, -1, 2.5], ids=["root", "inverse", "float"])
def test_powers_other_than_positive_integers_are_refused(power: float) -> None:
    with pytest.raises(UnsupportedError, match="exponent that is no positive integer has no rule"):
        moments(head(lambda layer, x, h: h**power)())(torch.randn(2, 4))


def test_integers_given_as_floats_are_powers() -> None:
    x = torch.randn(2, 4)
    one, other = (moments(head(lambda layer, x, h, power=power: h**power)())(x) for power in (2, 2.0))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.variance, other.variance)


COPIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "new_tensor": lambda x, h: x.new_tensor(h),
    "own_new_tensor": lambda x, h: h.new_tensor(h),
    "tensor": lambda x, h: torch.tensor(h),
    "as_tensor": lambda x, h: torch.as_tensor(h),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", COPIES)
def test_tensors_that_are_made_of_random_values_are_refused(name: str) -> None:
    model = head(lambda layer, x, h: layer(COPIES[name](x, h)))()
    with pytest.raises(UnsupportedError, match="has no rule"):
        moments(model)(torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_tensors_that_are_made_like_random_ones_are_not_random() -> None:
    model = head(lambda layer, x, h: layer(h + h.new_tensor([1.0, 2.0, 3.0, 4.0]) + x.new_tensor(x)))()
    x, layer = torch.randn(2, 4), model.layers[0]
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, layer(2 * x + torch.arange(1.0, 5.0)).detach())
    torch.testing.assert_close(found.variance, (x**2 @ (layer.weight**2).T).detach())


CONVERSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "float": lambda x, h: h.float(),
    "to": lambda x, h: h.to(torch.float32),
    "to_device": lambda x, h: h.to("cpu"),
    "to_other": lambda x, h: h.to(x),
    "cpu": lambda x, h: h.cpu(),
    "type": lambda x, h: h.type(torch.float32),
    "type_as": lambda x, h: h.type_as(x),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_is_of_a_type_already_is_the_same_tensor(name: str) -> None:
    def run(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        CONVERSIONS[name](x, h).relu_()
        return layer(h)

    model, x = head(run)(), torch.randn(2, 4)
    found = moments(model)(x)
    layer, positive = model.layers[0], x.relu()
    torch.testing.assert_close(found.mean, layer(positive).detach())
    torch.testing.assert_close(found.variance, (positive**2 @ (layer.weight**2).T).detach())


@pytest.mark.parametrize(
    "convert",
    [lambda h: h.double(), lambda h: h.bfloat16(), lambda h: h.to(h.dtype, copy=True)],
    ids=["double", "bfloat16", "copy"],
)
def test_what_is_converted_is_another_tensor(convert: Callable[[Tensor], Tensor]) -> None:
    def run(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        convert(h).relu_()
        return layer(h)

    model, x = head(run)(), torch.randn(2, 4)
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, model.layers[0](x).detach())


def test_only_the_type_of_a_random_tensor_is_asked_for() -> None:
    def run(layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        gate = (x > 0).type_as(h) + x.double().to(h)
        return layer(h * gate) if h.type() == "torch.FloatTensor" else h

    model, x = head(run)(), torch.randn(2, 4)
    gated, layer = x * ((x > 0).float() + x), model.layers[0]
    found = moments(model)(x)
    torch.testing.assert_close(found.mean, layer(gated).detach())
    torch.testing.assert_close(found.variance, (gated**2 @ (layer.weight**2).T).detach())


def test_what_a_mask_keeps_unscaled_is_no_part_of_the_input() -> None:
    def run(self: Written, x: Tensor) -> Tensor:
        h = dropkit.functional.drop_path(x, 0.5, self.training, scale_by_keep=False)
        x.mul_(3)
        return torch.relu(h)

    x = torch.randn(2, 4)
    found = moments(Written(run))(x.clone())
    torch.testing.assert_close(found.mean, x.relu() / 2)
    torch.testing.assert_close(found.std, x.relu() / 2)
