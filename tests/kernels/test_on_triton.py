"""Tests of functions are run with Triton's kernels under the operators, in its interpreter; `make triton` runs more."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_masks_and_shapes_are_those_of_every_other_kernel() -> None:
    """Of files that say nothing of which way serves."""
    names = [f"tests/functional/test_{name}.py" for name in ("masks", "zoneout")]
    plugins = ["-p", "tests.helpers.on_triton", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-m", "not slow", *names]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=1000)
    assert run.returncode == 0, run.stdout[-3000:]
    launches = re.search(r"(\d+) launches of Triton's kernels", run.stdout)
    assert launches is not None
    assert int(launches[1]) > 20
