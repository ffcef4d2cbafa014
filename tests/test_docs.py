"""The documentation builds without a warning and has an entry for every public name."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import dropkit
from dropkit.nn.variants import VARIANTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a strict build."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for part in ("docs", "src"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")}  # of the formulas, as in the Makefile
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def documented(site: Path) -> set[str]:
    """The names in the site's inventory."""
    entries = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4])  # after 4 header lines
    return {line.split()[0] for line in entries.decode().splitlines()}


@pytest.mark.parametrize("name", [row.name for row in VARIANTS.values() if row.family in ("sequences", "weights")])
def test_placement_says_where_dropout_of_sequences_and_weights_goes(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "placement.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_formula_is_shown_without_a_script(site: Path, name: str) -> None:
    page = (site / "variants" / f"{name}.html").read_text(encoding="utf-8")
    (formula,) = re.findall("<math.*?</math>", page, flags=re.DOTALL)
    assert "\\" not in formula, "a command that the converter does not know"


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_links_of_the_pages_of_variants_lead_to_entries(site: Path, name: str) -> None:
    page = (site / "variants" / f"{name}.html").read_text(encoding="utf-8")
    links = re.findall(r'href="\.\./(api/\w+\.html)#(dropkit[\w.]+)"', page)
    assert ("api/nn.html", f"dropkit.nn.{name}") in links
    for file, place in links:
        assert f'id="{place}"' in (site / file).read_text(encoding="utf-8")


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
