"""`dropkit predict`: where it writes, and what it refuses before any work."""

import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dropkit import study
from tests.helpers.command import call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of a table of numbers."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    lines = [f"{a:.4f},{3 * a + rng.normal():.4f}" for a in rng.normal(size=200)]
    (folder / "table.csv").write_text("\n".join(["a,y", *lines]) + "\n")
    small = {"methods": ["dropout"], "rates": [0.2], "network": [8], "epochs": 3}
    return study.run(str(folder / "table.csv"), target="y", directory=folder / "run", **small).directory


@pytest.fixture
def new(tmp_path: Path) -> Path:
    (tmp_path / "new.csv").write_text("a\n0.5\n-1\n")
    return tmp_path / "new.csv"


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("predicted before the output was checked")

    monkeypatch.setattr("dropkit.study.prediction.predict", work)


def test_a_link_stays_a_link(run: Path, new: Path, tmp_path: Path) -> None:
    (tmp_path / "target.csv").write_text("before")
    (tmp_path / "target.csv").chmod(0o600)
    (tmp_path / "out.csv").symlink_to("target.csv")
    assert call("predict", str(run), str(new), "--output", str(tmp_path / "out.csv")) == 0
    assert (tmp_path / "out.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text() == study.predict(run, new).to_csv()
    assert stat.S_IMODE((tmp_path / "target.csv").stat().st_mode) == 0o600


def test_a_pipe_gets_the_predictions(run: Path, new: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert call("predict", str(run), str(new), "--output", str(tmp_path / "pipe")) == 0
    reader.join()
    assert read == [study.predict(run, new).to_csv()]


def test_a_dash_is_the_screen(run: Path, new: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", str(run), str(new), "--output", "-") == 0
    assert capsys.readouterr().out == study.predict(run, new).to_csv()
    assert not Path("-").exists()


def test_tabs_are_written_for_their_ending(run: Path, new: Path, tmp_path: Path) -> None:
    assert call("predict", str(run), str(new), "--output", str(tmp_path / "out.TSV")) == 0
    found = study.predict(run, new)
    assert (tmp_path / "out.TSV").read_text() == found.to_csv("\t")
    assert (tmp_path / "out.TSV").read_text().splitlines()[1] == found.labels[0]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "--output must be a file, or - for the screen, got ''"),
        (" ", "--output must be a file, or - for the screen, got ' '"),
        ("{}/new.csv", "is the data themselves, which would be lost"),
        ("{}/../{name}/new.csv", "is the data themselves, which would be lost"),
        ("{}/link.csv", "is the data themselves, which would be lost"),
        ("{}", "cannot be written: Is a directory"),
        ("{}/nowhere/out.csv", "cannot be written: No such file or directory"),
        ("{}/new.csv/out.csv", "cannot be written: Not a directory"),
        ("{}/out.csv/", "out.csv/ names a folder. Add the name of a file to it."),
        ("{}/out.parquet", "CSV is written. Name it .csv, or .tsv"),
        ("{}/out.csv.GZ", "CSV is written. Name it .csv, or .tsv"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(
    run: Path, new: Path, output: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (new.parent / "link.csv").symlink_to(new)
    before = {path: path.read_bytes() for path in new.parent.iterdir()}
    place = output.replace("{name}", new.parent.name).replace("{}", str(new.parent))
    assert call("predict", str(run), str(new), "--output", place) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dropkit: --output ")
    assert words in err
    assert {path: path.read_bytes() for path in new.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("data", "output", "words"),
    [
        ("n" * 300, "out.csv", "{data} cannot be read: File name too long."),
        ("new.csv", "o" * 300, "--output {output} cannot be written: File name too long."),
    ],
)
def test_a_name_that_is_too_long_is_told_of_its_file(
    run: Path, new: Path, data: str, output: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"data": str(new.parent / data), "output": str(new.parent / output)}
    assert call("predict", str(run), paths["data"], "--output", paths["output"]) == 2
    assert capsys.readouterr().err.startswith(f"dropkit: {words.format(**paths)}")


def test_names_that_the_locale_lacks_are_written_whole(
    run: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.loads((run / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**described, "target": "z\u0142a"}))
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert call("predict", str(tmp_path), str(new)) == 0
    assert stream.buffer.getvalue().decode() == study.predict(tmp_path, new).to_csv()
    assert stream.buffer.getvalue().startswith("predicted z\u0142a\n".encode())


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A device that is always full: one of the test's own where root could replace the machine's."""
    if os.geteuid() != 0:
        return Path("/dev/full")
    try:
        os.mknod(tmp_path / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
        (tmp_path / "full").open("w").close()
    except PermissionError:
        pytest.skip("no devices here")
    return tmp_path / "full"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("is_option", [False, True])
def test_a_full_device_is_one_line(run: Path, new: Path, full: Path, is_option: bool) -> None:
    code = "from dropkit.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", str(run), str(new), *(["--output", str(full)] * is_option)]
    with full.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written: No space left on device" in done.stderr
    assert "run" not in done.stderr.split("written")[1]
    assert done.stderr.count("\n") == 1
    assert stat.S_ISCHR(full.stat().st_mode)


@pytest.mark.parametrize("name", ["model.json", "plan.json/x", "nowhere"])
def test_what_is_no_run_is_told_in_words(run: Path, new: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("predict", str(run / name), str(new)) == 2
    err = capsys.readouterr().err
    assert (
        err
        == f"dropkit: {run / name} holds no model. Name the directory of a study that has ended, such as runs/mnist.\n"
    )
