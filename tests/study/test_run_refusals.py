"""What `run` and `resume` refuse, in a line that names it, before anything is written."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from dropkit import study
from dropkit.errors import ArgumentError, ArgumentTypeError, DataError, DropkitError, RunError
from dropkit.study import Budget, Dataset

BAD = [
    ("data", "cifar", ArgumentError, "'mnist'"),
    ("data", "x" * 300, ArgumentError, "'mnist'"),
    ("data", 7, ArgumentError, "'mnist'"),
    ("budget", "huge", ArgumentError, "'quick'"),
    ("budget", None, ArgumentError, "'quick'"),
    ("seed", -1, ArgumentError, "seed"),
    ("seed", 2**64, ArgumentError, "seed"),
    ("seed", 1.0, ArgumentTypeError, "seed"),
    ("seed", True, ArgumentTypeError, "seed"),
    ("seed", "1", ArgumentTypeError, "seed"),
    ("methods", "dropout", ArgumentTypeError, "Known: none, dropout, weight_decay"),
    ("methods", ["dropout", "magic"], ArgumentError, "'weight_decay'"),
    ("methods", [], ArgumentError, "besides none"),
    ("methods", ["none"], ArgumentError, "besides none"),
    ("methods", 3, ArgumentTypeError, "methods"),
    ("rates", "0.5, 0.7", ArgumentTypeError, "rates"),
    ("rates", 0.5, ArgumentTypeError, "rates"),
    ("rates", [0.1 + i / 20 for i in range(9)], ArgumentError, "the others have 8"),
    ("rates", [0.1, 0.2, 0.3, 0.4, 1.5], ArgumentError, "probability of dropping"),
    ("rates", [0.1, 0.2, 0.3, 0.4, math.nan], ArgumentError, "rates"),
    ("rates", [0.1, 0.2, 0.3, 0.3, 0.4], ArgumentError, "distinct"),
    ("rates", [], ArgumentError, "one or more"),
    ("directory", 5, ArgumentTypeError, "directory"),
    ("directory", "", ArgumentTypeError, "directory"),
    ("progress", "bar", ArgumentTypeError, "progress"),
]


@pytest.mark.parametrize(("name", "value", "error", "words"), BAD)
def test_bad_arguments(
    name: str, value: object, error: type[DropkitError], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=name) as caught:
        study.run(**{name: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_rates_without_dropout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="left out where dropout is not among"):
        study.run(methods=["weight_decay"], rates=[0.5], directory=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_too_few_rows(toy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs 5000 rows, the data set 'toy' has 500"):
        study.run(toy, budget=study.BUDGETS["quick"], directory=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_directory_that_is_there_is_left_alone(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match=r"already there.*--resume"):
        study.run(toy, budget=tiny, directory=tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_directory_that_is_there_is_refused_before_anything_is_measured(
    toy: Dataset, tiny: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropkit.study.timing.measure_epochs", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(RunError, match="already there"):
        study.run(toy, budget=replace(tiny, minutes=1.0), directory=tmp_path)


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "x" * 300])
def test_a_directory_that_cannot_be_made(toy: Dataset, tiny: Budget, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        study.run(toy, budget=tiny, directory=tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("seeds", "error"), [(1, ArgumentError), (0, ArgumentError), (2.5, ArgumentTypeError)])
def test_unfit_seeds_are_refused(toy: Dataset, tmp_path: Path, seeds: object, error: type[DropkitError]) -> None:
    with pytest.raises(error, match=r"^run: `seeds` must be an integer"):
        study.run(toy, seeds=seeds, directory=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(RunError, match="is no run of a study"):
            study.resume(path)
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="no run"):
        study.resume(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
