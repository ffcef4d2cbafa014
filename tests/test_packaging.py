"""What is public, what importing costs, and which way imports point."""

import ast
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache
from pathlib import Path

import pytest

import dropkit
from dropkit.cli import _PACKAGES as OPTIONAL

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dropkit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACT = PROJECT["tool"]["importlinter"]["contracts"][-1]  # on optional packages
FOUND = ["dropkit", *(module.name for module in pkgutil.walk_packages(dropkit.__path__, "dropkit."))]
MODULES = [name for name in FOUND if not name.endswith(".dropkit_kernels")]  # which only looks like one, on Linux


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@cache
def imported_by(statement: str) -> frozenset[str]:
    """The top-level packages that a fresh interpreter holds after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    result = run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    return frozenset(json.loads(result.stdout))


def packages_named_in(source: str) -> set[str]:
    """The top-level packages that the import statements of a file name, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def check_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package under `root`, past the editable install: -S leaves its import hook out."""
    paths = [str(root / "src"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    lint = "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    return run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths}; {lint}"], cwd=root)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_resolve(module: str) -> None:
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_public_names_work_after_a_plain_import() -> None:
    uses = "; ".join(f"dropkit.{name}" for name in dropkit.__all__)
    assert "dropkit" in imported_by(f"import dropkit; {uses}")
    assert set(dropkit.__all__) == set(dir(dropkit))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=re.escape("module 'dropkit' has no attribute 'droput'")):
        dropkit.droput  # noqa: B018  # reading it is the test


@pytest.mark.parametrize(
    "module", ["dropkit", "dropkit.cli", "dropkit.errors", "dropkit.kernels", "dropkit.numpy", "dropkit.random"]
)
def test_light_modules_import_neither_torch_nor_anything_optional(module: str) -> None:
    assert imported_by(f"import {module}") & {"torch", *OPTIONAL} == set()


def test_torch_modules_import_nothing_optional() -> None:
    modules = "dropkit.functional, dropkit.kernels.operators, dropkit.nn, dropkit.uncertainty"
    assert (imported_by(f"import {modules}") - imported_by("import torch")) & set(OPTIONAL) == set()


def test_the_import_check_sees_an_import() -> None:
    assert {"torch", "jinja2"} <= imported_by("import dropkit.random, torch, jinja2")


def test_the_optional_packages_are_the_same_wherever_they_are_listed() -> None:
    modules = {"scikit-learn": "sklearn"}
    extra = [re.split(r"[<>=!~ \[]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["study"]]
    assert (
        sorted(modules.get(name, name) for name in extra) == sorted(OPTIONAL) == sorted(CONTRACT["forbidden_modules"])
    )


def test_the_extra_of_uncertainty_is_part_of_that_of_the_study_with_the_same_bounds() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras["uncertainty"]) < set(extras["study"])


def test_every_package_that_uncertainty_imports_is_in_its_extra() -> None:
    modules = {"scikit-learn": "sklearn"}
    names = [re.split(r"[<>=!~ \[]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["uncertainty"]]
    sources = (SOURCE / "uncertainty").rglob("*.py")
    optional = set().union(*(packages_named_in(path.read_text()) for path in sources)) & set(OPTIONAL)
    assert optional <= {modules.get(name, name) for name in names}


def test_every_package_that_is_imported_is_declared() -> None:
    imported = set().union(*(packages_named_in(path.read_text()) for path in SOURCE.rglob("*.py")))
    assert {"torch", "numpy"} <= imported
    on_gpus = {"triton"}  # comes with PyTorch for them
    assert imported - sys.stdlib_module_names - {"dropkit", "torch", "numpy", *OPTIONAL} == on_gpus


def test_every_other_package_is_kept_from_optional_packages() -> None:
    children = {name for name in MODULES if name.count(".") == 1}
    assert set(CONTRACT["source_modules"]) == children - {"dropkit.study", "dropkit.uncertainty", "dropkit.cli"}


@pytest.mark.parametrize("package", OPTIONAL)
def test_the_command_without_an_optional_package_says_in_one_line_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from dropkit.cli import main; main()"
    result = run([sys.executable, "-c", code])
    advice = f"The dropkit command needs the package {package!r}. Install it with: pip install 'dropkit[study]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", advice)


def test_the_command_explains_itself_on_a_bare_interpreter() -> None:
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); from dropkit.cli import main; main()"
    result = run([sys.executable, "-S", "-c", code])
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


def test_imports_point_one_way() -> None:
    result = check_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "breach", "contract"),
    [
        ("random/__init__.py", "import dropkit.nn", "Imports point one way"),
        ("errors.py", "import dropkit.random", "Imports point one way"),
        ("random/__init__.py", "import torch", "Masks and NumPy dropout need no torch"),
        ("nn/__init__.py", "import scipy.stats", "Optional packages stay in study, uncertainty and cli"),
        ("_novel.py", "import json", "Imports point one way"),  # every module has its place in the line of layers
    ],
)
def test_a_planted_breach_of_the_import_directions_is_caught(
    tmp_path: Path, module: str, breach: str, contract: str
) -> None:
    shutil.copytree(SOURCE, tmp_path / "src" / "dropkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src" / "dropkit" / module).open("a") as file:
        file.write(f"\n{breach}\n")
    result = check_imports(tmp_path)
    assert result.returncode == 1, result.stderr
    assert f"{contract} BROKEN" in result.stdout
