"""Output where the encoding is narrow or the stream fails."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from dropkit.cli.streams import plain_where_needed, print_data


@pytest.mark.parametrize(("encoding", "written"), [("cp1252", b"-0.1 \xb1 lambda ?"), ("ascii", b"-0.1 +- lambda ?")])
def test_signs_that_an_encoding_lacks_are_spelled(
    encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    plain_where_needed()
    stream.write("\N{MINUS SIGN}0.1 \N{PLUS-MINUS SIGN} \N{GREEK SMALL LETTER LAMDA} \N{CJK UNIFIED IDEOGRAPH-4E2D}")
    stream.flush()
    assert stream.buffer.getvalue() == written


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("kind", [io.BytesIO, Terminal])
def test_different_data_stay_different(encoding: str, kind: type[io.BytesIO], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(kind(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    plain_where_needed()
    print_data("z\u0142a,z\u015ba")
    is_utf_8 = kind is io.BytesIO or encoding == "utf-8"
    expected = b"z\xc5\x82a,z\xc5\x9ba" if is_utf_8 else rb"z\u0142a,z\u015ba"
    assert stream.buffer.getvalue() == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_is_one_line() -> None:
    command = [sys.executable, "-c", "from dropkit.cli import main; main()", "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dropkit: The output cannot be written: ")
    assert done.stderr.count("\n") == 1
