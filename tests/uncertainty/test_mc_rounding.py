"""Whether passes that ran together are single ones: told from rounding in every type, beside constants of any size."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from dropkit.uncertainty import mc
from dropkit.uncertainty.engine.comparing import difference
from dropkit.uncertainty.engine.inputs import Output

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TYPES = HALF | {"float32": torch.float32, "float64": torch.float64}
SHAPES = [(40, 1), (6, 3), (4, 12), (3, 7, 16), (2, 3, 4, 5), (20,)]


def passes(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(*shape, generator=generator)
    return [(common + torch.randn(*shape, generator=generator) / 2).to(dtype) for _ in range(2)]


def why(joined: Tensor, single: list[Tensor], precision: float = 0.0) -> str:
    outputs = [Output.of(each) for each in single]
    for each in outputs:
        each.precision = precision
    return difference(Output.of(joined), outputs)


def rounded(values: Tensor, units: float) -> Tensor:
    """Return values that are off by some units in the last place of about 1."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (values.double() + units * torch.finfo(values.dtype).eps * noise).to(values.dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_is_no_difference(dtype: str, shape: tuple[int, ...]) -> None:
    single = passes(shape, TYPES[dtype])
    assert why(rounded(torch.cat(single), 3), single) == ""


@pytest.mark.parametrize(("dtype", "wide"), [("float32", torch.float64), ("bfloat16", torch.float32)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_is_that_of_what_computes(dtype: str, wide: torch.dtype, shape: tuple[int, ...]) -> None:
    """Outputs that are converted to another type at the end have the rounding of the one before."""
    single, eps = passes(shape, TYPES[dtype]), torch.finfo(TYPES[dtype]).eps
    joined, single = rounded(torch.cat(single), 3).to(wide), [each.to(wide) for each in single]
    assert why(joined, single, eps) == ""
    assert "has other values" in why(joined, single)
    assert "has other values" in why(torch.cat(single[::-1]), single, eps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_of_another_pass_are_a_difference_also_in_one_example(dtype: str, shape: tuple[int, ...]) -> None:
    single = passes(shape, TYPES[dtype])
    assert "has other values" in why(torch.cat(single[::-1]), single)
    joined = torch.cat(single)
    joined[: max(1, shape[0] // 4)] = single[1][: max(1, shape[0] // 4)]
    assert "has other values" in why(joined, single)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("constant", [-1e4, "min", "-inf"])
def test_large_constants_hide_no_difference(dtype: str, constant: float | str) -> None:
    kind = TYPES[dtype]
    value = torch.finfo(kind).min if constant == "min" else float(constant)
    single = [each.masked_fill(torch.eye(5, 12).bool(), value) for each in passes((4, 5, 12), kind)]
    assert why(torch.cat(single), single) == ""
    assert "has other values" in why(torch.cat(single[::-1]), single)
    columns = [torch.cat([each, each.new_full((4, 5, 2), value)], 2) for each in single]
    assert why(torch.cat(columns), columns) == ""
    assert "has other values" in why(torch.cat(columns[::-1]), columns)


def test_what_no_mask_changes_is_compared_at_its_own_scale() -> None:
    single = [torch.cat([each, torch.full((4, 2), 1e-3)], 1) for each in passes((4, 12), torch.float32)]
    joined = torch.cat(single)
    assert why(joined, single) == ""
    joined[0, -1] *= 1.01
    assert "has other values" in why(joined, single)


def test_infinities_have_a_sign() -> None:
    single = passes((4, 12), torch.float32)
    for each in single:
        each[0, 0], each[1, 1] = float("inf"), float("nan")
    joined = torch.cat(single)
    assert why(joined, single) == ""
    joined[0, 0] *= -1
    assert "has other values" in why(joined, single)


class Recurrent(nn.Module):
    """Takes sequences with time first, so that passes beside one another along axis 0 are one long sequence."""

    def __init__(self, fill: float | None) -> None:
        super().__init__()
        self.drop, self.gru, self.head, self.fill = nn.Dropout(0.5), nn.GRU(8, 16), nn.Linear(16, 3), fill

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.gru(self.drop(x))[0])
        allowed = torch.tensor([True, True, False])
        return y if self.fill is None else y.masked_fill(~allowed, self.fill)


@pytest.mark.parametrize("fill", [None, -1e4, -3e38], ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_time_is_not_taken_for_examples(dtype: str, fill: float | None) -> None:
    if dtype == "float16" and fill is not None:
        fill = -6e4
    torch.manual_seed(0)
    model, x = Recurrent(fill).to(TYPES[dtype]), torch.randn(10, 1, 8).expand(10, 4, 8).to(TYPES[dtype])
    result = mc(model, 9, seed=0, masks="shared", keep_samples=True)(x)
    assert torch.equal(result.samples, result.samples[:, :, :1].expand_as(result.samples))
    assert float(result.samples[..., :2].std(0).max()) > 0


class Rolled(nn.Module):
    """Adds the example before, beside a column that hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([y + y.roll(1, 0), 1e4 * x[:, :1]], 1)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_large_column_hides_no_difference_beside_it(dtype: str) -> None:
    torch.manual_seed(0)
    model, x = Rolled().to(TYPES[dtype]), torch.randn(6, 8).to(TYPES[dtype])
    with pytest.warns(UserWarning, match="belong to places .* has other values where passes run together"):
        found = mc(model, 9, seed=0, keep_samples=True)(x)
    with pytest.warns(UserWarning, match="belong to places"):
        looped = mc(model, 9, seed=0, engine="loop", keep_samples=True)(x)
    assert torch.equal(found.samples, looped.samples)


MODELS = {
    "mlp": (
        lambda: nn.Sequential(
            *(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1)),
            nn.Linear(64, 1),
        ),
        (9, 16),
    ),
    "cnn": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(8, 8, 3)),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 64, 10)),
        ),
        (4, 3, 12, 12),
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (3, 5, 16)),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MODELS)
def test_right_models_run_together_in_half_precision(name: str, dtype: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = build().to(HALF[dtype]), torch.randn(shape).to(HALF[dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mc(model, 5, seed=0)(x).facts["engine"] == "prefix"


class Converted(nn.Module):
    """Computes in the type of its parameters, and returns another."""

    def __init__(self, wide: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.2), nn.Linear(512, 512), nn.Linear(512, 3)
        )
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).to(self.wide)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize(("dtype", "wide"), [("float32", torch.float64), ("bfloat16", torch.float32)])
def test_models_that_return_another_type_run_together(dtype: str, wide: torch.dtype, rows: int) -> None:
    model, x = Converted(wide).to(TYPES[dtype]), torch.randn(rows, 64).to(TYPES[dtype])
    result = mc(model, 5, seed=0)(x)
    assert result.facts["engine"] == "prefix"
    assert result.mean.dtype == wide
