"""The data that come with dropkit: what they hold, and what is said of damaged or missing files."""

import hashlib
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from dropkit.errors import DataError
from dropkit.kernels.native.reinstall import place_to_run, reinstall_command
from dropkit.study import embedded

READERS = {"mnist_5k.npz": embedded.mnist, "telco_churn.csv.gz": embedded.churn}


def test_mnist_holds_500_images_of_each_digit_sorted() -> None:
    images, labels = embedded.mnist()
    assert (images.shape, images.dtype) == ((5000, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((5000,), np.uint8)
    assert labels.tolist() == [digit for digit in range(10) for _ in range(500)]
    assert (images.min(), images.max()) == (0, 255)
    assert len({image.tobytes() for image in images}) == 5000, "no image stands twice"


def test_churn_holds_the_columns_and_counts_that_its_source_states() -> None:
    table = embedded.churn()
    assert list(table).index("churn") == 0
    assert len(table) == 20
    assert {len(column) for column in table.values()} == {7043}
    assert (table["churn"].count("Yes"), table["churn"].count("No")) == (1869, 5174)
    assert table["total_charges"].count("") == 11
    assert all(column.count("") == 0 for name, column in table.items() if name != "total_charges")
    assert {int(months) for months in table["tenure"]} == set(range(73))
    assert all(float(charge) > 0 for charge in table["monthly_charges"])


def test_each_call_reads_afresh_so_that_a_caller_may_change_what_it_got() -> None:
    images, _ = embedded.mnist()
    images[:] = 7
    embedded.churn()["churn"].clear()
    assert embedded.mnist()[0].max() == 255
    assert len(embedded.churn()["churn"]) == 7043


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_by_name_with_both_hashes_and_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray((resources.files("dropkit.study") / "files" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    expected, found = embedded._SHA256[name], hashlib.sha256(content).hexdigest()
    command = reinstall_command()
    remedy = f"Reinstall dropkit{place_to_run(command)}: {command}"
    message = f"{name} is damaged: its sha256 must be {expected}, got {found}. {remedy}"
    with pytest.raises(DataError, match=re.escape(message)):
        READERS[name]()


def test_the_remedy_says_where_a_command_for_a_checkout_is_to_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    monkeypatch.setattr(embedded, "reinstall_command", lambda: "pip install .")
    with pytest.raises(DataError, match=r"Reinstall dropkit in a checkout of dropkit: pip install \.$"):
        embedded.mnist()


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_refused_by_name_with_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    with pytest.raises(DataError, match=rf"{re.escape(name)} cannot be read \(.*No such file.*\)\. Reinstall dropkit"):
        READERS[name]()


def test_the_readme_beside_the_files_states_the_same_hashes() -> None:
    readme = (resources.files("dropkit.study") / "files" / "README.md").read_text()
    stated = dict(reversed(line.split()) for line in readme.splitlines() if re.match(r" +[0-9a-f]{64} ", line))
    assert stated == embedded._SHA256


def test_reading_needs_numpy_alone() -> None:
    code = (
        "import sys, dropkit.study.embedded as embedded; embedded.mnist(); embedded.churn();"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'optuna', 'sklearn', 'pandas', 'matplotlib',"
        " 'rich', 'typer', 'jinja2', 'scipy', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
