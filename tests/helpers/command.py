"""The command `dropkit`, run in this process."""

import pytest

from dropkit.cli.app import app


def call(*arguments: str) -> int:
    """Run the command and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        app(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code
