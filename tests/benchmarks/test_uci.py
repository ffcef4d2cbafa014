"""The benchmark on UCI sets: tables and splits are the published ones, and the stack trains and scores as written."""

import importlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.regression import data, networks
from dropkit.random import call_key, keep_mask

RATES = torch.tensor([0.1, 0.3, 0.1], dtype=torch.float64)
DECAY = torch.tensor([0.01, 0.0, 0.02], dtype=torch.float64)
SEEDS, ROWS, INPUTS, UNITS = [4, 4, 7], 150, 3, 5  # two batches: 128 rows, and 22


def table(name: str) -> np.ndarray:
    try:
        return np.column_stack(data.SETS[name].load())
    except data.NotInstalledError as error:
        pytest.skip(str(error))


def checksum(values: np.ndarray, dtype: str) -> int:
    return zlib.crc32(values.astype(dtype).tobytes())


# Tables and splits.


@pytest.mark.parametrize(("name", "found"), [("boston", 3331748890), ("concrete", 1675942459)])
def test_tables_are_the_papers_bit_for_bit(name: str, found: int) -> None:
    # Checksums of the tables of R: `Boston` of MASS, `concrete` of modeldata.
    assert checksum(table(name), "<f8") == found


def test_concrete_is_rounded_half_up() -> None:
    values = table("concrete")
    assert (values == np.round(values, 2)).all()
    assert (values[:, :8] == np.round(values[:, :8], 1)).all()
    assert (values[:, 0] == 238.1).sum() == 7  # 238.05 in the sheet


def test_wine_has_the_published_counts_of_each_quality() -> None:
    qualities, counts = np.unique(table("wine")[:, -1], return_counts=True)
    assert dict(zip(qualities.tolist(), counts.tolist(), strict=True)) == {3: 10, 4: 53, 5: 681, 6: 638, 7: 199, 8: 18}


def test_yacht_has_every_row_of_22_hulls_at_14_froude_numbers() -> None:
    values = table("yacht")
    froude, counts = np.unique(values[:, 5], return_counts=True)
    assert np.allclose(froude, np.linspace(0.125, 0.45, 14), rtol=0, atol=1e-12)
    assert (counts == 22).all()
    assert values[0].tolist() == [-2.3, 0.568, 4.78, 3.99, 3.17, 0.125, 0.11]  # no header, so no row is lost


def test_another_version_of_a_table_is_told() -> None:
    source = data.Source(lambda: np.zeros((3, 2)), (4, 2), (1.0,), data.Estimate(0, 0), data.Estimate(0, 0))
    with pytest.raises(ValueError, match=r"shape is \(3, 2\), not \(4, 2\)"):
        source.load()


@pytest.mark.parametrize("name", data.SETS)
def test_a_missing_package_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(data.NotInstalledError, match="python -m pip install"):
        data.SETS[name].load()


# Of the published index files, which this recipe was seen to reproduce: how many rows of a split train and test, the
# first that the first split tests and that the last trains on, and a checksum of all that are tested.
SPLITS = [
    ("boston", 455, 51, [431, 115, 470], [480, 216, 158], 3302913001),
    ("concrete", 927, 103, [87, 751, 655], [663, 364, 983], 2477735913),
    ("wine", 1439, 160, [505, 1445, 1255], [702, 834, 969], 199041052),
    ("yacht", 277, 31, [121, 115, 286], [122, 18, 305], 2469900984),
]


@pytest.mark.parametrize(("name", "trains", "tests", "first", "last", "found"), SPLITS, ids=[row[0] for row in SPLITS])
def test_splits_are_the_published_ones(
    name: str, trains: int, tests: int, first: list[int], last: list[int], found: int
) -> None:
    rows = data.SETS[name].shape[0]
    splits = data.splits(rows)
    assert len(splits) == 20
    assert {(len(train), len(test)) for train, test in splits} == {(trains, tests)}
    assert all(sorted(np.concatenate(split)) == list(range(rows)) for split in splits)
    assert splits[0][1][:3].tolist() == first
    assert splits[19][0][:3].tolist() == last
    assert checksum(np.concatenate([test for _, test in splits]), "<i8") == found


