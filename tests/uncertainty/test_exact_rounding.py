"""When means of all subnetworks are said to coincide, in types of any accuracy and elements of any size."""

import math
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from dropkit.uncertainty import exact
from dropkit.uncertainty.subnetworks.rounding import measured

HALVES = [torch.float16, torch.bfloat16]


def network(*between: nn.Module, p: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(p), nn.Linear(4, 6), *between, nn.Linear(6, 2))


def batch(examples: int = 3, features: int = 4) -> Tensor:
    return torch.randn(examples, features, generator=torch.Generator().manual_seed(1))


def said(model: nn.Module, x: Tensor, output: str = "raw") -> list[bool | None]:
    return [each.coincide for each in exact(model, output=output)(x).differences]


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1.0, 1e5, 1e30])
@pytest.mark.parametrize("is_linear", [True, False], ids=["linear", "rectified"])
def test_the_size_of_outputs_does_not_matter(is_linear: bool, scale: float) -> None:
    model = network(*() if is_linear else (nn.ReLU(),))
    with torch.no_grad():
        model[-1].weight *= scale
        model[-1].bias *= scale
    assert said(model, batch()) == [is_linear]


@pytest.mark.parametrize("bias", [1.0, 1e2, 1e5, 1e8])
def test_a_large_element_hides_no_difference_in_another(bias: float) -> None:
    model = network(nn.ReLU())
    with torch.no_grad():
        model[-1].bias[0] += bias
    assert said(model, batch()) == [False]


def test_a_difference_within_rounding_that_matters_is_not_said_to_be_none() -> None:
    model, x = network(nn.ReLU()), batch()
    with torch.no_grad():
        model[-1].bias += 1e6
    found = exact(model, output="raw")(x)
    [difference] = found.differences
    assert difference.coincide is None
    assert str(found).splitlines()[-2].endswith("unclear")
    assert str(found).endswith("rounding in torch.float32 may hide a difference; give the model in torch.float64")
    assert said(model.double(), x.double()) == [False]


