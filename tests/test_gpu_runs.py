"""Where there is a GPU, no test that needs one may be skipped, and there is no such run without Triton, or a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.gpu
def test_that_is_skipped():
    pytest.skip("no reason")

@pytest.mark.gpu
@pytest.mark.xfail(raises=KeyError)
def test_that_may_fail():
    raise KeyError

@pytest.mark.gpu
def test_that_passes():
    pass

def test_of_another_kind():
    pytest.skip("a reason")
"""
RUN = """
import importlib.util, sys
import pytest, torch
torch.cuda.is_available = lambda: sys.argv[1] != "no GPU"
if sys.argv[1] == "without":
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
options = ["-p", "conftest", "-c", sys.argv[2] + "/pytest.ini", "-p", "no:cacheprovider", "-rA", sys.argv[2]]
options += ["-m", "gpu"] if sys.argv[1] == "no GPU" else []
sys.exit(pytest.main(options))
"""


def run(folder: Path, kind: str) -> subprocess.CompletedProcess[str]:
    """Run tests as on a machine "with" a GPU, "without" Triton too, or with "no GPU"; they do not touch it."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", RUN, kind, str(folder)]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_skipped_test_of_gpus_fails_where_there_is_one(tmp_path: Path) -> None:
    result = run(tmp_path, "with")
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in result.stdout
    assert "test_that_is_skipped" in result.stdout.split("short test summary")[1].split("FAILED")[1].split("\n")[0]
    assert "skipped on a machine with a GPU" in result.stdout


@pytest.mark.slow
def test_without_triton_nothing_runs_on_a_gpu(tmp_path: Path) -> None:
    result = run(tmp_path, "without")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Tests on a GPU need Triton (pip install triton)" in result.stderr


@pytest.mark.slow
def test_asked_for_alone_they_do_not_run_without_a_gpu(tmp_path: Path) -> None:
    result = run(tmp_path, "no GPU")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Tests on a GPU need a CUDA device, and PyTorch " in result.stderr
    assert "passed" not in result.stdout
