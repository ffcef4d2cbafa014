"""All subnetworks of small models: what is known of their means."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.uncertainty import exact, mc

RATES = [0.5, 0.2, 0.7]


def softmax_layer(p: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(p), nn.Linear(8, 4)).double()


def rectified(p: float = 0.5, q: float = 0.25, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Dropout(p), nn.Linear(4, 6), nn.ReLU(), nn.Dropout(q), nn.Linear(6, outputs)
    return nn.Sequential(*layers).double()


def by_hand(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities of masks and logits (masks, examples, classes) of `rectified`, one mask after another."""
    first, second = model[0].p, model[3].p
    probabilities, logits = [], []
    for bits in itertools.product((0.0, 1.0), repeat=10):
        kept = torch.tensor(bits, dtype=torch.float64)
        h = torch.relu(model[1](x * kept[:4] / (1 - first)))
        logits.append(model[4](h * kept[4:] / (1 - second)))
        rates = [first] * 4 + [second] * 6
        probabilities.append(math.prod(1 - r if bit else r for bit, r in zip(bits, rates, strict=True)))
    return torch.tensor(probabilities, dtype=torch.float64), torch.stack(logits).detach()


@pytest.mark.parametrize("p", RATES)
def test_the_geometric_mean_of_a_softmax_layer_is_weight_scaling(p: float) -> None:
    found = exact(softmax_layer(p))(torch.randn(5, 8).double())
    assert found.units == 8
    assert float((found.geometric - found.weight_scaling).abs().max()) < 1e-12
    assert float((found.arithmetic - found.weight_scaling).abs().max()) > 1e-3
    coincide = {(each.first, each.second): each.coincide for each in found.differences}
    assert coincide == {
        ("arithmetic mean", "weight scaling"): False,
        ("geometric mean", "weight scaling"): True,
        ("arithmetic mean", "geometric mean"): False,
    }


@pytest.mark.parametrize("p", RATES)
def test_masks_that_count_alike_give_weight_scaling_at_one_half_alone(p: float) -> None:
    """The textbook's mean takes all masks alike, which is weighting them with their probabilities at 0.5."""
    model = softmax_layer(p)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).double()
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8))).double()
    logits = model[1](masks[:, None] * x / (1 - p)).detach()
    alike = logits.log_softmax(-1).mean(0).softmax(-1)
    difference = float((alike - exact(model)(x).weight_scaling).abs().max())
    assert difference < 1e-12 if p == 0.5 else difference > 1e-2