def test_float64_tells_that_means_coincide_where_float32_cannot() -> None:
    model, x = network(), batch()
    with torch.no_grad():
        model[-1].bias += 1e6
    assert said(model, x) == [None]
    assert said(model.double(), x.double()) == [True]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_coarse_types_say_what_they_cannot_tell(dtype: torch.dtype) -> None:
    """The arithmetic mean of a softmax layer is off by some hundredths, which is what rounding makes of logits here."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), batch()
    assert said(model.double(), x.double(), "softmax") == [False, True, False]
    in_type = said(model.to(dtype), x.to(dtype), "softmax")
    assert in_type[1] is None
    assert True not in in_type


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_coarse_types_tell_what_they_can(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1), nn.ReLU())  # 0 or 4, and 1 or -1 in evaluation
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, -2.0]]))
        model[1].bias.zero_()
    assert said(model.to(dtype), torch.ones(1, 2, dtype=dtype)) == [False]


def test_an_output_in_float32_of_a_coarse_model_is_taken_for_coarse() -> None:
    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.bfloat16()).float()
            return out

    found = exact(Widened(), output="raw")(batch())
    assert found.dtype is torch.bfloat16
    assert found.differences[0].coincide is None


class Rounded(nn.Module):
    """A softmax layer that computes in bfloat16, of which neither its parameters nor its output tell."""

    def __init__(self, *, is_autocast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.is_autocast = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 3)), is_autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_autocast):
            out: Tensor = self.inner(x if self.is_autocast else x.bfloat16().float()).bfloat16().float()
        return out


@pytest.mark.parametrize("is_autocast", [True, False], ids=["autocast", "rounded"])
def test_a_coarse_type_within_is_seen(is_autocast: bool) -> None:
    found = exact(Rounded(is_autocast=is_autocast))(batch())
    assert found.dtype is torch.bfloat16
    assert found.differences[1].coincide is None


class Shifted(nn.Module):
    """A linear network with large values inside that cancel: of a bias, of statistics, or of a number in the code."""

    def __init__(self, offset: float, *, is_constant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.drop, self.first, self.norm, self.last = (
            nn.Dropout(0.5),
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
        )
        self.offset, self.is_constant = offset, is_constant
        if not is_constant:
            with torch.no_grad():
                self.first.bias += offset
                self.norm.running_mean += offset

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        if self.is_constant:
            x = self.first(x + self.offset) - self.first(torch.full_like(x, self.offset))
        else:
            x = self.norm(self.first(x))
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize("is_constant", [True, False], ids=["constant", "parameters"])
@pytest.mark.parametrize("offset", [1e2, 1e3, 1e4, 1e5])
def test_values_that_cancel_inside_make_no_difference(offset: float, is_constant: bool) -> None:
    model, x = Shifted(offset, is_constant=is_constant), batch()
    for output, number in (("raw", 0), ("softmax", 1)):
        in_float32 = said(model.float(), x, output)[number]
        assert in_float32 is None if offset == 1e5 else in_float32 is not False
        assert said(model.double(), x.double(), output)[number] is True


@pytest.mark.parametrize("offset", [0.1, 1e2, 1e3])
def test_values_that_cancel_inside_hide_no_large_difference(offset: float) -> None:
    model = nn.Sequential(Shifted(offset, is_constant=False), nn.ReLU(), nn.Linear(2, 2))
    assert said(model, batch()) == [False]


def test_rounding_is_measured_the_same_every_time_and_leaves_all_as_it_was() -> None:
    model, x = Shifted(1e3, is_constant=False), batch()
    before, state = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    one, other = exact(model, output="raw")(x), exact(model, output="raw")(x)
    assert torch.equal(one.rounding, other.rounding)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_measured_rounding_is_that_of_the_type(dtype: torch.dtype) -> None:
    """A product is changed by up to eps in either factor and in itself: at most 3 eps of the sum of sizes, together."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 1, bias=False).to(dtype), batch(8).to(dtype)

    def run(within: AbstractContextManager[Any]) -> Tensor:
        with within:
            found: Tensor = layer(x)[None]
        return found

    with torch.no_grad():
        found = measured(run, dtype)
        sizes = (x.abs() @ layer.weight.abs().T).double()
    relative = (found.measured / sizes / torch.finfo(dtype).eps).flatten()
    assert found.kind is dtype
    assert 0.1 < float(relative.median()) <= float(relative.max()) < 3.5


def test_inputs_of_a_coarser_type_than_the_models_are_taken_as_they_are() -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network().double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.double() + 1e6)
            return out

    found = exact(Widening(), output="raw")(batch())
    assert found.dtype is torch.float64
    assert found.differences[0].coincide is True


def test_a_model_that_checks_its_values_is_taken_as_other_models_are() -> None:
    class Checking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(x, 0.5, self.training)
            if not torch.equal(h + 0.1, h + 0.1):
                raise ValueError("rounded in another way")
            return h + 0.1

    assert said(Checking(), batch()) == [True]


def test_autocast_is_taken_for_coarse() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert exact(network(), output="raw")(batch()).dtype is torch.bfloat16


class WithConstants(nn.Module):
    """Outputs of which one never changes, and one is never a number that could."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        row = torch.ones(len(x), 1)
        return torch.cat([self.inner(x), 1e6 * row / 3, -torch.inf * row], -1)


@pytest.mark.parametrize("output", ["raw", "softmax"])
def test_elements_that_no_mask_changes_coincide(output: str) -> None:
    found = exact(WithConstants(), output=output)(batch())
    assert True in [each.coincide for each in found.differences]
    assert not torch.isnan(found.arithmetic).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_linear_networks_coincide_in_any_type_that_can_tell(p: float, depth: int, dtype: torch.dtype) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        widths = [6, *[32] * (depth - 1), 4]
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        model = nn.Sequential(nn.Dropout(p), *layers).to(dtype)
        x = batch(4, 6).to(dtype)
        assert said(model, x) == [True]
        assert said(model, x, "softmax")[1] is True


def test_saturated_probabilities_are_told_apart_by_their_own_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight *= 1e4
    assert said(model, batch(), "softmax") == [False, True, False]


class MaskedOut(nn.Module):
    """A softmax layer of four classes, of which some have a number in the place of their logit."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner, self.value = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)), value

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).masked_fill(torch.tensor([False, False, True, False]), self.value)


