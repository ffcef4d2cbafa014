"""Output that reaches every terminal: what an encoding lacks is written in letters that it has, and data in UTF-8."""

import codecs
import io
import os
import sys

__all__ = ["discard_output", "plain_where_needed", "print_data"]

_PLAIN = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{GREEK SMALL LETTER LAMDA}": "lambda",
    "\N{GREEK SMALL LETTER SIGMA}": "sigma",
    "\N{GREEK SMALL LETTER ALPHA}": "alpha",
    "\N{GREEK SMALL LETTER EPSILON}": "epsilon",
}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def plain_where_needed() -> None:
    """Make stdout and stderr write signs that their encoding lacks in plain letters, rather than fail."""
    codecs.register_error("dropkit-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dropkit-plain")


def print_data(text: str) -> None:
    """Write data to stdout, so that no two texts become one: in UTF-8, as to a file, or with escapes on a terminal."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding=stream.encoding if stream.isatty() else "utf-8", errors="backslashreplace")
    stream.write(text)
    stream.flush()


def discard_output() -> None:
    """Send what is left of stdout nowhere, so that a stream that failed once does not fail again at exit."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a stream, not a file of ours
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
