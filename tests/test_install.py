"""What is shipped, and that it works once installed: with a C++ compiler and without, as a wheel and editable."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import dropkit
from dropkit import random
from dropkit.kernels.native.library import _NAME as LIBRARY
from tests.helpers.compiler import needs_compiler

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dropkit"
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")
NO_COMPILER = {"CXX": "/nowhere/c++"}
QUICKLY = {"SKBUILD_CMAKE_BUILD_TYPE": "Debug"}  # compiles in a seventh of the time
NATIVE_SOURCES = {".cpp", ".h"}
SAMPLE = """\
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, dropkit
    from dropkit import functional, kernels
    for _ in range(2):
        output = functional.dropout(torch.ones(100), 0.5, key=7)
about = kernels.info()
print(json.dumps({
    "package": dropkit.__file__,
    "kernel": about.kernel,
    "library": about.library and str(about.library),
    "kept": output.bool().tolist(),
    "said": [str(warning.message) for warning in caught],
}))
"""

pytestmark = pytest.mark.slow


def run(command: list[str], **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "DROPKIT_KERNEL"} | variables
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pip(python: Path | str, *arguments: str, **variables: str) -> None:
    run([sys.executable, "-m", "pip", "--python", str(python), *arguments], **variables)


def build(folder: Path, **variables: str) -> Path:
    pip(sys.executable, "wheel", *OFFLINE, "--wheel-dir", str(folder), str(ROOT), **variables)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this platform."""
    return build(tmp_path_factory.mktemp("wheel"), **QUICKLY)


@pytest.fixture(scope="module")
def portable_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel where there is no compiler."""
    return build(tmp_path_factory.mktemp("portable"), **NO_COMPILER)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The interpreter of a new environment that shares this one's packages, but no dropkit."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    shared = {str(Path(module.__file__).parents[1]) for module in (torch, pytest)}
    (packages / "shared.pth").write_text("\n".join(shared))
    return python


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what an installation reads."""
    leave = shutil.ignore_patterns("__pycache__", LIBRARY)
    shutil.copytree(SOURCE, tmp_path / "checkout" / "src" / "dropkit", ignore=leave)
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    return tmp_path / "checkout"


def outcome(python: Path) -> dict[str, Any]:
    """What the sample says where neither a compiler nor anything else can be found; its mask must be right."""
    found = json.loads(run([str(python), "-c", SAMPLE], PATH="", PYTHONPATH=""))
    assert found.pop("kept") == random.keep_mask(7, (100,), 0.5).tolist()
    return found


def files(folder: Path) -> set[str]:
    ignored = {"__pycache__"}
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not ignored & set(path.parts)}


def python_files() -> set[str]:
    """What every wheel holds."""
    return {
        f"dropkit/{name}" for name in files(SOURCE) if Path(name).suffix not in {*NATIVE_SOURCES, Path(LIBRARY).suffix}
    }


def shipped(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("dropkit-")}


@needs_compiler
def test_the_wheel_holds_the_package_and_the_compiled_library(wheel: Path) -> None:
    assert shipped(wheel) == python_files() | {f"dropkit/kernels/native/{LIBRARY}"}
    assert {".gz", ".npz", ".py", ".typed"} <= {Path(name).suffix for name in shipped(wheel)}


@needs_compiler
def test_the_wheel_serves_every_python_on_this_platform(wheel: Path) -> None:
    assert re.fullmatch(rf"dropkit-{re.escape(dropkit.__version__)}-py3-none-(?!any)\w+\.whl", wheel.name)


def test_without_a_compiler_the_wheel_is_pure_python(portable_wheel: Path) -> None:
    assert portable_wheel.name == f"dropkit-{dropkit.__version__}-py3-none-any.whl"
    assert shipped(portable_wheel) == python_files()


def test_the_wheel_needs_torch_and_numpy_alone(portable_wheel: Path) -> None:
    metadata = zipfile.ZipFile(portable_wheel).read(f"dropkit-{dropkit.__version__}.dist-info/METADATA").decode()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert sorted(re.findall(r"Requires-Dist: ([a-z-]+)", "\n".join(needed))) == ["numpy", "torch"]


def test_the_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"src/dropkit/{name}" for name in files(SOURCE) if Path(name).suffix != Path(LIBRARY).suffix}
    assert sources | {"CMakeLists.txt", "pyproject.toml"} <= names
    assert {Path(name).suffix for name in sources} >= NATIVE_SOURCES
    assert not any(name.endswith(LIBRARY) for name in names)


@needs_compiler
def test_an_installed_wheel_runs_the_compiled_kernels_and_needs_no_compiler(wheel: Path, environment: Path) -> None:
    pip(environment, "install", *OFFLINE, str(wheel))
    found = outcome(environment)
    assert found["said"] == []
    assert found["kernel"] in {"avx512", "avx2", "neon", "scalar"}
    assert Path(found["library"]) == Path(found["package"]).parent / "kernels" / "native" / LIBRARY
    assert environment.parents[1] in Path(found["library"]).parents


def test_a_wheel_without_kernels_runs_portable_operations_and_says_so_once(
    portable_wheel: Path, environment: Path
) -> None:
    pip(environment, "install", *OFFLINE, str(portable_wheel))
    found = outcome(environment)
    assert (found["kernel"], found["library"]) == ("portable", None)
    assert environment.parents[1] in Path(found["package"]).parents
    [said] = found["said"]
    assert "it was installed without a C++ compiler" in said


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="copied", marks=pytest.mark.exhaustive), pytest.param(["--editable"], id="editable")],
)
def test_the_command_that_a_warning_gives_compiles_the_kernels(
    options: list[str], checkout: Path, environment: Path
) -> None:
    pip(environment, "install", *OFFLINE, *options, str(checkout), **NO_COMPILER)
    [said] = outcome(environment)["said"]
    [command] = re.findall(r"^ *(.* -m pip install .*)$", said, re.MULTILINE)
    run([*shlex.split(command), "--no-build-isolation", "--no-index"], **QUICKLY)
    found = outcome(environment)
    assert (found["kernel"] != "portable", found["said"]) == (True, [])


@needs_compiler
def test_an_editable_install_keeps_the_library_in_the_environment(checkout: Path, environment: Path) -> None:
    before = files(checkout)
    pip(environment, "install", *OFFLINE, "--editable", str(checkout), **QUICKLY)
    found = outcome(environment)
    assert files(checkout) == before
    assert found["said"] == []
    assert environment.parents[1] in Path(found["library"]).parents
    assert Path(found["package"]) == checkout / "src" / "dropkit" / "__init__.py"
    (checkout / "src" / "dropkit" / "later.py").write_text("ANSWER = 42")
    assert run([str(environment), "-c", "from dropkit import later; print(later.ANSWER)"]) == "42\n"


def test_an_editable_install_succeeds_where_the_kernels_do_not_compile(checkout: Path, environment: Path) -> None:
    with (checkout / "src" / "dropkit" / "kernels" / "native" / "api.cpp").open("a") as source:
        source.write("\n#error\n")
    pip(environment, "install", *OFFLINE, "--editable", str(checkout), **QUICKLY)
    found = outcome(environment)
    assert (found["kernel"], len(found["said"])) == ("portable", 1)