@pytest.mark.parametrize("value", [-1e3, -1e4, -1e9, -1e30, torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_classes_that_are_masked_out_hide_nothing(dtype: torch.dtype, value: float) -> None:
    torch.manual_seed(0)
    model = MaskedOut(value).to(dtype)
    found = exact(model)(batch().to(dtype))
    assert [each.coincide for each in found.differences] == [False, True, False]
    first, others = found.arithmetic[:, 2], found.arithmetic[:, [0, 1, 3]]
    rest = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).to(dtype)
    with torch.no_grad():
        rest[1].weight.copy_(model.inner[1].weight[[0, 1, 3]])
        rest[1].bias.copy_(model.inner[1].bias[[0, 1, 3]])
    torch.testing.assert_close(others, exact(rest)(batch().to(dtype)).arithmetic, rtol=1e-5, atol=1e-5)
    assert float(first.max()) < 1e-100


def test_the_least_of_float64_masks_out_too() -> None:
    torch.manual_seed(0)
    found = exact(MaskedOut(torch.finfo(torch.float64).min).double())(batch().double())
    assert [each.coincide for each in found.differences] == [False, True, False]
    assert not torch.isnan(found.std).any()


def test_a_class_that_is_likely_in_few_subnetworks_counts() -> None:
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = F.dropout(x, 0.5, self.training)
            return torch.cat([h, 1e8 * h[:, :1] - 5e7], -1)  # 3e8 where the first unit is kept

    assert None in said(Rare(), torch.tensor([[2.0, 1e-3, 2e-3]]), "softmax")


def test_the_advice_is_not_float64_where_that_is_the_type() -> None:
    model = network().double()
    with torch.no_grad():
        model[-1].bias += 1e12
    found = str(exact(model, output="raw")(batch().double()))
    assert "unclear: rounding in torch.float64 may hide a difference; outputs are too large beside" in found
    assert "give the model" not in found


def test_what_is_no_number_never_coincides() -> None:
    x = batch()
    x[1] = torch.nan
    assert said(network(), x) == [None]
    assert said(network(nn.ReLU()), x) == [False]  # the other examples tell
    found = exact(network(), output="raw")(x * torch.nan)
    assert str(found).endswith("unclear: some outputs are no numbers; see whether inputs and weights are finite")
    assert all(math.isnan(each.largest) for each in found.differences)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("output", ["softmax", "sigmoid", "raw"])
def test_examples_whose_outputs_are_no_numbers_hide_no_difference_in_others(output: str, value: float) -> None:
    model, x = network(nn.ReLU()).double(), batch().double()
    x[1] = value
    found, finite = exact(model, output=output)(x), exact(model, output=output)(x[[0, 2]])
    for one, other in zip(found.differences, finite.differences, strict=True):
        assert one.largest == pytest.approx(other.largest, rel=1e-9, abs=1e-15)
        assert one.divergence == (other.divergence and pytest.approx(other.divergence, rel=1e-9, abs=1e-15))
        assert one.coincide == (other.coincide and None)  # what is left out may hide one
    heads, *_, note = str(found).splitlines()
    assert heads == str(finite).splitlines()[0]
    what = "left out: 1 of 3 examples, whose outputs are not all numbers"
    assert note == f"{what}; see whether inputs and weights are finite"


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_divergence_is_that_of_distributions(output: str) -> None:
    found = exact(network(nn.ReLU()).double(), output=output)(batch().double())
    kind = Categorical if output == "softmax" else Bernoulli
    expected = kl_divergence(kind(probs=found.arithmetic), kind(probs=found.weight_scaling)).mean()
    assert found.differences[0].divergence == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_divergence_is_never_negative(output: str) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).double()
        found = exact(model, output=output)(batch().double())
        assert all(each.divergence is not None and each.divergence >= 0 for each in found.differences)
        assert found.differences[1].divergence == pytest.approx(0.0, abs=1e-25)


def test_results_are_compared_as_objects() -> None:
    predict, x = exact(network()), batch()
    one, other = predict(x), predict(x)
    assert one == one
    assert one != other
    assert one.differences == other.differences
