"""The program that compares instruction sets, built in the ways in which mistakes show, and run."""

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "src" / "dropkit" / "kernels" / "native"
# GCC warns of registers that its own header of AVX-512 leaves undefined.
QUIET = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", *QUIET, "-ffp-contract=off", "-pthread")
OPTIONS = re.findall(r'engine_(\w+)\.cpp\s+PROPERTIES COMPILE_OPTIONS "(.*)"', (ROOT / "CMakeLists.txt").read_text())
ENGINES = {"x86": {name: options.split(";") for name, options in OPTIONS}, "arm": {"neon": ()}, "other": {}}
HERE_IS = {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm", "arm64": "arm"}.get(platform.machine(), "other")
ARM_TOOLS = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def run_all(commands: Sequence[Sequence[object]]) -> None:
    """Run compilers side by side."""
    running = [subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[1] for process in running]
    assert not any(process.returncode for process in running), said
    assert not any(said), said


def build(folder: Path, compiler: str, kind: str, flags: Sequence[str] = ()) -> Path:
    """Build the program with the kernels of a kind of processor."""
    define = () if kind == "other" else (f"-DDROPKIT_{kind.upper()}",)
    common = (compiler, *FLAGS, *flags, *define, f"-I{NATIVE}")
    sources = {NATIVE / f"engine_{name}.cpp": extra for name, extra in {"scalar": (), **ENGINES[kind]}.items()}
    sources |= {NATIVE / "api.cpp": (), HERE / "check_paths.cpp": ()}
    objects = {source: folder / f"{source.stem}.o" for source in sources}
    run_all([(*common, *extra, "-c", source, "-o", objects[source]) for source, extra in sources.items()])
    program = folder / "check_paths"
    run_all([(*common, *objects.values(), "-o", program)])
    return program


def check(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's layout of memory is not one that the sanitizer knows")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 0 differences" in done.stdout


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_every_path_equals_the_definition_under_a_sanitizer(tmp_path: Path, sanitizer: str) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to build the kernels with")
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    linked = subprocess.run(["g++", *flags, empty, "-o", tmp_path / "empty"], capture_output=True, check=False)  # noqa: S607
    if linked.returncode:
        pytest.skip(f"this g++ has no sanitizer for {sanitizer}")
    check(build(tmp_path, "g++", HERE_IS, flags), 200, 2)


def test_neon_equals_the_definition_under_emulation(tmp_path: Path) -> None:
    missing = [f"{tool} (Debian: {package})" for tool, package in ARM_TOOLS.items() if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not found: {', '.join(missing)}")
    check("qemu-aarch64", build(tmp_path, "aarch64-linux-gnu-g++", "arm", ("-static",)), 200)
