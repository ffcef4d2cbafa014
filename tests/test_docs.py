"""The documentation builds without a warning and has an entry for every public name."""

import importlib
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import dropkit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in the inventory of a strict build."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for part in ("docs", "src"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    entries = zlib.decompress((folder / "site" / "objects.inv").read_bytes().split(b"\n", 4)[4])  # after 4 header lines
    return {line.split()[0] for line in entries.decode().splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("module", [name for name in dropkit.__all__ if not name.startswith("_")])
def test_every_public_name_has_an_entry(documented: set[str], module: str) -> None:
    package = importlib.import_module(f"dropkit.{module}")
    missing = []
    for name in package.__all__:
        item = getattr(package, name)
        defined_at = f"{getattr(item, '__module__', '')}.{name}"  # a function named as its file is found only there
        if not {f"dropkit.{module}.{name}", defined_at} & documented:
            missing.append(name)
    assert missing == []