def test_means_are_those_of_enumeration_by_hand() -> None:
    model, x = rectified(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    probabilities, logits = by_hand(model, x)
    weights = probabilities[:, None, None]
    found, values = exact(model)(x), logits.softmax(-1)
    arithmetic = (weights * values).sum(0)
    geometric = torch.exp((weights * values.log()).sum(0))
    torch.testing.assert_close(found.arithmetic, arithmetic, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.geometric, geometric / geometric.sum(-1, keepdim=True), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, (weights * (values - arithmetic) ** 2).sum(0), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.weight_scaling, model.eval()(x).softmax(-1).detach())


def test_a_rectified_network_has_means_of_its_own() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    found = exact(rectified())(x)
    assert not any(each.coincide for each in found.differences)
    assert all(each.largest > 1e-3 for each in found.differences)
    assert all(each.divergence is not None and each.divergence > 0 for each in found.differences)
    raw = exact(rectified(), output="raw")(x)
    [difference] = raw.differences
    assert not difference.coincide
    assert raw.geometric is None
    assert difference.divergence is None


@pytest.mark.parametrize("depth", [1, 2])
def test_linear_networks_have_the_mean_of_weight_scaling(depth: int) -> None:
    torch.manual_seed(0)
    hidden = [nn.Linear(4, 4), nn.Dropout(0.25)] * (depth - 1)
    model = nn.Sequential(nn.Dropout(0.5), *hidden, nn.Linear(4, 3)).double()
    x = torch.randn(5, 4).double()
    [difference] = exact(model, output="raw")(x).differences
    assert difference.largest < 1e-12
    assert difference.coincide
    found = exact(model)(x)  # and so the geometric mean of a softmax of it
    assert float((found.geometric - found.weight_scaling).abs().max()) < 1e-12
    assert float((found.arithmetic - found.weight_scaling).abs().max()) > 1e-3


def test_variance_of_a_linear_layer_has_a_closed_form() -> None:
    model, x = softmax_layer(0.2), torch.randn(5, 8).double()
    found = exact(model, output="raw")(x)
    expected = (x**2 * 0.25) @ (model[1].weight.detach() ** 2).T
    torch.testing.assert_close(found.variance, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.std, expected.sqrt(), rtol=1e-8, atol=0)


def test_sampling_tends_to_it() -> None:
    model, x = rectified(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).double()
    found = exact(model)(x)
    torch.manual_seed(3)
    with torch.no_grad():
        samples = model(x.repeat(20_000, 1)).softmax(-1).unflatten(0, (20_000, 2))
    error = found.std / math.sqrt(20_000)
    assert ((samples.mean(0) - found.arithmetic).abs() < 5 * error).all()
    torch.testing.assert_close(samples.std(0), found.std, rtol=0.05, atol=0)


def test_monte_carlo_dropout_tends_to_it() -> None:
    model, x = rectified(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
    found, sampled = exact(model)(x), mc(model, n=4000, task="classification", seed=0)(x)
    assert ((sampled.mean - found.arithmetic).abs() < 5 * sampled.error.mean).all()
    torch.testing.assert_close(sampled.std, found.std, rtol=0.06, atol=0)


def test_yes_or_no() -> None:
    model, x = rectified(outputs=1), torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double()
    probabilities, logits = by_hand(model, x)
    weights = probabilities[:, None, None]
    found = exact(model, output="sigmoid")(x)
    torch.testing.assert_close(found.arithmetic, (weights * logits.sigmoid()).sum(0))
    yes = torch.exp((weights * logits.sigmoid().log()).sum(0))
    no = torch.exp((weights * (1 - logits.sigmoid()).log()).sum(0))
    torch.testing.assert_close(found.geometric, yes / (yes + no))
    as_classes = exact(nn.Sequential(model, Twice()))(x)
    torch.testing.assert_close(as_classes.arithmetic[:, 1:], found.arithmetic)
    assert found.differences[0].divergence == pytest.approx(as_classes.differences[0].divergence)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x], -1)


