"""Moments of passes are those of PyTorch's formulas however the passes come, and so is the jackknife."""

import math

import pytest
import torch

from dropkit.uncertainty.results.elements import Elements
from dropkit.uncertainty.results.moments import Moments, by_rows, jackknife, leave_out

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
CHUNKS = {
    "one": [50],
    "single": [1] * 50,
    "as-groups": [8] * 6 + [2],
    "uneven": [3, 13, 1, 20, 0, 8, 5],
}


def passes(*shape: int, n: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + n)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64) * 3 + 7


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("groups", [1, 3, 8, 64])
def test_moments_are_those_of_all_passes_in_any_chunks(chunks, groups):
    values = passes(4, 3)
    moments = Moments(groups)
    for chunk in values.split(CHUNKS[chunks]):
        moments.add(chunk)
    assert sum(moments.sizes) == moments.n == 50
    found = moments.subsets()
    torch.testing.assert_close(found.mean[0], values.mean(0), **CLOSE)
    torch.testing.assert_close(found.variance[0], values.var(0), **CLOSE)
    torch.testing.assert_close(moments.mean_and_error()[0], values.mean(0), **CLOSE)
    torch.testing.assert_close(moments.mean_and_error()[1], values.std(0) / math.sqrt(50), **CLOSE)
    used = min(groups, 50)
    assert len(found.mean) == (used + 1 if used > 1 else 1)
    for group in range(used if used > 1 else 0):
        others = values[torch.arange(50) % groups != group]
        torch.testing.assert_close(found.mean[group + 1], others.mean(0), **CLOSE)
        torch.testing.assert_close(found.variance[group + 1], others.var(0), **CLOSE)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4), slice(3, 9)])
def test_moments_of_some_rows(rows):
    values = passes(4, 3)
    moments = Moments(8)
    moments.add(values)
    torch.testing.assert_close(moments.subsets(rows).variance[0], values[:, rows].var(0), **CLOSE)


def test_small_deviations_from_a_large_mean_survive():
    generator = torch.Generator().manual_seed(0)
    values = (100 + 1e-3 * torch.randn(64, 1000, generator=generator)).float()
    elements = Elements(values[0], 8)
    for chunk in values.split(7):
        elements.add(chunk)
    std = elements.found()["std"][0]
    torch.testing.assert_close(std, values.double().std(0).float(), rtol=1e-6, atol=0)
    naive = (values.square().mean(0) - values.mean(0).square()) * 64 / 63
    assert (naive < 0).float().mean() > 0.2, "the formula that must not be used would have passed this test"


def test_the_jackknife_of_a_mean_over_single_passes_is_its_standard_error():
    values = passes(6)
    total = values.sum(0, keepdim=True)
    subsets = torch.cat([total / 50, (total - values) / 49])
    torch.testing.assert_close(jackknife(subsets, [1] * 50), values.std(0) / math.sqrt(50), **CLOSE)


def test_the_jackknife_weighs_groups_by_their_sizes():
    """The formula as it is printed, with a loop for every sum."""
    values = passes(n=50)
    sizes = [len(range(group, 50, 8)) for group in range(8)]
    without = [values[torch.arange(50) % 8 != group].std() for group in range(8)]
    h = [50 / size for size in sizes]
    estimate = 8 * values.std() - sum((1 - size / 50) * each for size, each in zip(sizes, without, strict=True))
    pseudo = [each * values.std() - (each - 1) * left for each, left in zip(h, without, strict=True)]
    variance = sum((one - estimate) ** 2 / (each - 1) for one, each in zip(pseudo, h, strict=True)) / 8
    found = jackknife(torch.stack([values.std(), *without]), sizes)
    torch.testing.assert_close(found, variance.sqrt(), **CLOSE)


def test_one_group_has_no_error():
    assert jackknife(torch.ones(1, 3), [5]).isnan().all()


def test_counts_of_all_groups_but_one():
    counts = torch.arange(6).view(3, 2)
    assert leave_out(counts).tolist() == [[6, 9], [6, 8], [4, 6], [2, 4]]
    assert leave_out(counts[:1]).tolist() == [[0, 1]]


def test_statistics_of_many_rows_are_computed_in_bounded_parts():
    seen = []

    def compute(rows):
        seen.append(rows)
        return {"x": torch.arange(10)[rows]}

    assert by_rows(10, 2**18, compute)["x"].tolist() == list(range(10))
    assert [rows.start for rows in seen] == [0, 4, 8]
    assert len(by_rows(0, 5, lambda rows: {"x": torch.empty(0)[rows]})["x"]) == 0


@pytest.mark.parametrize("chunks", [[25], [1] * 25, [9, 16]], ids=["one", "single", "uneven"])
def test_infinite_and_missing_numbers_are_those_of_a_plain_mean(chunks):
    inf, nan = math.inf, math.nan
    values = torch.tensor([[inf, 1.0, -inf, 1.0, nan]] + [[inf, inf, -inf, 2.0, 1.0]] * 24, dtype=torch.float64)
    values[17:, 1] = 1.0
    elements = Elements(values[0], 8)
    for chunk in values.split(chunks):
        elements.add(chunk)
    mean, std = (elements.found()[name][0] for name in ("mean", "std"))
    assert mean.tolist()[:4] == [inf, inf, -inf, 1.96]
    assert mean[4].isnan()
    assert std.isnan().tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float64),
        (torch.uint8, torch.float64),
        (torch.bool, torch.float64),
    ],
)
def test_numbers_of_every_type(dtype, expected):
    values = (passes(5) > 6.5).to(dtype)
    elements = Elements(values[0], 8)
    elements.add(values)
    found = elements.found()
    assert all(each.dtype == expected for pair in found.values() for each in pair)
    torch.testing.assert_close(found["mean"][0], values.double().mean(0).to(expected))
    torch.testing.assert_close(found["std"][0], values.double().std(0).to(expected))


def test_complex_numbers_have_the_spread_of_their_distance_from_the_mean():
    values = torch.complex(passes(5), passes(5, n=50).flip(1))
    elements = Elements(values[0], 8)
    for chunk in values.split(9):
        elements.add(chunk)
    found = elements.found()
    mean = values.mean(0)
    torch.testing.assert_close(found["mean"][0], mean, **CLOSE)
    std = ((values - mean).abs().square().sum(0) / 49).sqrt()
    torch.testing.assert_close(found["std"][0], std, **CLOSE)
    torch.testing.assert_close(found["mean"][1], std / math.sqrt(50), **CLOSE)
