"""Tables that a study cannot use: one line, exit code 2, nothing written; what is merely doubtful is said."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command import call
from tests.helpers.threads import single_thread

pytestmark = pytest.mark.usefixtures("light_studies")

ROWS = 120
NOISE = np.random.default_rng(0).bytes(5000)
SMALL = ("--methods", "dropout", "--rates", "0.5", "--seeds", "2", "--network", "8", "--epochs", "2")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(line: Callable[[int], str], count: int = ROWS, heading: str = "age,churned") -> bytes:
    return "\n".join([heading, *(line(row) for row in range(count)), ""]).encode()


def age(row: int) -> int:
    return 18 + row * 37 % 60


def churned(row: int) -> str:
    return "yes" if age(row) % 9 > 3 else "no"


SOUND = rows(lambda row: f"{age(row)},{churned(row)}")

BAD = {
    "missing file": (None, "dropkit: table.csv cannot be read: No such file or directory."),
    "empty": (b"", "dropkit: table.csv is empty."),
    "heading alone": (b"age,churned\n", "dropkit: table.csv has no rows below its heading."),
    "too few fields": (SOUND + b"40\n", f"dropkit: table.csv is ragged: line {ROWS + 2} has 1 fields, the heading 2."),
    "too many fields": (SOUND + b"4,5,no\n", f"dropkit: table.csv is ragged: line {ROWS + 2} has 3 fields"),
    "noise": (NOISE, "dropkit: table.csv is no text in UTF-8."),
    "noise that begins as Parquet": (b"PAR1" + NOISE, "dropkit: table.csv is no Parquet file that can be read: "),
    "unknown target": (rows(lambda row: f"{row},1", heading="age,left"), "'churned' is no column of table.csv"),
    "constant number": (rows(lambda row: f"{age(row)},4.5"), "the target 'churned' is always '4.5'"),
    "one class": (rows(lambda row: f"{age(row)},no"), "the target 'churned' is always 'no'"),
    "target all missing": (rows(lambda row: f"{age(row)},"), "every value of the target 'churned' is missing."),
    "input all missing": (rows(lambda row: f",{churned(row)}"), "(age: left out: every value is missing)."),
    "a class in every row": (rows(lambda row: f"{row},name {row}"), "has 120 different values, more than 100 classes."),
    "fewer rows than classes need": (rows(lambda row: f"{row},{'abc'[row]}", 3), "class 'a' of the target"),
    "fewer rows than parts": (rows(lambda row: f"{age(row)},{row * 1.37}", 4), "table.csv has 4 rows; a study needs"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_a_bad_table_is_one_line_and_leaves_nothing(
    content: bytes | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("table.csv").write_bytes(content)
    assert call("study", "table.csv", "--target", "churned", *SMALL) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dropkit: ")
    assert words in err
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ([] if content is None else ["table.csv"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "dropout,magic"), "--methods must be one of 'none', 'dropout', 'weight_decay', "),
        (("--budget", "huge"), "--budget must be one of 'quick', 'standard', 'thorough', got 'huge'"),
        (("--name", "there"), "runs/there is already there. Choose another name"),
        (("--test-size", "119"), "with 119 as test rows"),
        (("--test-size", "100.7"), "--test-size must be a share of the rows below 1, or a whole number, got 100.7"),
        (("--test-size", "1"), "1 of 120 rows cannot be set aside with every class among them, as there are 2 classes"),
    ],
)
def test_a_bad_option_leaves_the_table_alone(
    options: tuple[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("table.csv").write_bytes(SOUND)
    Path("runs/there").mkdir(parents=True)
    assert call("study", "table.csv", "--target", "churned", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert {str(path) for path in Path().rglob("*")} == {"table.csv", "runs", "runs/there"}


def test_no_space_for_the_plan_leaves_no_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("table.csv").write_bytes(SOUND)
    monkeypatch.setattr(os, "fsync", full)
    assert call("study", "table.csv", "--target", "churned", *SMALL, "--name", "one") == 2
    words = "runs/one cannot be made: No space left on device. Choose another place."
    assert capsys.readouterr().err == f"dropkit: {words}\n"
    assert list(Path("runs").iterdir()) == []


def test_a_column_that_is_all_missing_is_left_out_and_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(lambda row: f"{age(row)},,{churned(row)}", heading="age,nothing,churned")
    Path("table.csv").write_bytes(lines)
    assert call("study", "table.csv", "--target", "churned", *SMALL) == 0
    assert "nothing: left out: every value is missing\n" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "cautioned"), [(2, True), (19, True), (20, False)])
def test_few_test_rows_are_cautioned_of(size: int, cautioned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Path("table.csv").write_bytes(SOUND)
    assert call("study", "table.csv", "--target", "churned", *SMALL, "--test-size", str(size)) == 0
    words = f"Caution: The check has only {size} test rows, fewer than 20"
    assert (words in " ".join(capsys.readouterr().out.split())) is cautioned


def test_a_leaked_target_is_cautioned_of(capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(lambda row: f"{age(row)},code {churned(row)},{churned(row)}", heading="age,reason,churned")
    Path("table.csv").write_bytes(lines)
    assert call("study", "table.csv", "--target", "churned", *SMALL) == 0
    caution = "Caution: The column 'reason' alone tells 'churned' almost perfectly"
    assert caution in " ".join(capsys.readouterr().out.split())