def test_the_last_fifth_of_the_training_rows_validates() -> None:
    train = data.splits(506)[0][0]
    fit, validation = data.split_validation(train)
    assert (len(fit), len(validation)) == (364, 91)
    assert np.concatenate([fit, validation]).tolist() == train.tolist()


# The stack.


def stack() -> networks.Networks:
    return networks.Networks(INPUTS, RATES, DECAY, SEEDS, UNITS, torch.float64)


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    x = torch.randn(len(SEEDS), ROWS, INPUTS, dtype=torch.float64)
    return x, x.sin().sum(2) + 0.1 * torch.randn(len(SEEDS), ROWS, dtype=torch.float64)


def masked(x: Tensor, which: int, of: str, place: str, stream: int) -> Tensor:
    """Drop out by the definition of the mask, as a network alone would."""
    p = float(RATES[which])
    key = call_key(SEEDS[which], f"{of}.{place}", 0)
    return torch.where(torch.from_numpy(keep_mask(key, x.shape, p, stream=stream)), x / (1 - p), 0.0)


def alone(weights: list[Tensor], x: Tensor, which: int, of: str, stream: int) -> Tensor:
    first, first_bias, last, last_bias = weights
    hidden = (masked(x, which, of, "input", stream) @ first + first_bias).relu()
    return (masked(hidden, which, of, "hidden", stream) @ last + last_bias).squeeze(1)


@pytest.mark.parametrize("which", range(3))
def test_a_network_of_the_stack_trains_as_it_would_alone(which: int, rows: tuple[Tensor, Tensor]) -> None:
    x, y = rows
    together = stack()
    weights = [torch.nn.Parameter(weight[which].detach().clone()) for weight in together.weights]
    decays = [2 * float(DECAY[which]), 0.0, 2 * float(DECAY[which]), 0.0]
    groups = [{"params": [weight], "weight_decay": decay} for weight, decay in zip(weights, decays, strict=True)]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    generator = np.random.default_rng(SEEDS[which])
    for epoch in range(12):
        order = torch.from_numpy(generator.permuted(np.arange(ROWS)))
        for number, batch in enumerate(order.split(128)):
            found = alone(weights, x[which, batch], which, "train", 2 * epoch + number)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(found, y[which, batch]).backward()
            optimizer.step()
    began = [weight[which].detach().clone() for weight in together.weights]
    together.train(x, y, 12)
    for weight, start, reference in zip(together.weights, began, weights, strict=True):
        assert torch.allclose(weight[which], reference, rtol=0, atol=1e-9)  # the scale is that of a rate in 32 bits
        assert not torch.allclose(start, reference, rtol=0, atol=1e-3)


def test_networks_of_one_seed_differ_by_their_rates_alone() -> None:
    first, _, last, _ = stack().weights
    assert torch.equal(first[0], first[1])
    assert torch.equal(last[0], last[1])
    assert not torch.equal(first[0], first[2])
    ones = torch.ones(3, 200, INPUTS, dtype=torch.float64)
    keys = stack().keys("train")
    low, high, _ = networks.dropout(ones, RATES, key=keys[0], stream=3) > 0
    assert (low >= high).all()
    assert (low > high).any()


