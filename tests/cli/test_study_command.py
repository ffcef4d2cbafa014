"""`dropkit study`: what it prints where, its exit codes, and its one-line mistakes."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dropkit import __version__
from dropkit.cli.progress import progress_shown
from dropkit.study import BUDGETS, SOURCES, Progress
from dropkit.study.methods import METHODS, METHODS_WITH_A_FILE
from tests.helpers.command import call
from tests.helpers.studies import TINY, make_toy
from tests.helpers.threads import single_thread


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory, with toy data and a tiny budget among the known ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SOURCES, "toy", make_toy)
    monkeypatch.setitem(BUDGETS, "tiny", TINY)


TOY = ("study", "toy", "--budget", "tiny")


def test_a_study_prints_table_advice_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*TOY, "--name", "one") == 0
    out, err = capsys.readouterr()
    data = json.loads(Path("runs/one/results.json").read_text())
    assert " ".join(data["verdict"]["sentence"].split()) in " ".join(out.split())
    assert "Report: runs/one/report.html" in out
    assert "weight decay" in out
    assert "Results go to runs/one" in err
    assert "100 %" in err
    assert "chosen: dropout" in err


@pytest.mark.usefixtures("light_study")
def test_quiet_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*TOY, "--quiet", "--name", "q") == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert call("study", "--resume", "runs/q", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    data = json.loads(out)
    assert data["directory"] == "runs/q"
    assert data["verdict"]["kind"] in ("helps", "tie", "nothing", "cannot tell")


@pytest.mark.parametrize(("widths", "trained"), [("5-4", "6-5-4-3"), ("6-5-3", "6-5-3"), ("7-5-3", "6-7-5-3-3")])
@pytest.mark.usefixtures("light_study")
def test_the_network_is_told(widths: str, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--methods", "dropout", "--rates", "0.5", "--seeds", "2", "--epochs", "1")
    assert call(*TOY, "--name", "one", "--network", widths, *few) == 0
    assert f"\nnetwork: {trained}\n" in capsys.readouterr().err
    assert f"{trained}, ReLU" in Path("runs/one/report.html").read_text()


@pytest.mark.usefixtures("light_study")
def test_seeds_of_the_confirmation_are_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*TOY, "--quiet", "--name", "two", "--methods", "dropout", "--rates", "0.5", "--seeds", "2") == 0
    assert json.loads(Path("runs/two/plan.json").read_text())["seeds"] == {"selection": [0, 1], "confirmation": [2, 3]}
    assert call("study", "--resume", "runs/two", "--seeds", "3") == 2
    assert "--seeds is settled by the plan of runs/two" in capsys.readouterr().err


@pytest.mark.usefixtures("light_study")
def test_default_names_hold_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*TOY, "--quiet") == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("toy-")


@pytest.mark.usefixtures("light_study")
def test_interrupted_and_resumed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(*TOY, "--quiet", "--name", "whole") == 0

    @contextmanager
    def interrupting(heading: str, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
        def press(state: Progress) -> None:
            if state.done >= 40:
                raise KeyboardInterrupt

        yield press

    shown = progress_shown
    monkeypatch.setattr("dropkit.cli.study.progress_shown", interrupting)
    capsys.readouterr()
    assert call(*TOY, "--name", "cut") == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "Stopped. Go on with: dropkit study --resume runs/cut"
    assert not Path("runs/cut/results.csv").exists()
    monkeypatch.setattr("dropkit.cli.study.progress_shown", shown)
    assert call("study", "--resume", "runs/cut") == 0
    assert "Going on with runs/cut" in capsys.readouterr().err
    assert Path("runs/cut/results.csv").read_bytes() == Path("runs/whole/results.csv").read_bytes()


MISTAKES = [
    (["study", "cifar"], "dropkit: DATA must be one of 'mnist'"),
    (["study", "--budget", "huge"], "dropkit: --budget must be one of 'quick'"),
    (["study", "--seed", "-1"], "dropkit: --seed must be an integer in [0, 2**64), got -1"),
    (["study", "--seed", "1.5"], "--seed must be a whole number, got '1.5'"),
    (["study", "--seed", "x"], "--seed must be a whole number, got 'x'"),
    (["study", "--seed", ""], "--seed must be a whole number, got ''"),
    (["study", "--epochs", "many"], "--epochs must be a whole number, got 'many'"),
    (["study", "--epochs", "0"], "dropkit: --epochs must be an integer in [1, 10**9], got 0"),
    (["study", "--batch-size", "2.5"], "--batch-size must be a whole number"),
    (["study", "--network", "64-x"], "--network must be whole numbers with '-' between them, got '64-x'"),
    (["study", "--network", "64-0"], "dropkit: --network must be an integer"),
    (["study", "--rates", "0.2;0.5"], "--rates must be numbers with ',' between them"),
    (["study", "--rates", "0.2,0.5,1.5"], "dropkit: --rates must be a number in (0, 1), got 1.5"),
    (["study", "--methods", "dropout,magic"], "dropkit: --methods must be one of 'none', 'dropout'"),
    (["study", "--target", "churn"], "dropkit: --target must be left out for data that are no file"),
    (["study", "--task", "ranking"], "dropkit: --task must be one of 'classification', 'regression'"),
    (["study", "absent", "--target", "y"], "or the path of a CSV or Parquet file, got 'absent'"),
    (["study", "absent.csv", "--target", "y"], "absent.csv cannot be read: No such file"),
    (["study", "x" * 300], "or the path of a CSV or Parquet file, got 'xxx"),
    (["study", "x" * 300 + ".csv", "--target", "y"], ".csv cannot be read: File name too long"),
    (["study", "table.csv"], "dropkit: --target must name the column to predict. The columns of table.csv: a, b"),
    (["study", "table.csv", "--target", "c"], "--target 'c' is no column of table.csv. Its columns: a, b"),
    (["study", "table.csv", "--target", "b", "--test-size", "x"], "--test-size must be a number, got 'x'"),
    (
        ["study", "table.csv", "--target", "b", "--test-size", "-1"],
        "dropkit: --test-size must be a number in (0, 1e+09]",
    ),
    (
        ["study", "table.csv", "--target", "b", "--test-size", "1.5"],
        "dropkit: --test-size must be a share of the rows below 1, or a whole number, got 1.5",
    ),
    (["study", "--seeds", "1"], "dropkit: --seeds must be an integer in [2, 1000], got 1"),
    (["study", "--seeds", "x"], "--seeds must be a whole number, got 'x'"),
    (["study", "--rates", "0"], "dropkit: --rates must be a number in (0, 1), got 0"),
    (["study", "--rates", "nan"], "dropkit: --rates must be a number in (0, 1), got nan"),
    (["study", "--name", "a/b"], "--name must be one directory name"),
    (["study", "--name", ""], "--name must be one directory name"),
    (["study", "--name", ".."], "--name must be one directory name"),
    (["study", "--name", " "], "--name must be one directory name, not blank"),
    (
        ["study", "--name", "a\tb"],
        "--name must be one directory name, not blank, without slashes or control characters",
    ),
    (["study", "--name", " there "], "runs/there is already there"),
    (["study", "--resume", "runs/absent"], "runs/absent is no run of a study"),
    (["study", "--resume", "runs/there"], "runs/there is no run of a study"),
    (["study", "--resume"], "--resume"),
    (["study", "--bugdet", "quick"], "--budget"),
    (["study", "mnist", "churn"], "churn"),
    (["stduy"], "study"),
    (["--verison"], "--version"),
    (["study", "--budget", ""], "--budget must be one of"),
    (["study", "--resume", ""], "--resume must be the directory of a run"),
    (["study", ""], "DATA must be one of"),
    (["study", "."], ". is a directory. Name a CSV or Parquet file."),
    (["study", "/"], "/ is a directory. Name a CSV or Parquet file."),
    (["study", ".", "--target", "a"], ". is a directory. Name a CSV or Parquet file."),
    (["study", "runs", "--target", "a"], "runs is a directory. Name a CSV or Parquet file."),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/there").mkdir(parents=True)
    Path("table.csv").write_text("a,b\n1,2\n3,4\n")
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert err.startswith("dropkit: ")
    assert {path.name for path in Path().iterdir()} == {"runs", "table.csv"}
    assert [path.name for path in Path("runs").iterdir()] == ["there"]
    assert list(Path("runs/there").iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "4"), ("--budget", "quick"), ("--name", "other"), (None, "mnist")]
)
def test_a_resumed_run_keeps_its_plan(option: str | None, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    from dropkit.study.plan import make_plan

    plan = make_plan(make_toy(), TINY, 0, {name: METHODS[name].strengths for name in METHODS})
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/plan.json").write_text(plan.to_json())
    assert call("study", *([option] if option else []), value, "--resume", "runs/one") == 2
    err = capsys.readouterr().err
    assert "differs from" in err
    assert "Leave it out" in err
    assert err.count("\n") == 1


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"dropkit {__version__}\n"
    assert call("--help") == 0
    assert "study" in capsys.readouterr().out
    assert call("study", "--help") == 0
    out = capsys.readouterr().out
    assert "Examples:\n  " in out
    listed = "".join(out.split())  # names are broken where the lines end
    assert ",".join(name for name in METHODS_WITH_A_FILE if name != "none") in listed
    layers = [name for name, method in METHODS.items() if method.on_request]
    assert {"gaussian_dropout", "weight_drop", "concrete_dropout"} <= set(layers)
    assert f";orlayers:{','.join(layers)}." in listed
    for option in ("--budget", "--seed", "--name", "--resume", "--quiet", "--json"):
        assert option in out


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    out, err = capsys.readouterr()
    assert "Usage: dropkit" in out
    assert "\nCommands:\n  " in out
    assert err == ""


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_shown("Results go to runs/x", quiet=False) as show:
        assert show is not None
        show(Progress("selection", 0, 10))
        show(Progress("confirmation", 10, 10, "chosen: dropout p = 0.5"))
    assert "chosen: dropout p = 0.5" in capsys.readouterr().err


def test_the_time_left_follows_from_recent_training_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    monkeypatch.setattr("dropkit.cli.progress.time.monotonic", lambda: seconds)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with progress_shown("Results go to runs/x", quiet=False) as show:
        assert show is not None
        seconds = 30.0  # of start-up and measuring
        show(Progress("data", 0, 1, "time: an epoch takes 1 s"))
        seconds = 37.0
        show(Progress("selection", 300, 1000, skipped=300))  # by an earlier run
        for done in range(310, 1001, 10):  # ten epochs a second, and one a second from 600 on
            seconds += 1.0 if done <= 600 else 10.0
            show(Progress("selection", done, 1000, skipped=300))
    lines = [line for line in capsys.readouterr().err.splitlines() if "%" in line]
    assert lines[:3] == [
        "selection: 30 %, 37 s",
        "selection: 40 %, 47 s, about 60 s left",
        "selection: 50 %, 57 s, about 50 s left",
    ]
    assert lines[5:7] == ["selection: 80 %, 267 s, about 200 s left", "selection: 90 %, 367 s, about 100 s left"]
