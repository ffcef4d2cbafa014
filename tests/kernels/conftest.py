"""The instruction sets that tests of the compiled kernels run on."""

from collections.abc import Iterator

import pytest

from tests.helpers.native import available, using


@pytest.fixture(params=available() or ["none"], scope="module")
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let each instruction set that this processor and build have serve in turn."""
    with using(request.param):
        yield request.param