def test_weights_begin_within_the_bound_of_glorot() -> None:
    first, first_bias, last, last_bias = (weight.detach() for weight in stack().weights)
    assert float(first.abs().max()) <= math.sqrt(6 / (INPUTS + UNITS))
    assert float(last.abs().max()) <= 1
    assert float(first.abs().max()) > 0.5
    assert not first_bias.any()
    assert not last_bias.any()


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_scores_are_those_of_all_samples_by_the_formula(
    at_once: int, rows: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "_UNITS_AT_ONCE", at_once * len(SEEDS) * ROWS * UNITS)
    x, y = rows
    together, passes = stack(), 7
    center, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 3.0, 0.5])
    precisions = torch.tensor([[0.5, 0.1, 4.0], [1.0, 0.2, 900.0]])
    found = networks.score(together, x, y, center, scale, precisions, passes)
    for which in range(3):
        weights = [weight[which].detach() for weight in together.weights]
        samples = []
        for number, count in enumerate([at_once] * (passes // at_once) + [passes % at_once] * (passes % at_once > 0)):
            outputs = alone(weights, x[which].repeat(count, 1), which, "sample", number + 1)
            samples.append(outputs.view(count, ROWS) * scale[which] + center[which])
        drawn = torch.cat(samples)
        assert len(drawn) == passes
        error = (drawn.mean(0) - y[which]).square().mean().sqrt()
        assert torch.allclose(found.rmse[which], error, rtol=1e-8)
        for row, precision in enumerate(precisions[:, which].double()):
            density = torch.distributions.Normal(drawn, precision**-0.5).log_prob(y[which])
            likelihood = (density.logsumexp(0) - math.log(passes)).mean()
            assert torch.allclose(found.likelihood[row, which], likelihood, rtol=1e-8)
        first, first_bias, last, last_bias = weights
        plain = ((x[which] @ first + first_bias).relu() @ last + last_bias).squeeze(1) * scale[which] + center[which]
        assert torch.allclose(found.weight_scaled_rmse[which], (plain - y[which]).square().mean().sqrt(), rtol=1e-8)


# The script.


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module("uci")


def test_parts_are_standardised_by_the_rows_to_train_on(script: ModuleType) -> None:
    inputs = np.arange(12.0).reshape(6, 2)
    inputs[:, 1] = 5.0  # constant: centred, and left at its scale
    part = script.Part((inputs, np.arange(6.0)), [np.array([0, 1, 2])], [np.array([5])])
    spread = math.sqrt(2 / 3)
    assert part.targets[0].tolist() == pytest.approx([-1 / spread, 0, 1 / spread])
    assert part.inputs[0, :, 0].tolist() == pytest.approx([-1 / spread, 0, 1 / spread])
    assert part.inputs[0, :, 1].tolist() == [0, 0, 0]
    assert part.other_inputs[0, 0].tolist() == pytest.approx([4 / spread, 0])
    assert part.other_targets.tolist() == [[5]]


@pytest.mark.parametrize(("is_loss", "likelihood", "verdict"), [(True, -1.29, "met"), (False, -1.31, "MISSED")])
def test_a_bar_is_met_within_two_standard_errors(
    is_loss: bool, likelihood: float, verdict: str, script: ModuleType
) -> None:
    found = script.Estimate(0.62, 0.05)
    assert script.errors_worse(found, script.Estimate(0.52, 9.0), is_loss) == pytest.approx(2 if is_loss else -2)
    around = [likelihood + shift for shift in (-0.04, 0.0, 0.04)]  # a standard error of 0.023; published is -1.25
    result = script.Result([0.6, 0.7, 0.8], around, [0.7] * 3, [0.1] * 3, [0.75] * 3, 1.0)
    assert verdict in script.row("yacht", result, False)
    assert verdict not in script.row("yacht", result, True)


def test_an_estimate_is_the_mean_and_its_standard_error(script: ModuleType) -> None:
    found = script.estimate([1.0, 2.0, 6.0])
    assert found.mean == pytest.approx(3)
    assert found.error == pytest.approx(math.sqrt(7 / 3))  # the variance is 14 / 2


def test_the_script_prints_a_row_and_reads_it_again_from_its_cache(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table("yacht")
    monkeypatch.setattr("sys.argv", ["uci.py", "--quick", "--cache", str(tmp_path / "cache")])
    script.main()
    first = capsys.readouterr().out
    assert "3 splits, 20 epochs, 100 passes" in first
    assert "\nyacht " in first
    assert "boston" not in first
    assert str(tmp_path) not in first
    [kept] = (tmp_path / "cache").iterdir()
    assert kept.name == "yacht-3-20-100.json"
    monkeypatch.setattr(script, "measured", lambda *_: pytest.fail("measured again"))
    script.main()
    assert capsys.readouterr().out == first


def test_the_script_leaves_out_a_set_that_is_not_installed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["uci.py", "--quick", "--sets", "boston", "wine"])
    with pytest.raises(SystemExit) as ended:  # which proves nothing
        script.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.count("left out: no package") == 2