class Functional(nn.Module):
    """Two sites in one forward, one of them called twice, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = F.dropout(x, 0.25, self.training)
        return self.linear(self.drop(x) + self.drop(other))


def test_every_call_of_every_site_counts() -> None:
    torch.manual_seed(0)
    model, x, other = Functional().double(), torch.randn(2, 3).double(), torch.randn(2, 3).double()
    found = exact(model, output="raw")(x, other)
    assert found.units == 9
    torch.testing.assert_close(found.arithmetic, model.eval()(x, other).detach())
    weight = model.linear.weight.detach()
    spread = x**2 * (2 / 0.75 - 1) + other**2
    torch.testing.assert_close(found.variance, spread @ (weight**2).T)


@pytest.mark.parametrize(
    ("layer", "units"),
    [(nn.Dropout(0.5), 8), (nn.Dropout2d(0.5), 2), (nn.AlphaDropout(0.5), 8), (dropkit.nn.DropPath(0.5), 1)],
    ids=["elements", "channels", "alpha", "path"],
)
def test_units_are_what_draws_for_one_example(layer: nn.Module, units: int) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.randn(3, 2, 2, 2).double()
    found = exact(model, output="raw")(x)
    assert found.units == units
    propagated = dropkit.uncertainty.moments(model)(x)
    torch.testing.assert_close(found.arithmetic, propagated.mean)
    torch.testing.assert_close(found.variance, propagated.variance)


def test_rates_of_one_and_below_the_masks_resolution_draw_nothing() -> None:
    torch.manual_seed(0)
    layers = nn.Dropout(0.5), nn.Dropout(1e-12), nn.Linear(3, 4), nn.Dropout(1.0), nn.Linear(4, 2)
    model = nn.Sequential(*layers).double()
    found = exact(model, output="raw")(torch.randn(2, 3).double())
    assert found.units == 3
    torch.testing.assert_close(found.arithmetic, model[4].bias.detach().expand(2, 2))
    assert float(found.std.max()) < 1e-12


def test_constants_have_no_deviation() -> None:
    layers = nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(1.0), nn.Linear(4, 3)
    found = exact(nn.Sequential(*layers).double())(torch.randn(2, 4).double())
    assert float(found.std.max()) == 0.0
    torch.testing.assert_close(found.arithmetic, layers[3].bias.softmax(-1).expand(2, -1).detach(), check_dtype=False)


@pytest.mark.parametrize(
    "propagate", [dropkit.uncertainty.exact, dropkit.uncertainty.moments], ids=["exact", "moments"]
)
def test_a_model_that_keeps_nothing_is_refused(propagate: Any) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3), nn.Dropout(1.0))
    predict = propagate(model)
    predict(torch.ones(2, 4))
    model[0].p = 1.0
    with pytest.raises(
        ArgumentError, match=r"of what reaches 0, 2 nothing is kept \(p = 1\).* Give a site a rate below"
    ):
        predict(torch.ones(2, 4))


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = softmax_layer(0.5)

    def forward(self, x: Tensor, offset: Tensor | None = None, weight: Tensor | None = None) -> Any:
        h = self.inner(x if offset is None else x + offset)
        return h if weight is None else h * weight


def test_inputs_that_are_as_long_as_there_are_examples_by_chance() -> None:
    model, x = Weighted(), torch.randn(4, 8).double()
    weight, offset = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.randn(4, 8).double()
    found = exact(model, output="raw")(x, offset, weight=weight)
    expected = exact(model.inner, output="raw")(x + offset)
    torch.testing.assert_close(found.arithmetic, expected.arithmetic * weight)
    torch.testing.assert_close(found.variance, expected.variance * weight**2)
    one_each = exact(model, output="raw")(x, weight=weight[:, None])
    torch.testing.assert_close(one_each.std, exact(model.inner, output="raw")(x).std * weight[:, None])


def test_many_masks_are_taken_some_at_a_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.25), nn.Linear(14, 2)).double()
    x = torch.randn(3, 14).double()
    found = exact(model, output="raw")(x)
    torch.testing.assert_close(found.arithmetic, model.eval()(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, (x**2 / 3) @ (model[1].weight.detach() ** 2).T)


def test_float32_coincides_within_its_rounding() -> None:
    model = softmax_layer(0.5).float()
    found = exact(model)(torch.randn(5, 8))
    assert [each.coincide for each in found.differences] == [False, True, False]
    assert found.arithmetic.dtype == torch.float64


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    model[0].eval()
    exact(model)(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_prints_as_a_table() -> None:
    found = exact(softmax_layer(0.5))(torch.ones(1, 8).double())
    lines = str(found).splitlines()
    assert lines[0].startswith("2**8 = 256 subnetworks; standard deviation over masks: ")
    assert [line.split()[-1] for line in lines[1:]] == ["coincide", "no", "yes", "no"]
    assert str(exact(softmax_layer(0.5), output="raw")(torch.ones(1, 8).double())).endswith("yes")


def test_noise_that_is_no_mask_is_refused() -> None:
    model = nn.Sequential(dropkit.nn.GaussianDropout(0.5))
    with pytest.raises(
        UnsupportedError, match=r"exact: the noise of site .* is no mask that .* dropkit.uncertainty.mc"
    ):
        exact(model, output="raw")(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"model": 3}, ArgumentTypeError, "`model` must be a torch.nn.Module", id="model"),
        pytest.param(
            {"model": nn.Linear(8, 4).double()}, ArgumentError, "a model with active dropout", id="no_dropout"
        ),
        pytest.param({"output": "logits"}, ArgumentError, "`output` must be one of", id="output"),
        pytest.param({"output": None}, ArgumentError, "`output` must be one of", id="no_output"),
        pytest.param({"class_dim": 0}, ArgumentError, "`class_dim` must be an axis", id="first_axis"),
        pytest.param({"class_dim": 2}, ArgumentError, "`class_dim` must be an axis", id="axis"),
        pytest.param({"class_dim": 1.0}, ArgumentTypeError, "`class_dim` must be an integer", id="float_axis"),
        pytest.param({"limit": 255}, ArgumentError, r"at most 255 subnetworks, got '2\*\*8'", id="too_many"),
        pytest.param({"limit": 0}, ArgumentError, "`limit` must be an integer", id="limit"),
        pytest.param({"limit": math.nan}, ArgumentTypeError, "`limit` must be an integer", id="nan_limit"),
        pytest.param({"x": torch.zeros(0, 8).double()}, ArgumentError, "axis 0 of examples, 1 or more", id="empty"),
        pytest.param({"x": torch.tensor(1.0)}, ArgumentError, "axis 0 of examples, 1 or more", id="scalar"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": softmax_layer(0.5), "x": torch.ones(1, 8).double(), **arguments}
    model, x = given.pop("model"), given.pop("x")
    with pytest.raises(error, match=message):
        exact(model, **given)(x)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_recurrent_layers_is_refused_for_what_it_is(layer: type[nn.RNNBase]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = layer(4, 2, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.recurrent(x)[0][:, -1]
            return out

    what = f"between the layers of an? {layer.__name__}, whose masks exact cannot give. Sample instead"
    with pytest.raises(UnsupportedError, match=f"exact: site 'recurrent#0' is dropout {what}"):
        exact(Last(), output="raw")(torch.randn(2, 3, 4))


def test_dropout_in_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit.script is deprecated
        inner = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
        harmless = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    model = nn.Sequential(nn.Linear(4, 4), inner, nn.Dropout(0.25), nn.Linear(4, 2))
    with pytest.raises(UnsupportedError, match="exact: `1` is a TorchScript module that draws dropout"):
        exact(model)(torch.ones(1, 4))
    assert exact(nn.Sequential(nn.Dropout(0.25), harmless))(torch.ones(1, 4)).units == 4


def test_a_single_logit_has_no_softmax() -> None:
    model, x = rectified(outputs=1), torch.ones(2, 4).double()
    with pytest.raises(
        ArgumentError, match=r"exact: `output` must be .*, got .softmax. \(str\)\. Give output=.sigmoid"
    ):
        exact(model)(x)
    assert float(exact(model, output="sigmoid")(x).std.min()) > 0.0


def test_a_single_example_without_an_axis_of_examples_is_refused() -> None:
    for outputs in (3, 4):  # other than inputs, and as many
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, outputs))
        with pytest.raises(ArgumentError, match=r"\(4,\).* Give a single example x as x\[None\]"):
            exact(model)(torch.ones(4))


def test_a_call_without_inputs_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"got \[\] \(list\)\. Give what the model's forward takes"):
        exact(softmax_layer(0.5))()


def test_outputs_that_are_no_tensor_of_examples_are_refused() -> None:
    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return F.dropout(x, 0.5, self.training).sum(0)

    class Named(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"logits": F.dropout(x, 0.5, self.training)}

    rule = "floating tensor with as many examples as its input"
    shapes = r"of shape \(3,\) for inputs of shapes \[\(2, 3\)"
    for model, got in ((Summed(), f"torch.float32 {shapes}"), (Named(), r"'a dict' \(str\). Give a module whose")):
        with pytest.raises(ArgumentError, match=f"{rule}, got .*{got}"):
            exact(model)(torch.ones(2, 3))
