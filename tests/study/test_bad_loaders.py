"""Functions that load rows and are at fault: refused before a run begins, and told apart from methods during one."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError, DataError
from dropkit.study import Budget, Dataset
from dropkit.study.own import check_network

pytestmark = pytest.mark.usefixtures("light_studies")

SMALL = Budget(
    "small", epochs=3, batch_size=32, test_rows=100, train_rows=200, inner_rows=60, validation_rows=100,
    confirmation_seeds=2, methods=("dropout",), strengths=2,
)  # fmt: skip


def network(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))


def one_number(p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 1))


def sliced(x: Tensor, y: Tensor) -> Callable[[list[list[int]], bool], Any]:
    return lambda batches, _: ((x[batch], y[batch]) for batch in batches)


def like(data: Dataset, load: Any) -> Dataset:
    return Dataset.from_loader(data.name, data.title, load=load, targets=data.targets)


@pytest.fixture(scope="module")
def x(toy: Dataset) -> Tensor:
    return torch.from_numpy(toy.inputs)


@pytest.fixture(scope="module")
def y(toy: Dataset) -> Tensor:
    return torch.from_numpy(toy.targets)


def forgets(x: Tensor, y: Tensor) -> Any:
    generator = np.random.default_rng(0)

    def load(batches: list[list[int]], training: bool) -> Any:
        noise = training * generator.normal()
        return ((x[batch] + noise, y[batch]) for batch in batches)

    return load


def once(x: Tensor, y: Tensor) -> Any:
    kept: list[Any] = []

    def load(batches: list[list[int]], training: bool) -> Any:
        kept.append(sliced(x, y)(batches, training))
        return kept[0]

    return load


def each(pair: Callable[[list[int]], Any]) -> Any:
    return lambda batches, _: (pair(batch) for batch in batches)


def in_files(x: Tensor, y: Tensor) -> Any:
    class Missing(TensorDataset):
        def __getitem__(self, row: int) -> Any:
            raise FileNotFoundError(f"no picture {row}")

    return lambda batches, _: DataLoader(Missing(x, y), batch_sampler=batches, num_workers=1)


_ENDS = r"ends before batch 1 of 2, training=True\. Every call must give one pair for each list of `batches`"
BAD: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "takes no arguments": (lambda x, y: lambda: 0, r"fails with training=True: TypeError: .*called as load\(batch"),
    "fails": (lambda x, y: lambda b, t: b[9], r"fails with training=True: IndexError: list index out of ra"),
    "fails in a batch": (lambda x, y: each(lambda b: (x[b], y[b[99]])), r"fails at batch 1 of 2, .*: IndexError"),
    "fails in a worker": (in_files, r"Error: Caught .* in DataLoader worker process 0\. \.\.\. FileNotFoundError: no"),
    "nothing": (lambda x, y: lambda b, t: None, r"gives None, which holds no batches\. .*batch_sampler=batches"),
    "one batch": (lambda x, y: lambda b, t: sliced(x, y)(b[:1], t), r"ends before batch 2 of 2, training=True"),
    "a batch too many": (lambda x, y: lambda b, t: sliced(x, y)([*b, b[0]], t), r"goes on after the last batch of 2"),
    "without end": (lambda x, y: lambda b, t: sliced(x, y)(itertools.cycle(b), t), "goes on after the last batch"),
    "one iterator for all calls": (once, _ENDS),
    "no pair": (lambda x, y: each(lambda b: x[b]), r"gives tensor\(.* as batch 1 of 2.*must be a pair"),
    "three": (lambda x, y: each(lambda b: (x[b], y[b], b)), r"must be a pair \(inputs, targets\)"),
    "a dictionary": (lambda x, y: each(lambda b: {"x": x[b], "y": y[b]}), "must be a pair"),
    "no tensor": (lambda x, y: each(lambda b: ({"a": [x[b], "b"]}, y[b])), r"inputs\['a'\]\[1\] of type str"),
    "an array": (lambda x, y: each(lambda b: (x[b].numpy(), y[b])), "inputs of type ndarray; a network gets dense"),
    "no inputs": (lambda x, y: each(lambda b: ([], y[b])), r"inputs without a tensor, \[\]"),
    "another number of rows": (lambda x, y: each(lambda b: (x[b[1:]], y[b])), r"inputs of shape \(31, 6\); .* the 32"),
    "batches of its own": (
        lambda x, y: lambda b, t: DataLoader(TensorDataset(x, y), batch_size=16), r"inputs of shape \(16, 6\)"
    ),
    "NaN": (lambda x, y: each(lambda b: (x[b] / 0, y[b])), r"inputs with NaN or infinity\. .*all of it finite"),
    "no targets": (lambda x, y: each(lambda b: (x[b], None)), "targets of type NoneType"),
    "one-hot targets": (
        lambda x, y: each(lambda b: (x[b], nn.functional.one_hot(y[b]))), r"targets of shape \(32, 3\), not \(32,\)"
    ),
    "another order": (lambda x, y: each(lambda b: (x[sorted(b)], y[sorted(b)])), r"another target for row \d+: \d, "),
    "the first rows": (lambda x, y: lambda b, t: sliced(x, y)([[*range(32)]], t), "another target for row"),
    "a generator of its own": (forgets, r"called again with training=True\. Draw random .* global generators"),
    "chance in evaluation": (
        lambda x, y: each(lambda b: (x[b] + torch.randn(6), y[b])), "called again with training=False. Leave augment"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("load", "message"), BAD.values(), ids=BAD)
def test_a_bad_function_is_refused_before_a_run_begins(
    toy: Dataset, x: Tensor, y: Tensor, tmp_path: Path, load: Any, message: str
) -> None:
    with pytest.raises(DataError, match=f"Data set 'toy': the function `load` .*{message}") as caught:
        study.run(like(toy, load(x, y)), network=network, budget=SMALL, directory=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_inputs_that_the_network_does_not_take_are_told_by_shape(
    toy: Dataset, x: Tensor, y: Tensor, tmp_path: Path
) -> None:
    pairs = each(lambda batch: ({"all": x[batch]}, y[batch]))
    with pytest.raises(ArgumentError, match=r"inputs of \{'all': \(32, 6\)\}.*Its one argument is the inputs as the f"):
        study.run(like(toy, pairs), network=network, budget=SMALL, directory=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("load", [None, iter([1]), DataLoader(TensorDataset(torch.zeros(4))), "photos"])
def test_what_is_no_function_is_refused(toy: Dataset, load: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"`load` must be a function of batches and training.*batch_sampler"):
        like(toy, load)


def test_targets_are_one_a_row(toy: Dataset, x: Tensor, y: Tensor) -> None:
    for targets in (y[:, None], [], 3, [[1], [1, 2]]):
        with pytest.raises(DataError, match="one class or number a row"):
            Dataset.from_loader("toy", "Toy", load=sliced(x, y), targets=targets)
    with pytest.raises(DataError, match="every class from 0"):
        Dataset.from_loader("toy", "Toy", load=sliced(x, y), targets=y + 1)
    with pytest.raises(DataError, match="groups must be one finite number a row"):
        Dataset.from_loader("toy", "Toy", load=sliced(x, y), targets=y, groups=np.arange(3))
    with pytest.raises(DataError, match="have no inputs, schema or image_shape; see from_loader"):
        replace(toy, load=sliced(x, y))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_are_compared_as_exactly_as_they_are_given(kind: torch.dtype, x: Tensor, tmp_path: Path) -> None:
    numbers = torch.rand(500, dtype=torch.float64)
    data = Dataset.from_loader("n", "N", load=sliced(x, numbers.to(kind)), targets=numbers, task="regression")
    assert check_network("run", one_number, data, SMALL, {}).parameters == 7 * 16 + 17
    other = sliced(x, (numbers * (1 + 3 * torch.finfo(kind).eps + 1e-6)).to(kind))
    with pytest.raises(DataError, match="another target for row"):
        check_network("run", one_number, replace(data, load=other), SMALL, {})


def test_a_network_and_methods_that_fit_are_needed(toy: Dataset, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    data, run = like(toy, sliced(x, y)), tmp_path / "run"
    for widths in (None, [16]):
        with pytest.raises(ArgumentError, match=r"`network` must be a function of p .* loads the rows of 'toy'"):
            study.run(data, network=widths, budget=SMALL, directory=run)
    known = "Known for it: none, dropout, weight_decay, l1, max_norm, label_smoothing, dropout_decay, dropout_max_norm"
    for name in ("shift", "input_noise", "mixup", "linear", "batch_norm", "smaller_network"):
        with pytest.raises(ArgumentError, match=rf"methods that fit 'toy', got \['{name}'\].*{known}\."):
            study.run(data, network=network, budget=SMALL, methods=["dropout", name], directory=run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["error", "NaN"])
def test_a_failure_during_a_run_loses_nothing(toy: Dataset, x: Tensor, y: Tensor, tmp_path: Path, failing: str) -> None:
    calls = itertools.count()

    def load(batches: list[list[int]], training: bool) -> Any:
        late = next(calls) > 20
        for number, batch in enumerate(batches):
            if late and number == 3 and failing == "error":
                raise OSError("the disk is gone")
            yield x[batch] / (not (late and number == 3)), y[batch]

    run = tmp_path / "run"
    what = "fails at batch 4 of .*: OSError: the disk is gone" if failing == "error" else "in batch 4 of .* with NaN"
    with pytest.raises(DataError, match=rf"`load` .*{what}.*Nothing that has trained is lost.*study\.resume") as caught:
        study.run(like(toy, load), network=network, budget=SMALL, directory=run)
    assert isinstance(caught.value.__cause__, OSError) == (failing == "error")
    assert not (run / "results.csv").exists()
    study.resume(run, data=like(toy, sliced(x, y)), network=network)
    study.run(like(toy, sliced(x, y)), network=network, budget=SMALL, directory=tmp_path / "whole")
    assert (run / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
