"""Files that are written whole: what is there, where it leads, and who may read it."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropkit.study._atomic import check_writable, write_atomic


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_old_file_stays_or_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_mode_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    write_atomic(tmp_path / "new", b"x")
    assert mode(tmp_path / "new") == 0o666 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o755, 0o666], ids=oct)
def test_an_old_file_keeps_its_mode_and_owner(umask: int, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(kept)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert mode(path) == kept
    assert (path.stat().st_uid, path.stat().st_gid) == (before.st_uid, before.st_gid)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link", tmp_path / "far" / "target"
    link.symlink_to(Path("far") / "target")
    for text in ("first", "second"):  # the first time it leads nowhere yet
        check_writable(link)
        write_atomic(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "link", "target"]
    link.unlink()
    link.symlink_to(link)
    for function in (lambda: write_atomic(link, "x"), lambda: check_writable(link)):
        with pytest.raises(OSError, match="symbolic links"):
            function()


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_writable(path)  # and waits for no reader
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_atomic(path, "through")
    reader.join()
    assert read == ["through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.write_text("")
    except PermissionError:
        pytest.skip("no devices here")
    check_writable(path)
    write_atomic(path, "gone")
    assert stat.S_ISCHR(path.stat().st_mode)


def test_the_check_leaves_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")
    before = path.stat()
    check_writable(path)
    check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [path]
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, path.read_text()) == (before.st_ino, before.st_mtime_ns, "old")


@pytest.mark.parametrize(
    ("place", "words"),
    [("folder", "Is a directory"), ("missing/new", "No such file"), ("file/new", "Not a directory")],
)
def test_the_check_finds_what_writing_would(place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for function in (lambda: write_atomic(tmp_path / place, "x"), lambda: check_writable(tmp_path / place)):
        with pytest.raises(OSError, match=words):
            function()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_the_check_finds_what_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o444)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "file")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "new")
    tmp_path.chmod(0o755)
