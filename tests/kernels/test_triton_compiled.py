"""Triton's kernels compile for the GPUs they are for, as they are launched there, with no GPU at hand."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest

pytest.importorskip("triton")
from tests.helpers.gpu_compiler import SHARED, Compiled

pytestmark = pytest.mark.slow
CAPABILITIES = 75, 80, 86, 89, 90, 100  # times ten
PHILOX = 2 * 10 * 2  # products, upper halves of which are computed: of ten rounds, in either plane
# Bytes a thread: kernels whose tiles take all registers lack a few.
SPILLED = {"dropout": 0, "fused": 0, "norm": 64, "attention": 512}


@cache
def launches(capability: int, group: str, dtype: str) -> list[tuple[str, Compiled]]:
    """What has become of the launches of a group, in a process where Triton is no interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.helpers.gpu_launches", str(capability), group, dtype]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    return [(case, Compiled(*fields)) for case, fields in map(json.loads, found.stdout.splitlines())]


@pytest.mark.parametrize(
    "group",
    ["dropout", "norm", *(pytest.param(group, marks=pytest.mark.exhaustive) for group in ("fused", "attention"))],
)
def test_every_kernel_compiles(group: str) -> None:
    check(90, group, "bfloat16", SPILLED[group])


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("group", sorted(SPILLED))
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_for_other_gpus_and_types(capability: int, group: str, dtype: str) -> None:
    if group == "attention" and (capability < 80 or dtype == "float64"):
        pytest.skip("attention by tiles is for capability 8.0 on, and not for float64")
    check(capability, group, dtype)


def check(capability: int, group: str, dtype: str, spilled: int = 1024) -> None:
    found = launches(capability, group, dtype)
    assert found
    for case, launch in found:
        assert launch.error is None, (case, launch)
        assert launch.shared <= SHARED[capability] * 1024, (case, launch)
        assert launch.spilled <= spilled, (case, launch)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_aligned_memory_is_moved_by_sixteen_bytes_and_drawn_for_once(dtype: str) -> None:
    aligned = [launch for case, launch in launches(90, "dropout", dtype) if case.startswith("aligned")]
    assert len(aligned) >= 8
    for launch in aligned:
        of_tensors = [width for width in launch.accesses if width != "b64"]  # not of an address
        assert set(of_tensors) == {"v4.b32"}, launch
        # A thread has 16 bytes at a time: the elements of one draw, or of float32 half of them.
        assert launch.products <= len(of_tensors) // 2 * PHILOX + 10, launch  # and some of divisions


def test_kernels_are_compiled_once_for_all_steps() -> None:
    variants: dict[str, set[str]] = {}
    for _, launch in launches(90, "steps", "bfloat16"):
        variants.setdefault(launch.kernel, set()).add(launch.variant)
    assert len(variants) == 9
    for kernel, found in variants.items():
        assert len(found) == 2, kernel  # addresses that are plain numbers, and those that are on the GPU
