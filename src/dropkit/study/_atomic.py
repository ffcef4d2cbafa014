"""Files that are either whole or not there."""

import contextlib
import os
import secrets
import stat
from errno import EACCES, EISDIR
from pathlib import Path

__all__ = ["check_writable", "write_atomic"]

_STREAMS = (Path("/dev"), Path("/proc"))  # where names such as /dev/stdout stand for files that are open already


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside the target, flush to the disk, and put the file in its place in one step.

    Links are followed. A file that was there hands on its mode and owner; a new one has the mode that the umask leaves.
    What is no regular file, such as a pipe or a device, is written into.
    """
    data = content.encode() if isinstance(content, str) else content
    before = _status(path)
    if _is_written_into(path, before):
        with path.open("wb") as file:
            file.write(data)
        return
    target = Path(os.path.realpath(path))
    temporary = _beside(target)
    try:
        temporary.touch(0o666 if before is None else 0o600, exist_ok=False)  # less what the umask takes
        if before is not None:
            _hand_on(before, temporary)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def check_writable(path: Path) -> None:
    """Raise OSError where `write_atomic` could not write, and leave what is there as it is."""
    before = _status(path)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(EACCES, os.strerror(EACCES), str(path))
    if not _is_written_into(path, before):
        temporary = _beside(Path(os.path.realpath(path)))
        temporary.touch(exist_ok=False)
        temporary.unlink()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_written_into(path: Path, status: os.stat_result | None) -> bool:
    if status is None:
        return False
    return not stat.S_ISREG(status.st_mode) or any(path.absolute().is_relative_to(folder) for folder in _STREAMS)


def _beside(target: Path) -> Path:
    """Return a path in the target's folder at which nothing is."""
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}")


def _hand_on(status: os.stat_result, path: Path) -> None:
    """Give a file the owner, where that is allowed, and the mode of another."""
    with contextlib.suppress(OSError):
        os.chown(path, status.st_uid, status.st_gid)
    path.chmod(stat.S_IMODE(status.st_mode))
