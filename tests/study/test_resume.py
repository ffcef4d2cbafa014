"""Studies that were stopped, however and wherever: resumed, they give the results of an undisturbed one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dropkit import study
from dropkit.errors import ArgumentTypeError, DataError, RunError
from dropkit.study import Budget, Dataset
from dropkit.study.packed import _Pack
from dropkit.study.result import Result
from dropkit.study.storage import RunFolder
from tests.helpers.studies import copy_until

pytestmark = pytest.mark.usefixtures("light_studies")


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """A copy of the whole run's directory, to open and to change."""
    return Path(shutil.copytree(finished.directory, tmp_path / "copied"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of models in every epoch of a pack that trains, as it does."""
    found: list[int] = []
    train_epoch = _Pack.train_epoch

    def counted(pack: _Pack, epoch: int) -> None:
        found.append(len(pack.models))
        train_epoch(pack, epoch)

    monkeypatch.setattr(_Pack, "train_epoch", counted)
    return found


def stop_after(epochs: int) -> Callable[[study.Progress], None]:
    """Interrupt a study as Ctrl-C does, once so many epochs are done."""

    def interrupt(state: study.Progress) -> None:
        if state.done >= epochs:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.83, 0.999, 1.0])
def test_resuming_from_any_part_of_the_journal_gives_the_same_results(
    finished: Result, toy: Dataset, tmp_path: Path, share: float
) -> None:
    size = (finished.directory / "journal.log").stat().st_size
    folder = copy_until(finished.directory, tmp_path / "cut", int(size * share))
    resumed = study.resume(folder, data=toy)
    assert (folder / "results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()
    assert resumed.verdict == finished.verdict
    with RunFolder.open(folder) as run:
        assert len(run.records()) == len(run._study.trials) == 31  # no trial twice


def test_what_has_trained_is_not_trained_again(copied: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropkit.study.trainer.train", lambda *_: pytest.fail("trained again"))
    seen: list[study.Progress] = []
    study.resume(copied, data=toy, progress=seen.append)
    assert seen[-1].done == seen[-1].total == (31 + 5) * 3


KILLED = """
import os, signal, sys
from dropkit import study
from tests.helpers.studies import TINY, make_toy

def kill(state):
    if state.done >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

if os.path.exists(sys.argv[1]):
    study.resume(sys.argv[1], data=make_toy(), progress=kill)
else:
    study.run(make_toy(), budget=TINY, seed=5, directory=sys.argv[1], progress=kill)
"""


def test_killed_twice_and_resumed(finished: Result, toy: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    paths = (Path(study.__file__).parents[2], Path(__file__).parents[2])  # of dropkit, and of the tests
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    for epochs in (25, 75):  # within the selection, then within the confirmation
        command = [sys.executable, "-c", KILLED, str(folder), str(epochs)]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not (folder / "results.csv").exists()
    study.resume(folder, data=toy)
    assert (folder / "results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()


def test_an_interruption_loses_no_finished_epoch(
    finished: Result, toy: Dataset, tiny: Budget, tmp_path: Path, trained: list[int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        study.run(toy, budget=tiny, seed=5, directory=tmp_path / "cut", progress=stop_after(10))
    for epochs in (25, 40, 75, 10**9):
        assert (tmp_path / "cut/checkpoint.safetensors").exists()
        (tmp_path / "cut/.checkpoint.safetensors.part").write_bytes(b"left by a kill")
        with contextlib.suppress(KeyboardInterrupt):
            study.resume(tmp_path / "cut", data=toy, progress=stop_after(epochs))
    assert sum(trained) == 31 * 3
    assert (tmp_path / "cut/results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()
    assert [path.name for path in (tmp_path / "cut").glob("*checkpoint*")] == []


@pytest.mark.parametrize("damage", [b"", b"\xff" * 5000, None], ids=["empty", "noise", "cut short"])
def test_a_damaged_checkpoint_costs_its_pack_alone(
    finished: Result, toy: Dataset, tiny: Budget, tmp_path: Path, trained: list[int], damage: bytes | None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        study.run(toy, budget=tiny, seed=5, directory=tmp_path / "cut", progress=stop_after(25))
    assert trained == [6] * 5  # the second pack has one epoch to go
    trained.clear()
    checkpoint = tmp_path / "cut/checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000] if damage is None else damage)
    study.resume(tmp_path / "cut", data=toy)
    assert sum(trained) == (31 - 6) * 3
    assert (tmp_path / "cut/results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()


def test_resuming_with_other_data(copied: Path, toy: Dataset) -> None:
    other = Dataset("toy", "Other", toy.inputs + 1, toy.targets)
    with pytest.raises(DataError, match="differs from the one"):
        study.resume(copied, data=other)
    with pytest.raises(RunError, match="a data set of your own, 'toy'"):
        study.resume(copied)
    with pytest.raises(ArgumentTypeError, match="data"):
        study.resume(copied, data="mnist")


@pytest.mark.parametrize(
    "damage", [b"garbage\n", b'{"op_code": 99}\n', b'{"op_code": 4, "study_id": 0}\n', b"\x00\xff\n"]
)
def test_a_damaged_journal(finished: Result, toy: Dataset, tmp_path: Path, damage: bytes) -> None:
    folder = copy_until(finished.directory, tmp_path / "bad", 10**9)
    content = (folder / "journal.log").read_bytes().split(b"\n", 5)
    (folder / "journal.log").write_bytes(b"\n".join(content[:5]) + b"\n" + damage + content[5])
    with pytest.raises(RunError, match=r"journal.log is damaged.*Start a new run") as caught:
        study.resume(folder, data=toy)
    assert "\n" not in str(caught.value)


def test_the_journal_of_another_plan(finished: Result, toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    other = study.run(toy, budget=tiny, seed=1, methods=["dropout"], rates=[0.5], directory=tmp_path / "other")
    (other.directory / "journal.log").write_bytes((finished.directory / "journal.log").read_bytes())
    with pytest.raises(RunError, match="belongs to another plan"):
        study.resume(other.directory, data=toy)


def test_damaged_models(copied: Path, toy: Dataset) -> None:
    for path in (copied / "models").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"npz is damaged. Delete it and resume"):
        study.resume(copied, data=toy)


def test_one_process_at_a_time(copied: Path, toy: Dataset) -> None:
    with RunFolder.open(copied), pytest.raises(RunError, match="is in use"):
        study.resume(copied, data=toy)


def test_a_lock_that_a_kill_left_is_no_obstacle(copied: Path, toy: Dataset) -> None:
    (copied / "journal.log.lock").symlink_to(copied / "journal.log")
    study.resume(copied, data=toy)
    assert not (copied / "journal.log.lock").is_symlink()


def test_a_full_disk_is_one_line_and_loses_nothing(
    finished: Result, toy: Dataset, tiny: Budget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    def fill(state: study.Progress) -> None:
        if state.phase == "confirmation":
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(RunError, match=r"cannot be written: No space left on device.*--resume"):
        study.run(toy, budget=tiny, seed=5, directory=tmp_path / "full", progress=fill)
    monkeypatch.undo()
    study.resume(tmp_path / "full", data=toy)
    assert (tmp_path / "full/results.csv").read_bytes() == (finished.directory / "results.csv").read_bytes()
